"""The connector as vLLM knows it: a scheduler's half and a worker's half, each around parts that know no vLLM.

vLLM makes one object per role. The scheduler's (:mod:`.scheduling`) says how many tokens can be loaded, and sends a
:class:`StepPlan` with every step. The worker's (:mod:`.loading`, :mod:`.saving`) carries it out and reports what came
of it. Loads run between steps, into blocks that nobody reads yet, so no layer ever waits for one; saves are copied at
the end of the step that computed them.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

from ... import limits
from ...errors import InvalidRequest
from . import model
from .loading import FinishedLoad
from .plan import StepPlan
from .scheduler_half import SchedulerHalf
from .settings import ConnectorSettings
from .stats import Counts
from .worker_half import WorkerHalf

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["KvloomConnector"]


@dataclass
class KvloomMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """One step's plan on its way to the workers."""

    plan: StepPlan


@dataclass
class KvloomWorkerMetadata(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What a worker's loads came to, on its way to the scheduler."""

    loads: tuple[FinishedLoad, ...] = ()

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "KvloomWorkerMetadata":
        """Of all workers."""
        return KvloomWorkerMetadata(self.loads + other.loads)


@dataclass
class KvloomStats(KVConnectorStats):  # type: ignore[misc]
    """:class:`Counts` as vLLM passes statistics on."""

    data: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        """Begin anew."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> "KvloomStats":
        """The sum of both."""
        return KvloomStats((Counts(**self.data) + Counts(**other.data)).as_dict())

    def reduce(self) -> dict[str, int | float]:
        """What the log shows."""
        return {name: value for name, value in self.data.items() if value}

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not any(self.data.values())


class KvloomConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """vLLM's door to a kvloom daemon; ``kv_connector_extra_config`` is :class:`ConnectorSettings`."""

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        model.check_supported(vllm_config)
        transfer = vllm_config.kv_transfer_config
        settings = ConnectorSettings.parse(transfer.kv_connector_extra_config)
        settings = replace(
            settings, save=settings.save and transfer.is_kv_producer, load=settings.load and transfer.is_kv_consumer
        )
        layouts = model.layouts_of(kv_cache_config, vllm_config)
        block_tokens = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._half: SchedulerHalf | WorkerHalf
        if role is KVConnectorRole.SCHEDULER:
            self._half = SchedulerHalf(settings, layouts, vllm_config, block_tokens)
        else:
            rank = get_tensor_model_parallel_rank()
            self._half = WorkerHalf(settings, layouts[rank], rank)

    @property
    def requires_kv_delivery(self) -> bool:
        """Nobody waits for what is saved: it may be lost."""
        return False

    # The scheduler's half

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens after those that vLLM has can be loaded."""
        tokens = self._scheduler().matched_tokens(request, num_computed_tokens)
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Blocks were found for what is to be loaded."""
        if num_external_tokens:
            self._scheduler().planner.plan_load(request.request_id, num_external_tokens, blocks.get_block_ids()[0])

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        """The plan of the step that ``scheduler_output`` describes."""
        return KvloomMetadata(self._scheduler().plan_step(scheduler_output))

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        """What the workers' loads came to."""
        reported = connector_output.kv_connector_worker_meta
        if isinstance(reported, KvloomWorkerMetadata):
            for load in reported.loads:
                if load.failed_start is not None:
                    self._scheduler().planner.load_failed(load.request_id, load.failed_start, silent=load.silent)

    def reset_cache(self) -> bool:
        """Forget what was stored: the model's weights may have been changed in place."""
        self._scheduler().forget()
        return True

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Whether the blocks of a request that has ended are needed for one more step."""
        return self._scheduler().finish(request, block_ids), None

    # The workers' half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The engine's KV caches by layer."""
        self._worker().register(kv_caches, self._vllm_config, self._kv_cache_config)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Begin this step's loads; the step does not read what they write."""
        self._worker().start_loads(self._plan(), idle=forward_context.attn_metadata is None)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: requests whose KV is being loaded are in no step."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing yet: chunks are copied when the step is computed whole."""

    def wait_for_save(self) -> None:
        """Copy what this step computed, before its blocks may be used for something else."""
        self._worker().save(self._plan())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose blocks are no longer read, and those whose loads have ended, well or not."""
        loaded = self._worker().finish_loads()
        self._worker().save(self._plan())  # with a drafting model, vLLM says wait_for_save later than it asks this
        return set(self._plan().released), {load.request_id for load in loaded}

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that hold nothing, or not all, of what was to be loaded: to be computed."""
        return {block for load in self._worker().reported for block in load.failed_blocks}

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """What this step's finished loads came to."""
        return KvloomWorkerMetadata(tuple(self._worker().reported)) if self._worker().reported else None

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """Loads and saves since the last call."""
        if not isinstance(self._half, WorkerHalf):
            return None
        counts = self._half.take_counts()
        return None if counts == Counts() else KvloomStats(counts.as_dict())

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Statistics from what :meth:`get_kv_connector_stats` sent."""
        return KvloomStats(data or {})

    def drain_saves(self, seconds_max: float = limits.ENGINE_CLOSE_SECONDS_MAX) -> bool:
        """Wait, in a worker, until what was copied so far is stored; whether that is so within ``seconds_max``."""
        return self._worker().drain(seconds_max)

    def totals(self) -> Counts:
        """Loads and saves of this worker since the engine was started."""
        self._worker().take_counts()
        return self._worker().totals

    def shutdown(self) -> None:
        """Send what waits to be stored, for a bounded time, and end threads and connections."""
        self._half.close()

    def _scheduler(self) -> SchedulerHalf:
        if not isinstance(self._half, SchedulerHalf):
            raise InvalidRequest("a worker's connector was asked what a scheduler's knows")
        return self._half

    def _worker(self) -> WorkerHalf:
        if not isinstance(self._half, WorkerHalf):
            raise InvalidRequest("a scheduler's connector was asked what a worker's knows")
        return self._half

    def _plan(self) -> StepPlan:
        metadata = self._get_connector_metadata()
        if not isinstance(metadata, KvloomMetadata):
            raise InvalidRequest(f"metadata of a step is {type(metadata).__name__}, not ours")
        return metadata.plan
