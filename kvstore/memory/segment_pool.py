"""The segments of a memory tier: which there are, whose they are, which is filled now, and what becomes of dead ones.

A dead segment is one in which no resident record lies. Unread, it is kept as a spare for its owner's next records
(never for another's) as far as spares are allowed, or goes back to the system. While it is read it waits.
"""

import mmap
from collections.abc import Sequence
from typing import Final

from ..tier import OwnerId
from .segment import Segment

__all__ = ["SegmentPool"]

_FIRST_SHARE: Final = 16
"""An owner's first segment is a sixteenth of the largest, so that many small owners do not hold many large ones."""
_GROWTH_SHARE: Final = 4
"""A next segment has a quarter of what its owner has already."""
_ROOM_RECORDS: Final = 4
_SPARE_WASTE_SHARE: Final = 4


class SegmentPool:
    """Segments of at most ``segment_bytes``, but for those made for one large record."""

    def __init__(self, segment_bytes: int, *, spare_bytes_max: int) -> None:
        self._segment_bytes = segment_bytes
        self._spare_bytes_max = spare_bytes_max
        self._next_number = 0
        self._owned_bytes: dict[OwnerId, int] = {}
        self._dead: set[Segment] = set()
        self._spares: list[Segment] = []
        self._spare_bytes = 0
        self.segments: dict[int, Segment] = {}
        """All of them by number, spares included."""
        self.open: dict[OwnerId, Segment] = {}
        """The segment to which an owner's next record is appended."""
        self.mapped_bytes = 0

    @property
    def appended_bytes(self) -> int:
        """Bytes given out in segments and not given back, dead ones included."""
        return sum(segment.end_bytes for segment in self.segments.values())

    def next_size(self, owner: OwnerId, size_bytes: int) -> int:
        """The size of the next segment of ``owner``, for a record of ``size_bytes`` and others."""
        grown_bytes = max(self._segment_bytes // _FIRST_SHARE, self._owned_bytes.get(owner, 0) // _GROWTH_SHARE)
        wanted_bytes = max(grown_bytes, _ROOM_RECORDS * size_bytes, mmap.PAGESIZE)
        return min(self._segment_bytes, -(-wanted_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)

    def map(self, owner: OwnerId, size_bytes: int, *, dedicated: bool) -> Segment:
        """A new segment; OSError where the system has no memory for it."""
        segment = Segment(size_bytes, number=self._next_number, owner=owner, dedicated=dedicated)
        self._next_number += 1
        self.segments[segment.number] = segment
        self.mapped_bytes += size_bytes
        self._owned_bytes[owner] = self._owned_bytes.get(owner, 0) + size_bytes
        return segment

    def take_spare(self, owner: OwnerId, size_bytes: int, *, dedicated: bool) -> Segment | None:
        """A spare of ``owner``, rewound, of ``size_bytes`` and at most a quarter more."""
        for segment in self._spares:
            fits = size_bytes <= segment.size_bytes <= size_bytes + size_bytes // _SPARE_WASTE_SHARE
            if fits and segment.owner == owner:
                self._forget_spare(segment)
                segment.dedicated = dedicated
                return segment
        return None

    def drop_spare(self) -> bool:
        """Give a spare back to the system; whether there was one."""
        if not self._spares:
            return False
        self._forget_spare(self._spares[0], close=True)
        return True

    def seal(self, owner: OwnerId) -> bool:
        """Append nothing more to the open segment of ``owner``; whether there was one."""
        sealed = self.open.pop(owner, None)
        if sealed is not None:
            self.give_back_if_dead(sealed)
        return sealed is not None

    def give_back_if_dead(self, segment: Segment) -> None:
        """Let go of a segment that nothing lies in: now, or once it is not read any more. An open one stays open."""
        self._dead.discard(segment)
        if segment.live_bytes or segment.number not in self.segments:
            return
        is_open = self.open.get(segment.owner) is segment
        if is_open and not segment.abandoned:
            if not segment.try_rewind():
                self._dead.add(segment)
            return
        if is_open:
            del self.open[segment.owner]
        keep = self._spare_bytes + segment.size_bytes <= self._spare_bytes_max
        if keep and segment.try_rewind():
            self._spares.append(segment)
            self._spare_bytes += segment.size_bytes
        elif not self._close(segment):
            self._dead.add(segment)

    def reclaim(self) -> None:
        """Let go of the dead segments that are not read any more."""
        for segment in list(self._dead):
            self.give_back_if_dead(segment)

    def sparse_segments(self) -> list[Segment]:
        """Sealed segments of one owner, the emptiest first, whose live records fit one segment and leave much of them.

        At least a quarter of each is dead and something in it is resident. Behind them come those of the same owner,
        full ones too, in which no more is resident than in what stands before: moved alone, records would end in
        ever more and ever smaller segments, and this way a record that moves is in one at least twice as full as
        the smallest there were. Empty where nothing is sparse.
        """
        sealed = [
            segment
            for segment in self.segments.values()
            if segment.live_bytes and not (segment.dedicated or segment.is_written)
            if self.open.get(segment.owner) is not segment
        ]
        candidates = [segment for segment in sealed if segment.live_bytes <= 3 * segment.size_bytes // 4]
        if not candidates:
            return []
        candidates.sort(key=lambda segment: segment.live_bytes / segment.size_bytes)
        owner = candidates[0].owner
        chosen: list[Segment] = []
        live_bytes, live_bytes_max = 0, 3 * self._segment_bytes // 4
        for segment in candidates:
            if segment.owner == owner and live_bytes + segment.live_bytes <= live_bytes_max:
                chosen.append(segment)
                live_bytes += segment.live_bytes
        others = [segment for segment in sealed if segment.owner == owner and segment not in chosen]
        for segment in sorted(others, key=lambda segment: segment.live_bytes):
            if segment.live_bytes > min(live_bytes, live_bytes_max - live_bytes):
                break
            chosen.append(segment)
            live_bytes += segment.live_bytes
        return chosen

    def compacted_size(self, sources: Sequence[Segment], wanted_bytes: int) -> int:
        """The size of the segment that what is resident in ``sources`` moves to.

        No larger than that takes, or, where a record of ``wanted_bytes`` and others are to follow, as large as
        they are together.
        """
        live_bytes = sum(segment.live_bytes for segment in sources) + wanted_bytes
        kept_bytes = min(self._segment_bytes, sum(segment.size_bytes for segment in sources)) if wanted_bytes else 0
        return -(-max(live_bytes, kept_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE

    def close(self) -> None:
        """Unmap what is not read, and forget the rest: it goes when its last view goes."""
        for segment in self.segments.values():
            segment.try_close()
        self.segments.clear()
        self.open.clear()
        self._dead.clear()
        self._spares.clear()
        self._owned_bytes.clear()
        self._spare_bytes = 0
        self.mapped_bytes = 0

    def _forget_spare(self, segment: Segment, *, close: bool = False) -> None:
        self._spares.remove(segment)
        self._spare_bytes -= segment.size_bytes
        if close and not self._close(segment):
            self._dead.add(segment)

    def _close(self, segment: Segment) -> bool:
        if not segment.try_close():
            return False
        del self.segments[segment.number]
        self.mapped_bytes -= segment.size_bytes
        self._owned_bytes[segment.owner] -= segment.size_bytes
        if not self._owned_bytes[segment.owner]:
            del self._owned_bytes[segment.owner]
        return True
