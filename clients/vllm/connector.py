"""The connector as vLLM knows it: a scheduler's half and a worker's half, each around parts that know no vLLM.

vLLM makes one object per role. The scheduler's (:mod:`.scheduling`) says how many tokens can be loaded, and sends a
:class:`StepPlan` with every step. The worker's (:mod:`.loading`, :mod:`.saving`) carries it out and reports what came
of it, and what computing took. Loads run between steps, into blocks that nobody reads yet, so no layer ever waits for
one; with ``load_by_layer`` they run beside the step that reads them, and every layer waits for its own; documents are
blended in front of it (:mod:`.blending`). Saves are
copied at the end of the step that computed them; in parts (``layers_per_part``) as soon as a part's last layer is.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.metrics.utils import create_metric_per_engine

from ... import limits
from ...errors import ConfigError, InvalidRequest
from ..plan_wire import PrefillSample
from . import model
from .load_job import FinishedLoad
from .plan import StepPlan
from .plugin import LOAD_FORMAT
from .scheduler_half import SchedulerHalf
from .settings import ConnectorSettings
from .stats import DESCRIPTIONS, Counts
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
    """What a worker's loads came to and its step took, on its way to the scheduler."""

    loads: tuple[FinishedLoad, ...] = ()
    prefills: tuple[PrefillSample, ...] = ()

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "KvloomWorkerMetadata":
        """Of all workers."""
        if not isinstance(other, KvloomWorkerMetadata):
            raise InvalidRequest(f"metadata of a worker is {type(other).__name__}, not ours")
        return KvloomWorkerMetadata(self.loads + other.loads, self.prefills + other.prefills)


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


class KvloomPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """:class:`Counts` as counters ``vllm:kvloom_…``, by engine."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        metric_types: dict[type[Any], type[Any]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: create_metric_per_engine(
                self._counter_cls(f"vllm:kvloom_{name}", documentation=what, labelnames=labelnames),
                per_engine_labelvalues,
            )
            for name, what in DESCRIPTIONS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add what came since the last time."""
        for name, value in transfer_stats_data.items():
            if name in self._counters and value > 0:
                self._counters[name][engine_idx].inc(value)


class KvloomConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
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
        self._groups = len(kv_cache_config.kv_cache_groups)
        if settings.load_by_layer and self._groups > 1:
            raise ConfigError(
                f"load_by_layer with {self._groups} groups of KV caches: vLLM cannot compute again what fails then; "
                "pass --disable-hybrid-kv-cache-manager"
            )
        if settings.blend:
            model.check_blendable(vllm_config, self._groups, LOAD_FORMAT)
        self._by_layer = settings.load_by_layer
        self._half: SchedulerHalf | WorkerHalf
        if role is KVConnectorRole.SCHEDULER:
            self._half = SchedulerHalf(settings, layouts, vllm_config, kv_cache_config)
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
        half = self._scheduler()
        tokens = half.matched_tokens(request, num_computed_tokens)
        at_once = self._by_layer or half.documents.knows(request.request_id)
        return tokens, tokens > 0 and not at_once

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Blocks were found for what is to be loaded."""
        if num_external_tokens:
            self._scheduler().plan_load(request.request_id, num_external_tokens, blocks.get_block_ids())

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        """The plan of the step that ``scheduler_output`` describes."""
        return KvloomMetadata(self._scheduler().plan_step(scheduler_output))

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        """What the workers' loads came to, and what computing took."""
        reported = connector_output.kv_connector_worker_meta
        if isinstance(reported, KvloomWorkerMetadata):
            self._scheduler().note_finished(reported.loads, reported.prefills)

    def reset_cache(self) -> bool:
        """Forget what was stored: the model's weights may have been changed in place."""
        self._scheduler().forget()
        return True

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Whether the blocks of a request that has ended are needed for one more step."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The same, for all groups of KV caches."""
        return self._scheduler().finish(request, block_ids), None

    # The workers' half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The engine's KV caches by layer."""
        self._worker().register(kv_caches, self._vllm_config, self._kv_cache_config)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Begin this step's loads, which write what it does not read, and blend what it does."""
        self._worker().start_loads(self._plan(), idle=forward_context.attn_metadata is None)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """A step with that plan begins."""
        super().bind_connector_metadata(connector_metadata)
        self._worker().begin_step()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Wait for what this step reads of a layer: nothing, unless with ``load_by_layer``."""
        if self._by_layer:
            self._worker().wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Copy the part that ends with this layer, if there are parts."""
        self._worker().save_layer(layer_name, self._plan())

    def finish_forward(self) -> None:
        """The step is computed."""
        self._worker().end_forward(self._plan())

    def wait_for_save(self) -> None:
        """Copy what this step computed, before its blocks may be used for something else."""
        self._worker().end_forward(self._plan())
        self._worker().save(self._plan())

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """A graph of the whole model would call nobody between its layers."""
        return bool(ConnectorSettings.parse(extra_config).layers_per_part)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose blocks are no longer read, and those whose loads have ended, well or not."""
        loaded = self._worker().finish_loads()
        self._worker().save(self._plan())  # with a drafting model, vLLM says wait_for_save later than it asks this
        return set(self._plan().released), {load.request_id for load in loaded if not load.by_layer}

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """The same; with several groups of KV caches, failures are those of requests and not of blocks."""
        results = super().get_transfer_results(finished_req_ids)
        if self._groups > 1:
            results.failed_recving = {
                load.request_id for load in self._worker().reported if load.failed_start is not None
            }
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that hold nothing, or not all, of what was to be loaded: to be computed."""
        if self._groups > 1:
            return set()
        return {block for load in self._worker().reported for block in load.failed_blocks}

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """What this step's finished loads came to, and what it took to compute."""
        loads, prefills = tuple(self._worker().reported), self._worker().prefills
        return KvloomWorkerMetadata(loads, prefills) if loads or prefills else None

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """Loads and saves, or look-ups and plans, since the last call."""
        counts = self._half.take_counts()
        return None if counts == Counts() else KvloomStats(counts.as_dict())

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Statistics from what :meth:`get_kv_connector_stats` sent."""
        return KvloomStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: dict[type[Any], type[Any]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics:
        """The same statistics for Prometheus, beside vLLM's own."""
        return KvloomPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

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
