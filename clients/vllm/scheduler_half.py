"""The scheduler's half of the connector: vLLM's requests as :class:`RequestPlanner` knows them."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from ...codec.layout import Layout
from ...kvstore.key import ModelIdentity
from ..client import KvloomClient
from ..patience import RetryPolicy, find_lookup_seconds
from . import model
from .lookup import ChunkLookup
from .plan import StepPlan
from .scheduling import RequestPlanner
from .sequence import SequenceChunks
from .settings import ConnectorSettings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["SchedulerHalf"]

LOGGER: Final = logging.getLogger("vllm.kvloom")
"""Below vLLM's own logger, so that its handlers and levels hold."""


class SchedulerHalf:
    """Requests of vLLM as :class:`RequestPlanner` knows them."""

    def __init__(
        self, settings: ConnectorSettings, layouts: Sequence[Layout], config: "VllmConfig", block_tokens: int
    ) -> None:
        fingerprint = model.model_fingerprint(config, settings.level, settings.fingerprint)
        self._identities = [ModelIdentity(fingerprint, layout.digest()) for layout in layouts]
        self._chunk_tokens = settings.chunk_tokens
        seconds = find_lookup_seconds(settings.lookup_seconds_max)
        self._client = KvloomClient(
            settings.address, api_key=settings.api_key, lookup_seconds=seconds, retries=RetryPolicy(tries_max=1)
        )
        self.planner = RequestPlanner(settings, ChunkLookup(self._client.exists, seconds), block_tokens)
        self._requests: dict[str, Request] = {}
        LOGGER.info(
            "kvloom: model %s, level %s, daemon %s", fingerprint.hex()[:16], settings.level, self._client.endpoint
        )

    def matched_tokens(self, request: "Request", computed: int) -> int:
        """As :meth:`RequestPlanner.matched_tokens`."""
        if request.request_id not in self._requests and not self._begin(request):
            return 0
        return self.planner.matched_tokens(request.request_id, request.all_token_ids, computed)

    def plan_step(self, output: "SchedulerOutput") -> StepPlan:
        """The loads asked for and the chunks that this step completes."""
        blocks = output.kv_connector_block_state
        for request_id, scheduled in output.num_scheduled_tokens.items():
            request = self._requests.get(request_id)
            if request is not None:
                computed = request.num_computed_tokens + scheduled
                table = partial(_table, blocks, request_id)
                self.planner.step(request_id, request.all_token_ids, computed, table)
        return self.planner.take()

    def finish(self, request: "Request", block_ids: list[int]) -> bool:
        """As :meth:`RequestPlanner.finish`; what failed or still waits for its KV has nothing to save."""
        if self._requests.pop(request.request_id, None) is None:
            return False
        # The last token was sampled, not computed; steps that were scheduled ahead count tokens that nobody has seen.
        known = request.num_tokens - 1
        ended = request.get_finished_reason()
        computed = min(request.num_computed_tokens, known) if str(ended) in ("stop", "length") else 0
        return self.planner.finish(request.request_id, request.all_token_ids, computed, block_ids)

    def forget(self) -> None:
        """Name everything anew from now on, so that nothing stored is found."""
        names = blake3(os.urandom(32))
        self._identities = [
            replace(item, fingerprint=blake3(item.fingerprint + names.digest()).digest()) for item in self._identities
        ]

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _begin(self, request: "Request") -> bool:
        """Whether the request's KV has a name: it is of token ids that stay, and of an adapter that is known."""
        if request.prompt_embeds is not None or request.prompt_token_ids is None or request.resumable:
            return False  # a session whose input streams in takes back tokens that it has made
        adapter = model.adapter_name(request.lora_request)
        if adapter is None:
            return False
        identities = model.with_request(self._identities, adapter=adapter, salt=model.salt_bytes(request.cache_salt))
        chunks = SequenceChunks(identities, self._chunk_tokens, model.features_of(request))
        self._requests[request.request_id] = request
        self.planner.begin(request.request_id, chunks, request.num_prompt_tokens)
        return True


def _table(blocks: Any, request_id: str) -> Sequence[int]:
    """The ids of a request's blocks, resolved only where a chunk is to be saved."""
    table: Sequence[int] = blocks.get_block_ids(request_id)[0]
    return table
