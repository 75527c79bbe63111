"""Copies records into tiers that lack them, after a use: in the background, bounded, once per key at a time.

Upwards after a hit in a slower tier, and before a hit where somebody said that it will come (:meth:`Promoter.fetch`);
into a disk tier at the second use, where it takes no others (:mod:`.admission`). Whatever was read whole for a caller,
and verified, is not read again. What is read is read without a lock, so that nobody waits for a slow tier; what is
written is written under the key's lock, and only if the key has not been changed since the reading began and its owner
has not been erased meanwhile: nothing deleted comes back.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ... import limits
from ...errors import KvloomError
from ..key import OwnerId, StorageKey, owner_of
from ..key_locks import KeyLocks
from ..outcome import Hit
from ..tier import Buffer, RecordInfo, Tier
from .change_log import ChangeLog
from .chunk_reader import ChunkRead, Copy, read_whole
from .stats import StoreObserver

__all__ = ["Promoter"]

_SHARE_MAX = 4
"""A record that would take more than a quarter of the faster tier stays where it is."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """A verified record, in parts."""

    info: RecordInfo
    parts: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """Where to look for the record, in order, and for each such place the tiers that should have it too."""

    key: StorageKey
    sources: tuple[Copy, ...]
    targets: tuple[tuple[Tier, ...], ...]
    mark: int
    whole: _Whole | None


class Promoter:
    """A bounded queue and the workers that empty it; what finds no room in the queue is left to a later use."""

    def __init__(
        self,
        locks: KeyLocks,
        changes: ChangeLog,
        observer: StoreObserver,
        count: Callable[[Tier], None],
        is_erased: Callable[[RecordInfo], bool],
    ) -> None:
        self._locks = locks
        self._changes = changes
        self._is_erased = is_erased
        self._observer = observer
        self._count = count
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(limits.PROMOTIONS_QUEUED_MAX)
        self._queued: set[StorageKey] = set()
        self._held_bytes = 0
        self.dropped = 0
        """Offers not taken up because too many were waiting."""

    @property
    def unfinished(self) -> int:
        """Keys that are queued or being promoted."""
        return len(self._queued)

    def offer(self, copy: Copy, found: ChunkRead, targets: Sequence[Tier], mark: int) -> bool:
        """Queue copying to those ``targets`` that it fits what ``found`` was read from, at ``mark`` of the change log.

        Never waits; whether it is queued now.
        """
        size_bytes = found.info.payload_bytes
        fitting = tuple(tier for tier in targets if _fits(size_bytes, tier))
        if not fitting:
            return False
        whole = None
        if found.is_whole and found.is_verified and self._held_bytes + size_bytes <= limits.PROMOTION_BYTES_MAX:
            whole = _Whole(found.info, found.parts)
        return self._put(_Job(copy.storage_key, (copy,), (fitting,), mark, whole))

    def fetch(self, key: StorageKey, sources: Iterable[tuple[Copy, tuple[Tier, ...]]]) -> bool:
        """Queue copying ``key`` from the first of ``sources`` that has it to the tiers named with that one."""
        pairs = tuple(sources)
        mark = self._changes.mark()
        return self._put(_Job(key, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), mark, None))

    async def run(self) -> None:
        """Promote until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(limits.PROMOTIONS_AT_ONCE_MAX):
                group.create_task(self._work())

    async def settled(self) -> None:
        """Wait until everything offered so far is promoted or given up."""
        await self._queue.join()

    async def placed(self, owner: OwnerId) -> None:
        """Wait until nothing of ``owner`` is being written that was found unchanged before now."""
        for key in [key for key in self._queued if owner_of(key) == owner]:
            async with self._locks.hold(key):
                pass

    def _put(self, job: _Job) -> bool:
        if job.key in self._queued:
            return True
        if self._queue.full():
            self.dropped += 1
            return False
        self._queued.add(job.key)
        self._held_bytes += _held(job)
        self._queue.put_nowait(job)
        return True

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            try:
                await self._promote(job)
            finally:
                self._queued.discard(job.key)
                self._held_bytes -= _held(job)
                self._queue.task_done()

    async def _promote(self, job: _Job) -> None:
        for copy, targets in zip(job.sources, job.targets, strict=True):
            try:
                lacking = [tier for tier in targets if not (await tier.contains_many([job.key]))[0]]
                whole = (job.whole or await _read(copy)) if lacking else None
            except KvloomError as error:
                self._observer.on_tier_error(copy.tier, "promotion", str(error))
                continue
            if whole is None and lacking:
                continue
            if whole is not None:
                await self._place(whole, lacking, job.mark)
            return

    async def _place(self, whole: _Whole, targets: Sequence[Tier], mark: int) -> None:
        info = whole.info
        payload = whole.parts[0] if len(whole.parts) == 1 else await asyncio.to_thread(_joined, whole.parts)
        record = info.with_payload(payload)
        async with self._locks.hold(info.storage_key):
            for tier in targets:
                gone = self._changes.changed_since(info.storage_key, mark) or self._is_erased(info)
                if gone or not _fits(len(payload), tier):
                    continue
                try:
                    await tier.put(record)
                except KvloomError as error:
                    self._observer.on_tier_error(tier.name, "promotion", str(error))
                else:
                    self._count(tier)
                    self._observer.on_stored(tier.name, record.info)
                    self._observer.on_promotion(tier.name, info.payload_bytes)


async def _read(copy: Copy) -> _Whole | None:
    found = await read_whole(copy)
    return _Whole(found.value.info, found.value.parts) if isinstance(found, Hit) else None


def _joined(parts: Sequence[Buffer]) -> bytes:
    return b"".join(parts)


def _fits(size_bytes: int, tier: Tier) -> bool:
    return size_bytes <= tier.capacity().limit_bytes // _SHARE_MAX


def _held(job: _Job) -> int:
    return job.whole.info.payload_bytes if job.whole is not None else 0
