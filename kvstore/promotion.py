"""Copies records into faster tiers after a hit in a slower one: in the background, bounded, once per key at a time."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import limits
from ..errors import KvloomError
from .chunk_reader import Copy, read_whole
from .key import StorageKey
from .key_locks import KeyLocks
from .outcome import Hit
from .store_stats import StoreObserver
from .tier import Record, Tier

__all__ = ["Promoter"]

_SHARE_MAX = 4
"""A record that would take more than a quarter of the faster tier stays where it is."""


@dataclass(frozen=True, slots=True)
class _Job:
    copy: Copy
    targets: tuple[Tier, ...]


class Promoter:
    """A bounded queue and the worker that empties it; what finds no room in the queue is promoted by a later hit."""

    def __init__(self, locks: KeyLocks, observer: StoreObserver, count: Callable[[Tier], None]) -> None:
        self._locks = locks
        self._observer = observer
        self._count = count
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(limits.PROMOTIONS_QUEUED_MAX)
        self._queued: set[StorageKey] = set()

    def offer(self, copy: Copy, record_bytes: int, targets: Sequence[Tier]) -> None:
        """Queue the promotion of ``copy`` to those ``targets`` that it fits. Never waits."""
        fitting = tuple(tier for tier in targets if record_bytes <= tier.capacity().limit_bytes // _SHARE_MAX)
        if not fitting or copy.storage_key in self._queued or self._queue.full():
            return
        self._queued.add(copy.storage_key)
        self._queue.put_nowait(_Job(copy, fitting))

    async def run(self) -> None:
        """Promote until cancelled."""
        while True:
            job = await self._queue.get()
            try:
                await self._promote(job)
            finally:
                self._queued.discard(job.copy.storage_key)
                self._queue.task_done()

    async def settled(self) -> None:
        """Wait until everything offered so far is promoted or given up."""
        await self._queue.join()

    async def _promote(self, job: _Job) -> None:
        """Under the key's lock, so that nothing deleted or replaced meanwhile comes back."""
        key = job.copy.storage_key
        async with self._locks.hold(key):
            try:
                targets = [tier for tier in job.targets if not (await tier.contains_many([key]))[0]]
                found = await read_whole(job.copy) if targets else None
            except KvloomError as error:
                self._observer.on_tier_error(job.copy.tier, "promotion", str(error))
                return
            if not isinstance(found, Hit):
                return
            info, payload = found.value.info, found.value.parts[0]
            record = Record(
                info.storage_key, info.content_key, payload, info.stored_at_ms, info.owner, info.expires_at_ms
            )
            for tier in targets:
                try:
                    await tier.put(record)
                except KvloomError as error:
                    self._observer.on_tier_error(tier.name, "promotion", str(error))
                else:
                    self._count(tier)
                    self._observer.on_promotion(tier.name, info.payload_bytes)
