"""Which chunk has which pages of a pool, who reads them, and who gives way. Bookkeeping only: no memory is touched.

A page is free, being filled, resident, or on its way out. What is being filled or leased is never a victim; what goes
while somebody reads it leaves its name at once and its pages when the last reader is done, which on a GPU is when the
device has passed the mark made at the release. Whose turn it is to go say the policies and quotas of every other tier.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ...codec.level import Level
from ...errors import InvalidRequest, StorageFull
from ..key import ContentKey, OwnerId, StorageKey
from ..quota import QuotaPolicy
from ..tier import Holdings
from .arrays import Mark
from .journal import Changes, Journal
from .lease import PoolLease
from .pages import FreePages, PageTable
from .source import ChunkWanted

__all__ = ["Chunk", "Residency", "ResidencyCounts"]

_MARKS_KEPT_MAX: Final = 8


@dataclass(slots=True, eq=False)
class Chunk:
    """A chunk and its pages. ``original`` says that its keys were rounded but once: decoded or computed, not moved."""

    content_key: ContentKey
    level: Level
    owner: OwnerId
    first_position: int
    tokens: int
    pages: PageTable
    place: StorageKey
    family: bytes
    original: bool
    visible: bool = False
    leases: int = 0
    marks: deque[Mark] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class ResidencyCounts:
    """What is in a pool now, and what has happened since it was made. ``leased`` counts chunks, not leases."""

    pages: int
    pages_free: int
    chunks: int
    leased: int
    hits: int
    evictions: int
    leases_dropped: int


class Residency:
    """The books of a pool of ``pages``. Thread-safe; no method waits for anything but the lock.

    ``mark`` makes a mark in the calling thread's stream, ``settle`` waits for the whole device.
    """

    def __init__(
        self, pages: int, *, page_bytes: int, policy: QuotaPolicy, mark: Callable[[], Mark], settle: Callable[[], None]
    ) -> None:
        self.pages, self._page_bytes = pages, page_bytes
        self._free = FreePages(pages)
        self._policy = policy
        policy.pinned = self._is_pinned
        policy.quotas.check_fits("gpu", pages * page_bytes)
        self._mark, self._settle = mark, settle
        self._chunks: dict[StorageKey, Chunk] = {}
        self._families: dict[bytes, dict[int, Chunk]] = {}
        """Visible chunks by position."""
        self._leaving: list[Chunk] = []
        self._forgotten: deque[Chunk] = deque()
        """Chunks of leases that were collected; filled by the collector, at any point of any thread."""
        self._journals: dict[OwnerId, Journal] = {}
        self._hits = self._evictions = self._leases_dropped = 0
        self._lock = threading.Lock()

    def find(self, wanted: ChunkWanted) -> PoolLease | None:
        """Lease a resident chunk, at the position wanted; where none is wanted, at the one it was computed for."""
        with self._lock:
            chunk = self._find(wanted)
            if chunk is None:
                return None
            self._hits += 1
            self._policy.record_use(chunk.place)
            journal = self._journals.get(chunk.owner)
            if journal is not None:
                journal.record_used(chunk.content_key)
            return self._lease(chunk)

    def find_at(self, wanted: ChunkWanted, first_position: int) -> PoolLease | None:
        """Lease the chunk if it is resident at that position; not a use."""
        with self._lock:
            chunk = self._families.get(wanted.family, {}).get(first_position)
            return None if chunk is None else self._lease(chunk)

    def find_original(self, wanted: ChunkWanted) -> PoolLease | None:
        """Lease a decoded chunk of the family, at whatever position: what another position can be made from."""
        with self._lock:
            chunk = self._original_of(wanted.family)
            return None if chunk is None else self._lease(chunk)

    def holds(self, wanted: ChunkWanted) -> bool:
        """Whether :meth:`find` would find it; not a use."""
        with self._lock:
            return self._find(wanted) is not None

    def share(self, lease: PoolLease) -> PoolLease:
        """Another lease of the same chunk."""
        with self._lock:
            return self._lease(lease.chunk)

    def reserve(self, wanted: ChunkWanted, first_position: int, tokens: int, *, pages: int, original: bool) -> Chunk:
        """Pages for a chunk that is about to be filled, after evicting what that takes; it cannot be found yet.

        To be ended by :meth:`commit` or :meth:`abandon`; one at a time per chunk and position. Raises
        :class:`StorageFull` where the chunk is larger than the pool or its owner's quota, or all that might go is
        being read or is guaranteed to others.
        """
        size_bytes, owner = pages * self._page_bytes, wanted.owner
        place = wanted.place(first_position)
        with self._lock:
            self._collect()
            if place in self._chunks:
                raise InvalidRequest(f"chunk {wanted.content_key.hex()[:16]}… is in the pool already, or being filled")
            limit_bytes = self._policy.quotas.of(owner).limit_bytes
            for what, most_bytes in (("the pool", self.pages * self._page_bytes), ("its owner's quota", limit_bytes)):
                if most_bytes is not None and size_bytes > most_bytes:
                    raise StorageFull(f"chunk takes {size_bytes} bytes of pages, {what} has {most_bytes}")
            while self._policy.excess_bytes(owner, size_bytes) > 0:
                self._evict(self._policy.own_victim(owner), "the owner is at its limit")
            while self._free.count < pages:
                self._evict(self._policy.victim(owner), f"{pages} pages are needed and {self._free.count} are free")
            chunk = Chunk(
                content_key=wanted.content_key,
                level=wanted.level,
                owner=owner,
                first_position=first_position,
                tokens=tokens,
                pages=self._free.take(pages),
                place=place,
                family=wanted.family,
                original=original,
            )
            self._chunks[place] = chunk
            self._policy.record_put(place, size_bytes, wanted.attributes)
            return chunk

    def commit(self, chunk: Chunk) -> PoolLease:
        """The pages are filled: from now on the chunk can be found. The first lease of it is the caller's."""
        with self._lock:
            chunk.visible = True
            self._families.setdefault(chunk.family, {})[chunk.first_position] = chunk
            journal = self._journals.get(chunk.owner)
            if journal is not None:
                journal.record_added(chunk.content_key)
            return self._lease(chunk)

    def abandon(self, chunk: Chunk) -> None:
        """The pages were not filled, and nothing writes to them any more."""
        with self._lock:
            del self._chunks[chunk.place]
            self._policy.record_delete(chunk.place)
            self._free.give_back(chunk.pages)

    def forget(self, wanted: ChunkWanted) -> bool:
        """Forget a chunk at the position wanted, or at all; whether there was one. Who reads it may go on."""
        with self._lock:
            family = self._families.get(wanted.family, {})
            positions = list(family) if wanted.first_position is None else [wanted.first_position]
            found = [family[position] for position in positions if position in family]
            for chunk in found:
                self._policy.record_delete(chunk.place)
                self._remove(chunk)
            return bool(found)

    def forget_owner(self, owner: OwnerId) -> int:
        """Forget all that is an owner's; how many chunks that was. What is being filled just now is not among them."""
        with self._lock:
            found = [chunk for chunk in self._chunks.values() if chunk.owner == owner and chunk.visible]
            for chunk in found:
                self._policy.record_delete(chunk.place)
                self._remove(chunk)
            return len(found)

    def hint(self, wanted: ChunkWanted, *, finished: bool) -> None:
        """Tell the policy that a chunk will not be used again, or will."""
        with self._lock:
            for chunk in self._families.get(wanted.family, {}).values():
                if wanted.first_position in (None, chunk.first_position):
                    self._policy.record_hint(chunk.place, discard=finished)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What an owner has here, in bytes of whole pages."""
        with self._lock:
            return self._policy.holdings(owner)

    def watch(self, owner: OwnerId) -> None:
        """Keep a journal of what comes and goes of an owner's."""
        with self._lock:
            self._journals.setdefault(owner, Journal())

    def take_changes(self, owner: OwnerId, *, everything: bool = False) -> Changes:
        """What has changed since the last call, of an owner that is watched; or all that is resident, as new."""
        with self._lock:
            if not everything:
                return self._journals[owner].take()
            self._journals[owner] = Journal()
            keys = (chunk.content_key for chunk in self._chunks.values() if chunk.owner == owner and chunk.visible)
            for key in keys:
                self._journals[owner].record_added(key)
            return self._journals[owner].take()

    def counts(self) -> ResidencyCounts:
        """The books as they stand."""
        with self._lock:
            self._collect()
            visible = [chunk for chunk in self._chunks.values() if chunk.visible]
            return ResidencyCounts(
                pages=self.pages,
                pages_free=self._free.count,
                chunks=len(visible),
                leased=sum(chunk.leases > 0 for chunk in (*visible, *self._leaving)),
                hits=self._hits,
                evictions=self._evictions,
                leases_dropped=self._leases_dropped,
            )

    def _find(self, wanted: ChunkWanted) -> Chunk | None:
        if wanted.first_position is None:
            return self._original_of(wanted.family)
        return self._families.get(wanted.family, {}).get(wanted.first_position)

    def _original_of(self, family: bytes) -> Chunk | None:
        return next((chunk for chunk in self._families.get(family, {}).values() if chunk.original), None)

    def _lease(self, chunk: Chunk) -> PoolLease:
        chunk.leases += 1
        return PoolLease(chunk, self._end_lease, self._forgotten.append)

    def _end_lease(self, chunk: Chunk) -> None:
        mark = self._mark()
        with self._lock:
            chunk.leases -= 1
            chunk.marks.append(mark)
            if len(chunk.marks) > _MARKS_KEPT_MAX:
                _drop_passed(chunk)

    def _is_pinned(self, place: StorageKey) -> bool:
        chunk = self._chunks[place]
        return not chunk.visible or _is_read(chunk)

    def _evict(self, place: StorageKey | None, why_not: str) -> None:
        if place is None:
            raise StorageFull(f"the pool has no room: {why_not}, and nothing that may go")
        self._evictions += 1
        self._policy.record_evict(place)
        self._remove(self._chunks[place])

    def _remove(self, chunk: Chunk) -> None:
        """Take a visible chunk's name away, and its pages as soon as nobody reads them."""
        del self._chunks[chunk.place]
        family = self._families[chunk.family]
        del family[chunk.first_position]
        if not family:
            del self._families[chunk.family]
        journal = self._journals.get(chunk.owner)
        if journal is not None:
            journal.record_gone(chunk.content_key)
        if _is_read(chunk):
            self._leaving.append(chunk)
        else:
            self._free.give_back(chunk.pages)

    def _collect(self) -> None:
        """Take back what leases left behind: those that were dropped, and pages that nobody reads any more."""
        if self._forgotten:
            self._settle()  # nobody knows on which stream they were read
        while self._forgotten:
            self._forgotten.popleft().leases -= 1
            self._leases_dropped += 1
        leaving, self._leaving = self._leaving, []
        for chunk in leaving:
            if _is_read(chunk):
                self._leaving.append(chunk)
            else:
                self._free.give_back(chunk.pages)


def _is_read(chunk: Chunk) -> bool:
    _drop_passed(chunk)
    return chunk.leases > 0 or bool(chunk.marks)


def _drop_passed(chunk: Chunk) -> None:
    chunk.marks = deque(mark for mark in chunk.marks if not mark())
