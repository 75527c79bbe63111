"""kvloom below vLLM's own offloading: a secondary tier behind its CPU tier, for whoever uses that instead of ours.

vLLM offloads blocks to its CPU tier and cascades them from there; what has left the CPU is asked for here and promoted.
All of it runs in the scheduler's process, which never waits: look-ups and transfers are threads' work, and what a
daemon does not answer in time is a miss. Rows come and go as they are (:mod:`.opaque`); their names say what they hold.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from vllm.v1.kv_offload.base import (
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from ... import limits
from ...errors import ConfigError, KvloomError
from ...kvstore.key import ContentKey, ContextMarker, ModelIdentity, content_key
from ...kvstore.outcome import Hit
from ..client import KvloomClient
from ..opaque import OpaqueRows, opaque_dtype
from ..patience import RetryPolicy
from ..weights import opaque_fingerprint

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector

__all__ = ["KvloomTier"]

LOGGER: Final = logging.getLogger("vllm.kvloom")
_FORMAT: Final = b"kvloom vllm offload 1"
_Work = Callable[[list[OffloadKey], "NDArray[np.int32]"], Iterable[tuple[OffloadKey, int]]]
"""A transfer: yields every row that it has done, with the bytes that this took."""


class _Lookups(AsyncLookupManager):  # type: ignore[misc]
    """vLLM's own look-ups in the background, which ask the daemon."""

    def __init__(self, tier: "KvloomTier") -> None:
        self._tier = tier
        super().__init__(tier_type=tier.tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        return self._tier.stored(keys)


class KvloomTier(SecondaryTierManager):  # type: ignore[misc]
    """``{"type": "KvloomTier", "module_path": "kvloom.clients.vllm"}`` among ``secondary_tiers`` (docs/VLLM.md).

    ``address`` and ``api_key`` as every client takes them. ``fingerprint`` (64 hexadecimal digits) stands for the
    model's weights and configuration; without it these are hashed, where the model is a folder or a file.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: "OffloadingSpec",
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: "BackpressureDetector | None" = None,
        *,
        address: str | None = None,
        api_key: str | None = None,
        fingerprint: str | None = None,
        lookup_seconds_max: float | None = None,
        threads: int = 2,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        if not 1 <= threads <= limits.ENGINE_LOAD_THREADS_MAX:
            raise ConfigError(f"threads is {threads}, must be 1 to {limits.ENGINE_LOAD_THREADS_MAX}")
        config = offloading_spec.config
        self._rows = OpaqueRows.of(self.block_size_bytes, opaque_dtype(str(config.model.dtype)))
        self._identity = ModelIdentity(_named(config, fingerprint), self._rows.layout.digest())
        self._client = KvloomClient(
            address, api_key=api_key, lookup_seconds=lookup_seconds_max, retries=RetryPolicy(tries_max=1)
        )
        self._memory: NDArray[np.uint8] = np.asarray(primary_kv_view).view(np.uint8)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvloom-tier")
        self._finished: deque[JobResult] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._loads: dict[int, list[OffloadKey]] = {}
        self._lookups = _Lookups(self)

    def stored(self, keys: list[OffloadKey]) -> list[bool]:
        """Which rows the daemon has; none where it does not answer in time."""
        return self._client.exists([self._key(key) for key in keys])

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """What is known of a row; asked for in the background the first time."""
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Begin to store rows that are not stored yet."""
        self._submit(job_metadata, self._store)

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Begin to load rows."""
        self._loads[job_metadata.job_id] = list(job_metadata.keys)
        self._submit(job_metadata, self._load)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """What has ended since the last call; rows that did not come are known to be missing from then on."""
        with self._changed:
            results, self._finished = list(self._finished), deque()
        for result in results:
            asked = self._loads.pop(result.job_id, None)
            if asked is not None and not result.success:
                came = set(result.successful_keys or ())
                self._lookups.mark_miss([key for key in asked if key not in came])
        return results

    def has_pending_work(self) -> bool:
        """Whether a transfer is under way, or has ended and was not asked for."""
        with self._changed:
            return bool(self._running or self._finished)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """No wishes: what is new is stored."""
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """Forget what the request asked."""
        self._lookups.cleanup(req_context.req_id)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Ask for what this step wanted to know."""
        self._lookups.flush()

    def drain_jobs(self) -> None:
        """Wait until no transfer touches the CPU tier's memory."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def shutdown(self) -> None:
        """End all threads; transfers that have not begun are not made."""
        self._lookups.shutdown()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _submit(self, job: TransferJob, work: _Work) -> None:
        with self._changed:
            if self._running >= limits.ENGINE_TIER_JOBS_MAX:
                self._finished.append(JobResult(job.job_id, success=False))
                return
            self._running += 1
        self._pool.submit(self._run, job, work).add_done_callback(lambda _: self._end())

    def _end(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _run(self, job: TransferJob, work: _Work) -> None:
        began = time.monotonic()
        keys = list(job.keys)
        done: list[OffloadKey] = []
        size_bytes = 0
        try:
            for key, size in work(keys, job.chunk_ids):
                done.append(key)
                size_bytes += size
        except KvloomError as error:
            LOGGER.debug("kvloom: a transfer of vLLM's offloading failed: %s", error)
        finally:
            result = JobResult(
                job.job_id,
                success=len(done) == len(keys),
                successful_keys=tuple(done) if job.is_promotion and len(done) < len(keys) else None,
                transfer_time=time.monotonic() - began,
                transfer_bytes=size_bytes,
            )
            with self._changed:
                self._finished.append(result)

    def _store(self, keys: list[OffloadKey], chunk_ids: "NDArray[np.int32]") -> Iterable[tuple[OffloadKey, int]]:
        there = self.stored(keys)
        for key, chunk_id, is_there in zip(keys, chunk_ids.tolist(), there, strict=True):
            if is_there:
                yield key, 0
                continue
            named = self._key(key)
            blob = self._rows.encode([self._memory[chunk_id]], named)
            self._client.put(named, blob)
            yield key, len(blob)

    def _load(self, keys: list[OffloadKey], chunk_ids: "NDArray[np.int32]") -> Iterable[tuple[OffloadKey, int]]:
        for key, chunk_id in zip(keys, chunk_ids.tolist(), strict=True):
            outcome = self._client.get(self._key(key))
            if not isinstance(outcome, Hit) or outcome.value.header.tokens != self._rows.tokens:
                return
            self._rows.decode_into(outcome.value, [self._memory[chunk_id]])
            yield key, len(outcome.value.data)

    def _key(self, key: OffloadKey) -> ContentKey:
        """The name of a row: vLLM's own, of its tokens and all before them, takes the place of the tokens."""
        return content_key(self._identity, np.frombuffer(key, np.uint8), ContextMarker.START)


def _named(config: Any, fingerprint: str | None) -> bytes:
    """The digest of what shapes a row besides its tokens: weights, and how and by how many workers it is laid out."""
    parallel = config.parallel
    described = {
        "dtype": str(config.model.dtype),
        "groups": [[group.tokens_per_block, list(group.layer_names)] for group in config.groups],
        "tokens_per_hash": config.cache.tokens_per_hash,
        "blocks_per_chunk": config.cache.blocks_per_chunk,
        "ranks": [parallel.tp_size, parallel.pp_size, parallel.pcp_size, parallel.dcp_size],
        "layout": [config.kv_cache_layout, config.canonical_layout, config.replicated_layout],
    }
    return opaque_fingerprint(_FORMAT, described, config.model.name, fingerprint)
