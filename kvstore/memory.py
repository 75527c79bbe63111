"""The CPU tier: encoded chunks in a log of anonymous memory segments, read without a copy.

Records are appended to the open segment, which is sealed when the next record does not fit. A large record gets a
segment of its own. A segment goes back to the system when no resident record and no view lies in it
(:mod:`.segment` says how that is known); dead bytes in segments that cannot go yet count as occupied. A part of
the limit is kept for compaction, which moves the live records of the emptiest sealed segment together, so
fragmentation costs memory traffic and not hits.

All state changes happen on the event loop between awaits; only copying runs in worker threads. A tier belongs to one
event loop.
"""

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .. import limits
from ..codec.container import ByteRange
from ..errors import ConfigError, StorageFull, StorageUnavailable
from .eviction import EvictionPolicy
from .expiry import ExpiryIndex
from .key import OwnerId, StorageKey, owner_of
from .outcome import Hit, Miss, Outcome
from .quota import QuotaPolicy
from .segment import Entry, Segment, aligned
from .tier import Buffer, Capacity, Holdings, Record, RecordInfo, Slice, Tier

__all__ = ["MemoryTier"]

_SEGMENTS_MIN = 32
_RESERVE_SHARE = 16
_BOOKKEEPING_BYTES = 768
"""What one resident record costs beside its payload: entry, info, two keys, slots in the index and in the policy."""
_INLINE_COPY_BYTES_MAX = 256 * 1024
_SCAN_RECORDS = 1024


@dataclass(frozen=True, slots=True)
class _Move:
    source_offset: int
    target_offset: int
    size_bytes: int


class MemoryTier(Tier):
    """Volatile memory of at most ``limit_bytes``; a ``get`` returns views that stay valid while referenced."""

    def __init__(self, limit_bytes: int, *, policy: EvictionPolicy | None = None, name: str = "memory") -> None:
        if limit_bytes < limits.MEMORY_TIER_BYTES_MIN:
            raise ConfigError(f"memory tier of {limit_bytes} bytes, at least {limits.MEMORY_TIER_BYTES_MIN} are needed")
        self.name = name
        self.durable = False
        self._limit_bytes = limit_bytes
        self._segment_bytes = min(_page_floor(limit_bytes // _SEGMENTS_MIN), limits.MEMORY_SEGMENT_BYTES_MAX)
        self._usable_bytes = limit_bytes - max(limit_bytes // _RESERVE_SHARE, self._segment_bytes)
        """What new segments may occupy; the rest is for compaction and for dead segments that readers still hold."""
        self._shared_record_bytes_max = self._segment_bytes // 4
        self._policy = QuotaPolicy.around(policy)
        self._policy.quotas.check_fits(name, self._usable_bytes)
        self._expiry = ExpiryIndex()
        self._entries: dict[StorageKey, Entry] = {}
        self._segments: set[Segment] = set()
        self._open: Segment | None = None
        self._mapped_bytes = 0
        self._evictions = 0
        self._room = asyncio.Lock()
        self._closed = False

    async def put(self, record: Record) -> None:
        """Keep ``record`` (its payload is copied in)."""
        self._require_open()
        size_bytes = len(record.payload)
        owner = owner_of(record.storage_key)
        self._require_quota(owner, aligned(size_bytes))
        segment = await self._segment_for(size_bytes, owner)
        offset = segment.reserve(size_bytes)
        try:
            await _copy(segment.writable(offset, size_bytes), record.payload)
            self._require_open()
            self._keep_to_quota(owner, record.storage_key, aligned(size_bytes))
        except BaseException:
            segment.release(size_bytes)
            self._drop_if_dead(segment)
            raise
        self._forget(record.storage_key)
        entry = Entry(record.info, segment, offset)
        self._entries[record.storage_key] = entry
        segment.entries.add(entry)
        self._policy.record_put(record.storage_key, aligned(size_bytes))
        self._expiry.note(record.storage_key, record.expires_at_ms)

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Views of the ranges, without a copy."""
        self._require_open()
        entry = self._entries.get(key)
        if entry is None:
            return Miss()
        self._policy.record_use(key)
        size_bytes = entry.info.payload_bytes
        parts: list[Buffer] = []
        for item in (ByteRange(0, size_bytes),) if ranges is None else ranges:
            start, stop = min(item.start, size_bytes), min(item.stop, size_bytes)
            parts.append(entry.segment.view(entry.offset + start, entry.offset + max(start, stop)))
        return Hit(Slice(entry.info, tuple(parts)), self.name)

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Look the keys up in the index."""
        self._require_open()
        return [key in self._entries for key in keys]

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Look the keys up in the index and in that of expiries."""
        self._require_open()
        return [key in self._entries and not self._expiry.is_expired(key, now_ms) for key in keys]

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """From the index of expiries."""
        self._require_open()
        return self._expiry.due(now_ms, limit)

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Pinned records stay."""
        self._policy.pinned = pinned

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:
        """Tell the policy."""
        for key in keys:
            self._policy.record_hint(key, discard=finished)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What the policy counts: payload bytes, rounded up to where the next record starts."""
        return self._policy.holdings(owner)

    async def delete(self, key: StorageKey) -> bool:
        """Forget a record; its bytes stay until the views of them are gone."""
        self._require_open()
        return self._forget(key)

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """All records, from a snapshot of the keys."""
        self._require_open()
        for index, key in enumerate(list(self._entries)):
            if index % _SCAN_RECORDS == _SCAN_RECORDS - 1:
                await asyncio.sleep(0)
            entry = self._entries.get(key)
            if entry is not None:
                yield entry.info

    def capacity(self) -> Capacity:
        """Bytes appended to segments that still exist (dead and leased ones too) and the bookkeeping."""
        self._reclaim()
        appended_bytes = sum(segment.end_bytes for segment in self._segments)
        used_bytes = appended_bytes + len(self._entries) * _BOOKKEEPING_BYTES
        return Capacity(self._limit_bytes, used_bytes, len(self._entries), self._evictions)

    async def close(self) -> None:
        """Forget everything; memory under a view that is still alive goes when the view goes."""
        self._closed = True
        self._open = None
        for key in list(self._entries):
            self._forget(key)
        for segment in self._segments:
            segment.try_close()
        self._segments.clear()
        self._mapped_bytes = 0

    def _require_quota(self, owner: OwnerId, size_bytes: int) -> None:
        limit_bytes = self._policy.quotas.of(owner).limit_bytes
        if limit_bytes is not None and size_bytes > limit_bytes:
            raise StorageFull(
                f"record takes {size_bytes} bytes, its owner may have {limit_bytes} in the {self.name} tier"
            )

    def _keep_to_quota(self, owner: OwnerId, key: StorageKey, size_bytes: int) -> None:
        """Evict what its owner has too much of once a record of ``size_bytes`` stands under ``key``."""
        while self._policy.excess_bytes(owner, size_bytes - self._policy.size_of(key)) > 0:
            victim = self._policy.own_victim(owner)
            if victim is None:
                raise StorageFull(f"all that the owner of the record has in the {self.name} tier is pinned")
            self._evict(victim)

    async def _segment_for(self, size_bytes: int, owner: OwnerId) -> Segment:
        """A segment with room for one record; nothing is awaited between its return and the reservation."""
        shared = aligned(size_bytes) <= self._shared_record_bytes_max
        need_bytes = self._segment_bytes if shared else _page_ceil(size_bytes)
        if need_bytes + _BOOKKEEPING_BYTES > self._usable_bytes:
            raise StorageFull(
                f"record of {size_bytes} bytes does not fit the {self.name} tier, "
                f"whose largest record is {self._usable_bytes - _BOOKKEEPING_BYTES}"
            )
        segment = self._open_with_room(size_bytes, owner) if shared else None
        if segment is not None:
            return segment
        async with self._room:
            self._require_open()
            if not shared:
                return await self._allocate(need_bytes, owner, dedicated=True)
            segment = self._open_with_room(size_bytes, owner)
            if segment is None:
                self._seal()
                segment = await self._allocate(need_bytes, owner, dedicated=False)
                self._open = segment
            return segment

    def _open_with_room(self, size_bytes: int, owner: OwnerId) -> Segment | None:
        """The open segment if the record fits, after evicting what its bookkeeping alone takes (tiny records)."""
        if self._open is None or self._open.free_bytes < aligned(size_bytes):
            return None
        while self._occupied_bytes() + _BOOKKEEPING_BYTES > self._limit_bytes:
            if self._evict_victim(owner) == 0:
                return None
        return self._open

    def _seal(self) -> bool:
        sealed, self._open = self._open, None
        if sealed is not None:
            self._drop_if_dead(sealed)
        return sealed is not None

    def _occupied_bytes(self) -> int:
        return self._mapped_bytes + len(self._entries) * _BOOKKEEPING_BYTES

    async def _allocate(self, need_bytes: int, owner: OwnerId, *, dedicated: bool) -> Segment:
        """A new segment, or a compacted one with at least a quarter free, after evicting as much as that takes.

        Victims are the policy's, until twice the need has gone without progress: then fragmentation is what is in
        the way, and the emptiest segment goes whole.
        """
        evicted_bytes = 0
        while True:
            self._reclaim()
            if self._occupied_bytes() + need_bytes <= self._usable_bytes:
                return self._map_segment(need_bytes, dedicated=dedicated)
            source = None if dedicated else self._sparse_segment()
            if source is not None and self._occupied_bytes() + self._segment_bytes <= self._limit_bytes:
                return await self._compact(source)
            by_policy = evicted_bytes < 2 * need_bytes
            freed_bytes = self._evict_victim(owner) if by_policy else self._evict_emptiest_segment(owner)
            if freed_bytes == 0 and not self._seal():
                raise StorageFull(
                    f"{self.name} tier has {self._occupied_bytes()} of {self._limit_bytes} "
                    "bytes in use by readers, or pinned"
                )
            evicted_bytes += freed_bytes

    def _map_segment(self, size_bytes: int, *, dedicated: bool) -> Segment:
        try:
            segment = Segment(size_bytes, dedicated=dedicated)
        except OSError as error:
            raise StorageFull(f"{self.name} tier: the system refuses {size_bytes} bytes: {error.strerror}") from error
        self._segments.add(segment)
        self._mapped_bytes += size_bytes
        return segment

    def _sparse_segment(self) -> Segment | None:
        """The emptiest sealed segment of which at least a quarter is dead and something is resident."""
        candidates = [
            segment
            for segment in self._segments
            if segment is not self._open
            and not segment.dedicated
            and segment.entries
            and 4 * segment.live_bytes <= 3 * self._segment_bytes
        ]
        return min(candidates, key=lambda segment: segment.live_bytes, default=None)

    async def _compact(self, source: Segment) -> Segment:
        """Move what is resident in ``source`` to a new segment, which uses the spare part of the limit.

        Readers keep reading the old place meanwhile; what is deleted while it is copied stays deleted.
        """
        target = self._map_segment(self._segment_bytes, dedicated=False)
        entries = list(source.entries)
        places = [target.reserve(entry.info.payload_bytes) for entry in entries]
        moves = [
            _Move(entry.offset, place, entry.info.payload_bytes) for entry, place in zip(entries, places, strict=True)
        ]
        try:
            await asyncio.to_thread(
                _copy_moves, source.view(0, source.end_bytes), target.writable(0, target.end_bytes), moves
            )
            self._require_open()
        except BaseException:
            target.live_bytes = 0
            self._drop_if_dead(target)
            raise
        for entry, place in zip(entries, places, strict=True):
            size_bytes = entry.info.payload_bytes
            if entry not in source.entries:
                target.release(size_bytes)
                continue
            source.entries.remove(entry)
            source.release(size_bytes)
            entry.segment, entry.offset = target, place
            target.entries.add(entry)
        self._drop_if_dead(source)
        return target

    def _evict_victim(self, owner: OwnerId) -> int:
        key = self._policy.victim(owner)
        return 0 if key is None else self._evict(key)

    def _evict_emptiest_segment(self, owner: OwnerId) -> int:
        """Evict what may go of the emptiest segment of which anything may."""
        for segment in sorted(self._segments, key=lambda item: item.live_bytes):
            keys = [entry.info.storage_key for entry in segment.entries]
            freed_bytes = sum(self._evict(key) for key in keys if self._policy.may_evict(key, owner))
            if freed_bytes:
                return freed_bytes
        return 0

    def _evict(self, key: StorageKey) -> int:
        self._evictions += 1
        size_bytes = self._policy.size_of(key)
        self._policy.record_evict(key)
        self._forget(key)
        return size_bytes + _BOOKKEEPING_BYTES

    def _forget(self, key: StorageKey) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._policy.record_delete(key)
        self._expiry.forget(key)
        entry.segment.entries.remove(entry)
        entry.segment.release(entry.info.payload_bytes)
        self._drop_if_dead(entry.segment)
        return True

    def _drop_if_dead(self, segment: Segment) -> None:
        if segment.live_bytes == 0 and segment is not self._open and segment in self._segments and segment.try_close():
            self._segments.discard(segment)
            self._mapped_bytes -= segment.size_bytes

    def _reclaim(self) -> None:
        for segment in [item for item in self._segments if item.live_bytes == 0]:
            self._drop_if_dead(segment)

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnavailable(f"{self.name} tier is closed")


async def _copy(target: memoryview, source: Buffer) -> None:
    if len(source) <= _INLINE_COPY_BYTES_MAX:
        with target:
            target[:] = source
    else:
        await asyncio.to_thread(_copy_blocking, target, source)


def _copy_moves(source: memoryview, target: memoryview, moves: Sequence[_Move]) -> None:
    with source, target:
        for move in moves:
            with source[move.source_offset : move.source_offset + move.size_bytes] as origin:
                _copy_blocking(target[move.target_offset : move.target_offset + move.size_bytes], origin)


def _copy_blocking(target: memoryview, source: Buffer) -> None:
    """Copy through NumPy, which lets other threads run meanwhile; a slice assignment does not.

    ``target`` is released here: a worker thread may hold its arguments a little longer than its caller waits.
    """
    with target:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def _page_floor(size_bytes: int) -> int:
    return size_bytes // mmap.PAGESIZE * mmap.PAGESIZE


def _page_ceil(size_bytes: int) -> int:
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
