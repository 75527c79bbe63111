"""The CPU tier: encoded chunks in a log of memory segments, one log per owner, read without a copy.

Records are appended to their owner's open segment, which is sealed when the next record does not fit. A large record
gets a segment of its own. Segments are shared memory that a local client may map (:mod:`.segment`), so no two owners
share one, and those of an owner grow with what it keeps. A segment in which no resident record and no view lies is
rewound for its owner's next records or goes back to the system; dead bytes in segments that cannot go yet count as
occupied. A part of the limit is kept for compaction, which moves the live records of an owner's emptiest sealed
segments together, so fragmentation costs memory traffic and not hits.

All state changes happen on the event loop between awaits; only copying runs in worker threads. A tier belongs to one
event loop.
"""

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from ... import limits
from ...codec.container import ByteRange
from ...errors import ConfigError, StorageFull, StorageUnavailable
from ..eviction import EvictionPolicy
from ..expiry import ExpiryIndex
from ..key import StorageKey
from ..outcome import Hit, Miss, Outcome
from ..quota import QuotaPolicy
from ..sharing import Lease
from ..tier import Capacity, Holdings, OwnerId, Record, RecordInfo, Slice, Tier
from .copying import Move, copy_in, copy_moves
from .resident import HEADER_BYTES, Place, RecordTable, footprint, read_header, write_header
from .segment import Segment
from .segment_pool import SegmentPool

__all__ = ["BOOKKEEPING_BYTES", "MemoryTier"]

_SEGMENTS_MIN: Final = 32
_SEGMENTS_MAX: Final = 1024
_RESERVE_SHARE: Final = 16
BOOKKEEPING_BYTES: Final = 192
"""What a resident record costs beside its bytes in a segment and the policy's (:attr:`EvictionPolicy.resident_bytes`):
its key, and its slots in table and index.

Measured with ``bench/resident.py``, with room for tables that have just grown.
"""
_SCAN_RECORDS: Final = 1024


class MemoryTier(Tier):
    """Volatile memory of at most ``limit_bytes``; a ``get`` returns views that stay valid while referenced."""

    sums_words = True

    def __init__(self, limit_bytes: int, *, policy: EvictionPolicy | None = None, name: str = "memory") -> None:
        if limit_bytes < limits.MEMORY_TIER_BYTES_MIN:
            raise ConfigError(f"memory tier of {limit_bytes} bytes, at least {limits.MEMORY_TIER_BYTES_MIN} are needed")
        self.name = name
        self.durable = False
        self._limit_bytes = limit_bytes
        most_bytes = max(limits.MEMORY_SEGMENT_BYTES_MAX, limit_bytes // _SEGMENTS_MAX)
        self._segment_bytes = _page_floor(min(limit_bytes // _SEGMENTS_MIN, most_bytes))
        reserve_bytes = max(limit_bytes // _RESERVE_SHARE, self._segment_bytes)
        self._usable_bytes = limit_bytes - reserve_bytes
        """What new segments may occupy; the rest is for compaction and for dead segments that readers still hold."""
        self._shared_footprint_max = self._segment_bytes // 4
        self._policy = QuotaPolicy.around(policy)
        self._bookkeeping_bytes = BOOKKEEPING_BYTES + self._policy.resident_bytes
        self._policy.quotas.check_fits(name, self._usable_bytes)
        self._expiry = ExpiryIndex()
        self._table = RecordTable()
        self._pool = SegmentPool(self._segment_bytes, spare_bytes_max=reserve_bytes)
        self._evictions = 0
        self._room = asyncio.Lock()
        self._closed = False

    async def put(self, record: Record) -> None:
        """Keep ``record`` (its payload is copied in)."""
        self._require_open()
        size_bytes = footprint(len(record.payload))
        self._require_quota(record.owner, size_bytes)
        segment = await self._segment_for(record, size_bytes)
        offset = segment.reserve(size_bytes)
        write_header(segment, offset, record)
        try:
            total = await copy_in(segment.writable(offset + HEADER_BYTES, len(record.payload)), record.payload)
            self._require_open()
            self._keep_to_quota(record, size_bytes)
            self._vacate(record.storage_key)
            slot = self._table.add(record.storage_key, Place(segment.number, offset), record.attributes)
        except BaseException:
            segment.release(size_bytes)
            self._pool.give_back_if_dead(segment)
            raise
        write_header(segment, offset, record, slot=slot, total=total)
        self._policy.record_put(record.storage_key, size_bytes, self._table.attributes_of(slot))
        self._expiry.note(record.storage_key, record.expires_at_ms)

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Views of the ranges, without a copy; those of all of the payload come with its word sum."""
        slot = self._used(key)
        if slot is None:
            return Miss()
        place = self._table.place_of(slot)
        segment = self._pool.segments[place.segment]
        header = read_header(segment, place.offset)
        info = header.info(key, segment, self._table.attributes_of(slot))
        start = place.offset + HEADER_BYTES
        payload = segment.view(start, start + info.payload_bytes)
        if ranges is None:
            return Hit(Slice(info, (payload,), header.word_sum), self.name)
        stops = [min(item.stop, info.payload_bytes) for item in ranges]
        parts = tuple(payload[min(item.start, stop) : stop] for item, stop in zip(ranges, stops, strict=True))
        return Hit(Slice(info, parts), self.name)

    def lease(self, key: StorageKey) -> Lease | None:
        """Lend a record where it lies; None, too, where the system has no memory that can be shared."""
        slot = self._used(key)
        if slot is None:
            return None
        place = self._table.place_of(slot)
        segment = self._pool.segments[place.segment]
        if segment.descriptor is None:
            return None
        header = read_header(segment, place.offset)
        start, size_bytes = place.offset + HEADER_BYTES, header.payload_bytes
        payload = segment.view(start, start + size_bytes)
        return Lease(segment, start, header.content_key, size_bytes, header.expires_at_ms, header.word_sum, payload)

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Look the keys up in the index."""
        self._require_open()
        return self._table.present(keys)

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Look the keys up in the index and in that of expiries."""
        self._require_open()
        found = self._table.present(keys)
        if not len(self._expiry):
            return found
        return [here and not self._expiry.is_expired(key, now_ms) for here, key in zip(found, keys, strict=True)]

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """From the index of expiries."""
        self._require_open()
        return self._expiry.due(now_ms, limit)

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Pinned records stay."""
        self._policy.pinned = pinned

    def watch(self, evicted: Callable[[StorageKey], None]) -> None:
        """Tell the policy."""
        self._policy.evicted = evicted

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:
        """Tell the policy."""
        for key in keys:
            self._policy.record_hint(key, discard=finished)

    def touch(self, keys: Sequence[StorageKey]) -> None:
        """Count each as used."""
        for key in keys:
            self._policy.record_use(key)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What the policy counts: records with their headers in the segments."""
        return self._policy.holdings(owner)

    async def delete(self, key: StorageKey) -> bool:
        """Forget a record; its bytes stay until the views of them are gone."""
        self._require_open()
        self._policy.record_delete(key)
        return self._vacate(key)

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """All records, from a snapshot of the keys."""
        self._require_open()
        for index, key in enumerate(self._table.keys()):
            if index % _SCAN_RECORDS == _SCAN_RECORDS - 1:
                await asyncio.sleep(0)
            slot = self._table.slot_of(key)
            if slot is not None:
                place = self._table.place_of(slot)
                segment = self._pool.segments[place.segment]
                yield read_header(segment, place.offset).info(key, segment, self._table.attributes_of(slot))

    def capacity(self) -> Capacity:
        """Bytes appended to segments that still exist (dead and leased ones too) and the bookkeeping."""
        self._pool.reclaim()
        used_bytes = self._pool.appended_bytes + len(self._table) * self._bookkeeping_bytes
        return Capacity(self._limit_bytes, used_bytes, len(self._table), self._evictions, self._policy.name)

    async def close(self) -> None:
        """Forget everything; memory under a view that is still alive goes when the view goes."""
        self._closed = True
        for key in self._table.keys():  # noqa: SIM118 - a snapshot, not a view
            self._policy.record_delete(key)
            self._vacate(key)
        self._pool.close()

    def _used(self, key: StorageKey) -> int | None:
        """The slot of a record that is used now."""
        self._require_open()
        slot = self._table.slot_of(key)
        if slot is None:
            return None
        self._policy.record_use(key)
        return slot

    def _require_quota(self, owner: OwnerId, size_bytes: int) -> None:
        limit_bytes = self._policy.quotas.of(owner).limit_bytes
        if limit_bytes is not None and size_bytes > limit_bytes:
            raise StorageFull(
                f"record takes {size_bytes} bytes, its owner may have {limit_bytes} in the {self.name} tier"
            )

    def _keep_to_quota(self, record: Record, size_bytes: int) -> None:
        """Evict what its owner has too much of once ``record`` stands where it is to."""
        while self._policy.excess_bytes(record.owner, size_bytes - self._policy.size_of(record.storage_key)) > 0:
            victim = self._policy.own_victim(record.owner)
            if victim is None:
                raise StorageFull(f"all that the owner of the record has in the {self.name} tier is pinned")
            self._evict(victim)

    async def _segment_for(self, record: Record, size_bytes: int) -> Segment:
        """A segment with room for one record; nothing is awaited between its return and the reservation."""
        shared = size_bytes <= self._shared_footprint_max
        most_bytes = self._segment_bytes if shared else _page_ceil(size_bytes)
        if most_bytes + self._bookkeeping_bytes > self._usable_bytes:
            raise StorageFull(
                f"record of {len(record.payload)} bytes does not fit the {self.name} tier, "
                f"whose largest record is {self._usable_bytes - self._bookkeeping_bytes - HEADER_BYTES}"
            )
        segment = self._open_with_room(record, size_bytes) if shared else None
        if segment is not None:
            return segment
        async with self._room:
            self._require_open()
            if not shared:
                return await self._allocate(record, size_bytes, most_bytes, dedicated=True)
            segment = self._open_with_room(record, size_bytes)
            if segment is None:
                self._pool.seal(record.owner)
                grown_bytes = self._pool.next_size(record.owner, size_bytes)
                segment = await self._allocate(record, size_bytes, grown_bytes, dedicated=False)
                self._pool.open[record.owner] = segment
            return segment

    def _open_with_room(self, record: Record, size_bytes: int) -> Segment | None:
        """The open segment if the record fits, after evicting what its bookkeeping alone takes (tiny records)."""
        segment = self._pool.open.get(record.owner)
        if segment is None or segment.free_bytes < size_bytes:
            return None
        while self._occupied_bytes() + self._bookkeeping_bytes > self._limit_bytes:
            if not self._pool.drop_spare() and self._evict_victim(record.owner) == 0:
                return None
        return segment

    def _occupied_bytes(self) -> int:
        return self._pool.mapped_bytes + len(self._table) * self._bookkeeping_bytes

    async def _allocate(self, record: Record, size_bytes: int, need_bytes: int, *, dedicated: bool) -> Segment:
        """A segment of ``need_bytes``, or a used one with room for ``size_bytes``, after evicting what that takes.

        Victims are the policy's, until twice the need has gone without progress: then fragmentation is what is in
        the way, and the emptiest segment goes whole. Where compaction leaves a segment that is live, it is tried
        again only once something was evicted: puts that are still copying do not move.
        """
        evicted_bytes = 0
        stays = False
        while True:
            self._pool.reclaim()
            if self._occupied_bytes() <= self._usable_bytes:
                segment = self._pool.take_spare(record.owner, need_bytes, dedicated=dedicated)
                if segment is not None:
                    return segment
            if self._occupied_bytes() + need_bytes <= self._usable_bytes:
                return self._map_segment(record.owner, need_bytes, dedicated=dedicated)
            if self._pool.drop_spare():
                continue
            sources = self._pool.sparse_segments()
            follows = not dedicated and bool(sources) and sources[0].owner == record.owner
            wanted_bytes = size_bytes if follows and self._occupied_bytes() <= self._usable_bytes else 0
            target_bytes = self._pool.compacted_size(sources, wanted_bytes)
            gains = wanted_bytes > 0 or target_bytes < sum(segment.size_bytes for segment in sources)
            if sources and gains and not stays and self._occupied_bytes() + target_bytes <= self._limit_bytes:
                target = await self._compact(sources, target_bytes)
                if wanted_bytes:
                    return target
                self._pool.give_back_if_dead(target)
                stays = any(source.live_bytes for source in sources)
                continue
            if evicted_bytes < 2 * need_bytes:
                freed_bytes = self._evict_victim(record.owner)
            else:
                freed_bytes = self._evict_emptiest_segment(record)
            stays = False
            if freed_bytes == 0:
                raise StorageFull(
                    f"{self.name} tier has {self._occupied_bytes()} of {self._limit_bytes} "
                    "bytes in use by readers, or pinned"
                )
            evicted_bytes += freed_bytes

    def _map_segment(self, owner: OwnerId, size_bytes: int, *, dedicated: bool) -> Segment:
        try:
            return self._pool.map(owner, size_bytes, dedicated=dedicated)
        except OSError as error:
            raise StorageFull(f"{self.name} tier: the system refuses {size_bytes} bytes: {error.strerror}") from error

    async def _compact(self, sources: Sequence[Segment], target_bytes: int) -> Segment:
        """Move what is resident in ``sources``, of one owner, to a new segment, which uses the spare part of the limit.

        Readers keep reading the old places meanwhile; what is deleted while it is copied stays deleted.
        """
        target = self._map_segment(sources[0].owner, target_bytes, dedicated=False)
        moves: list[Move] = []
        for source in sources:
            for place, header in self._table.walk(source):
                size_bytes = footprint(header.payload_bytes)
                to = Place(target.number, target.reserve(size_bytes))
                moves.append(Move(self._table.key_of(header.slot), place, to, size_bytes))
        views = {source.number: source.view(0, source.end_bytes) for source in sources}
        try:
            await asyncio.to_thread(copy_moves, views, target.writable(0, target.end_bytes), moves)
            self._require_open()
        except BaseException:
            target.live_bytes = 0
            self._pool.give_back_if_dead(target)
            raise
        views.clear()
        for move in moves:
            slot = self._table.slot_of(move.key)
            if slot is None or self._table.place_of(slot) != move.source:
                target.release(move.size_bytes)
                continue
            source = self._pool.segments[move.source.segment]
            self._table.move(slot, move.target)
            source.release(move.size_bytes)
            source.leave(move.source.offset + HEADER_BYTES)
        for source in sources:
            self._pool.give_back_if_dead(source)
        return target

    def _evict_victim(self, owner: OwnerId) -> int:
        key = self._policy.victim(owner)
        return 0 if key is None else self._evict(key)

    def _evict_emptiest_segment(self, record: Record) -> int:
        """Evict what may go of the emptiest segment of which anything may; an owner's own come first."""
        occupied = [segment for segment in self._pool.segments.values() if segment.live_bytes]
        for segment in sorted(occupied, key=lambda item: (item.owner != record.owner, item.live_bytes)):
            keys = [self._table.key_of(header.slot) for _, header in self._table.walk(segment)]
            freed_bytes = sum(self._evict(key) for key in keys if self._policy.may_evict(key, record.owner))
            if freed_bytes:
                return freed_bytes
        return 0

    def _evict(self, key: StorageKey) -> int:
        self._evictions += 1
        size_bytes = self._policy.size_of(key)
        self._policy.record_evict(key)
        self._vacate(key)
        return size_bytes + self._bookkeeping_bytes

    def _vacate(self, key: StorageKey) -> bool:
        """Take a record out of everything but the policy; whether there was one."""
        slot = self._table.slot_of(key)
        if slot is None:
            return False
        place = self._table.place_of(slot)
        segment = self._pool.segments[place.segment]
        self._expiry.forget(key)
        self._table.remove(key)
        segment.release(footprint(read_header(segment, place.offset).payload_bytes))
        segment.leave(place.offset + HEADER_BYTES)
        self._pool.give_back_if_dead(segment)
        return True

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnavailable(f"{self.name} tier is closed")


def _page_floor(size_bytes: int) -> int:
    return size_bytes // mmap.PAGESIZE * mmap.PAGESIZE


def _page_ceil(size_bytes: int) -> int:
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
