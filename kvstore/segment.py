"""One segment of the memory tier: a private anonymous mapping that records are appended to.

What keeps a view valid: every read takes a fresh ``memoryview`` of the mapping, and CPython counts the exports of an
``mmap``. Slices, casts and NumPy arrays made from such a view hold it, and ``mmap.close`` refuses (``BufferError``)
while one is alive. So a view handed out *is* the lease: the pages cannot be unmapped under it, no bookkeeping can be
forgotten, and bytes below ``end_bytes`` are never written a second time.
"""

import contextlib
import mmap
from dataclasses import dataclass

from .tier import RecordInfo

__all__ = ["ALIGNMENT_BYTES", "Entry", "Segment", "aligned"]

ALIGNMENT_BYTES = 64
_HUGE_PAGE_BYTES = 2 * 1024 * 1024


def aligned(size_bytes: int) -> int:
    """``size_bytes`` rounded up to the alignment at which records start."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(slots=True, eq=False)
class Entry:
    """Where a resident record lies; a compaction changes the place, never the info."""

    info: RecordInfo
    segment: "Segment"
    offset: int


class Segment:
    """A mapping of ``size_bytes``; appended to by :meth:`reserve`, given back to the system by :meth:`try_close`."""

    __slots__ = ("_map", "dedicated", "end_bytes", "entries", "live_bytes", "size_bytes")

    def __init__(self, size_bytes: int, *, dedicated: bool) -> None:
        self._map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size_bytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            # Four times as fast to fill as small pages; a kernel without them says EINVAL and nothing is lost.
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.size_bytes = size_bytes
        self.dedicated = dedicated
        """Whether it was made for one large record."""
        self.end_bytes = 0
        """Where the next record goes; everything below has been given out."""
        self.live_bytes = 0
        """Bytes of resident records and of puts that are still copying."""
        self.entries: set[Entry] = set()

    @property
    def free_bytes(self) -> int:
        """Bytes that can still be appended."""
        return self.size_bytes - self.end_bytes

    def reserve(self, size_bytes: int) -> int:
        """Give out the next ``size_bytes``, live until :meth:`release`; the offset of their start."""
        offset = self.end_bytes
        self.end_bytes += aligned(size_bytes)
        self.live_bytes += aligned(size_bytes)
        return offset

    def release(self, size_bytes: int) -> None:
        """A reservation of ``size_bytes`` is dead: its record is gone or never came to be."""
        self.live_bytes -= aligned(size_bytes)

    def writable(self, offset: int, size_bytes: int) -> memoryview:
        """The reserved bytes at ``offset``, to be filled once, before anybody is given a :meth:`view` of them."""
        return memoryview(self._map)[offset : offset + size_bytes]

    def view(self, start: int, stop: int) -> memoryview:
        """Bytes ``[start, stop)``, read-only, valid for as long as the view is referenced."""
        return memoryview(self._map)[start:stop].toreadonly()

    def try_close(self) -> bool:
        """Unmap the segment unless a view of it is alive; whether it is unmapped now."""
        try:
            self._map.close()
        except BufferError:
            return False
        return True
