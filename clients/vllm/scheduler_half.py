"""The scheduler's half of the connector: vLLM's requests as :class:`RequestPlanner` knows them."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from ...codec.layout import Layout
from ...errors import InvalidRequest, NotFound
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Hit
from ..client import KvloomClient
from ..patience import RetryPolicy, find_lookup_seconds
from ..plan_wire import LoadSample, PrefillSample
from ..sequence import SequenceChunks, ShardedChunk
from . import model
from .advice import LOAD_ALL, Advice, EngineState, LoadAdviser
from .document_plan import DocumentPlanner
from .load_job import FinishedLoad
from .lookup import ChunkLookup
from .marking import Marks, read_marks
from .parts import shard_identities
from .plan import BlockTables, StepPlan, StepPrefill
from .reporting import Reporter
from .scheduling import RequestPlanner
from .settings import ConnectorSettings
from .stats import Counts

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

__all__ = ["SchedulerHalf"]

LOGGER: Final = logging.getLogger("vllm.kvloom")
"""Below vLLM's own logger, so that its handlers and levels hold."""


_AWAIT: Final = "kvloom_await"
"""The field of a request's kv_transfer_params that says that another engine is computing its prompt."""


@dataclass(slots=True)
class _Followed:
    """A request of which a plan was followed, until its first token."""

    plan: bytes
    began: float


class SchedulerHalf:
    """Requests of vLLM as :class:`RequestPlanner` knows them."""

    def __init__(
        self,
        settings: ConnectorSettings,
        layouts: Sequence[Layout],
        config: "VllmConfig",
        cache_config: "KVCacheConfig",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        fingerprint = model.model_fingerprint(config, settings.level, settings.fingerprint)
        self._identities = shard_identities(fingerprint, layouts, settings.layers_per_part)
        self._settings = settings
        self._clock = clock
        seconds = find_lookup_seconds(settings.lookup_seconds_max)
        self._client = KvloomClient(
            settings.address, api_key=settings.api_key, lookup_seconds=seconds, retries=RetryPolicy(tries_max=1)
        )
        self._block_tokens = model.block_tokens_of(cache_config, settings.chunk_tokens)
        engine = settings.engine or model.engine_name(config, fingerprint)
        self._lookup = ChunkLookup(self._client.exists, seconds)
        self._adviser = LoadAdviser(
            engine,
            settings.level,
            lambda question: self._client.plan(question, seconds_max=seconds),
        )
        self._reporter = Reporter(engine, settings.level, self._client.report, self._probe) if settings.plan else None
        self.planner = RequestPlanner(
            settings, self._lookup, advise=self._advise, keep_last=len(self._block_tokens) > 1 or settings.load_by_layer
        )
        self.documents = DocumentPlanner(settings, self._lookup)
        self._requests: dict[str, Request] = {}
        self._followed: dict[str, _Followed] = {}
        LOGGER.info(
            "kvloom: model %s, level %s, daemon %s", fingerprint.hex()[:16], settings.level, self._client.endpoint
        )

    def matched_tokens(self, request: "Request", computed: int) -> int:
        """As :meth:`RequestPlanner.matched_tokens`, or of documents :meth:`DocumentPlanner.matched_tokens`."""
        request_id = request.request_id
        if not (request_id in self._requests or self.documents.knows(request_id)) and not self._begin(request):
            return 0
        if self.documents.knows(request_id):
            return self.documents.matched_tokens(request_id, computed)
        began = self._clock()
        tokens = self.planner.matched_tokens(request_id, request.all_token_ids, computed)
        plan = self.planner.plan_of(request_id)
        if plan is not None and request_id not in self._followed and not request.num_output_tokens:
            self._followed[request_id] = _Followed(plan, began)
        return tokens

    def plan_load(self, request_id: str, tokens: int, tables: tuple[Sequence[int], ...]) -> None:
        """As :meth:`RequestPlanner.plan_load`, or of documents :meth:`DocumentPlanner.plan_load`."""
        if self.documents.knows(request_id):
            self.documents.plan_load(request_id, tokens, BlockTables(tables, self._block_tokens))
            return
        self.planner.plan_load(request_id, tokens, BlockTables(tables, self._block_tokens))

    def plan_step(self, output: "SchedulerOutput") -> StepPlan:
        """The loads asked for and the chunks that this step completes."""
        state = output.kv_connector_block_state
        prefills, queued = [], 0
        for request_id, scheduled in output.num_scheduled_tokens.items():
            request = self._requests.get(request_id)
            if request is None:
                continue
            if request.num_output_tokens:
                self._note_first_token(request_id)
            start = request.num_computed_tokens
            if start < request.num_prompt_tokens:
                prefills.append(StepPrefill(scheduled, start, len(output.num_scheduled_tokens)))
                queued += max(0, request.num_prompt_tokens - start - scheduled)
            table = partial(self._tables, state, request_id)
            self.planner.step(request_id, request.all_token_ids, start + scheduled, table)
        self._adviser.state = EngineState(len(output.num_scheduled_tokens), queued)
        blends = self.documents.take()
        told = prefills[0] if len(prefills) == 1 and not blends else None
        return replace(self.planner.take(told), blends=blends)

    def note_finished(self, loads: Sequence[FinishedLoad], prefills: Sequence[PrefillSample]) -> None:
        """What the workers' loads came to, and what the step's prefill took."""
        for load in loads:
            if load.failed_start is not None:
                self.planner.load_failed(load.request_id, load.failed_start, silent=load.silent)
                self.documents.load_failed(load.request_id)
            if self._reporter is not None:
                self._reporter.note_loads(load.times)
        if prefills and self._reporter is not None:
            self._adviser.note_prefills(prefills)
            self._reporter.note_prefills(prefills)

    def take_counts(self) -> Counts:
        """What was asked since the last call."""
        return self._lookup.take_counts() + self._adviser.take_counts()

    def finish(self, request: "Request", tables: tuple[Sequence[int], ...]) -> bool:
        """As :meth:`RequestPlanner.finish`; what failed or still waits for its KV has nothing to save."""
        if request.num_output_tokens:
            self._note_first_token(request.request_id)
        self._followed.pop(request.request_id, None)
        self.documents.end(request.request_id)
        if self._requests.pop(request.request_id, None) is None:
            return False
        # The last token was sampled, not computed; steps that were scheduled ahead count tokens that nobody has seen.
        known = request.num_tokens - 1
        ended = request.get_finished_reason()
        computed = min(request.num_computed_tokens, known) if str(ended) in ("stop", "length") else 0
        blocks = BlockTables(tables, self._block_tokens)
        return self.planner.finish(request.request_id, request.all_token_ids, computed, blocks)

    def forget(self) -> None:
        """Name everything anew from now on, so that nothing stored is found."""
        names = blake3(os.urandom(32))
        self._identities = [
            replace(item, fingerprint=blake3(item.fingerprint + names.digest()).digest()) for item in self._identities
        ]

    def close(self) -> None:
        """Send what is left to report, and close the client."""
        if self._reporter is not None:
            self._reporter.close()
        self._client.close()

    def _advise(self, chunks: Sequence[ShardedChunk], prompt_tokens: int) -> Advice:
        if self._reporter is None:
            return LOAD_ALL
        advice = self._adviser.advise(chunks, prompt_tokens)
        if advice.chunks < len(chunks):
            self._reporter.note_declined(chunks[advice.chunks].keys[0])
        return advice

    def _note_first_token(self, request_id: str) -> None:
        followed = self._followed.pop(request_id, None)
        if followed is not None and self._reporter is not None:
            self._reporter.note_outcome(followed.plan, self._clock() - followed.began)

    def _probe(self, key: ContentKey) -> LoadSample | None:
        """Read a chunk to see how its link does: a tier of the daemon, as plans name it."""
        try:
            tiers = self._client.info(key).chunk.tiers
        except NotFound:
            return None
        began = self._clock()
        outcome = self._client.get(key, level=self._settings.level)
        if not tiers or not isinstance(outcome, Hit):
            return None
        return LoadSample(tiers[0], len(outcome.value.data), self._clock() - began)

    def _tables(self, state: Any, request_id: str) -> BlockTables:
        """A request's blocks, resolved only where a chunk is to be saved."""
        return BlockTables(state.get_block_ids(request_id), self._block_tokens)

    def _begin(self, request: "Request") -> bool:
        """Whether the request's KV has a name: it is of token ids that stay, and of an adapter that is known."""
        if request.prompt_embeds is not None or request.prompt_token_ids is None or request.resumable:
            return False  # a session whose input streams in takes back tokens that it has made
        adapter = model.adapter_name(request.lora_request)
        marks, may_begin = self._marks(request)
        if adapter is None or not may_begin:
            return False
        if marks is not None:
            stored = model.with_request(self._identities, adapter="", salt=model.salt_bytes(marks.salt))
            prompt = request.prompt_token_ids
            self.documents.begin(request.request_id, prompt, marks, stored)
            return True
        identities = model.with_request(self._identities, adapter=adapter, salt=model.salt_bytes(request.cache_salt))
        chunks = SequenceChunks(identities, self._settings.chunk_tokens, model.features_of(request))
        self._requests[request.request_id] = request
        awaited = bool((request.kv_transfer_params or {}).get(_AWAIT))
        self.planner.begin(request.request_id, chunks, request.num_prompt_tokens, awaited=awaited)
        return True

    def _marks(self, request: "Request") -> tuple[Marks | None, bool]:
        """A request's documents, if it has any, and whether its KV may be loaded at all.

        One with documents that cannot be blended is computed, and nothing of it is stored.
        """
        try:
            marks = read_marks(request.kv_transfer_params, request.cache_salt, request.num_prompt_tokens)
        except InvalidRequest as error:
            LOGGER.warning("kvloom: documents of request %s are computed: %s", request.request_id, error)
            return None, False
        if marks is None:
            return None, True
        return marks, self._settings.blend and request.lora_request is None and not request.mm_features
