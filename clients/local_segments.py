"""What a connection has mapped, and the windows through which it is read: when a window dies, its lease ends.

A module of its own since it needs NumPy, which a client of a remote daemon does without.
"""

import mmap
import os
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..kvstore.sharing import word_sum
from .local_wire import Mapped

__all__ = ["MappedSegments"]


class _Window(weakref.ref["NDArray[np.uint8]"]):
    """Notices when nobody reads a window any more; a finalizer of the standard library takes five times as long."""

    __slots__ = ("end_lease", "lease", "size_bytes")
    end_lease: Callable[[int, int], None]
    lease: int
    size_bytes: int


_windows: dict[int, _Window] = {}
"""All that are read, by identity. They keep their connection open, whoever else forgets it."""


def _died(window: "weakref.ref[NDArray[np.uint8]]") -> None:
    ended = _windows.pop(id(window))
    ended.end_lease(ended.lease, ended.size_bytes)


class MappedSegments:
    """Segments by number. ``end_lease`` is called with a lease and its bytes, in any thread, when its window dies."""

    def __init__(self, end_lease: Callable[[int, int], None]) -> None:
        self._end_lease = end_lease
        self._mapped: dict[int, mmap.mmap] = {}

    def map(self, number: int, descriptor: int, size_bytes: int) -> None:
        """Map a segment; the descriptor stays the caller's. Raises :class:`OSError` or :class:`ValueError`."""
        if not 0 < size_bytes <= os.fstat(descriptor).st_size:
            raise ValueError(f"segment {number} is shorter than its {size_bytes} bytes")
        self._mapped[number] = mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)

    def forget(self, number: int) -> None:
        """Unmap a segment as soon as nothing of it is read."""
        self._mapped.pop(number, None)

    def clear(self) -> None:
        """:meth:`forget` all."""
        self._mapped.clear()

    def window(self, found: Mapped) -> "NDArray[np.uint8] | None":
        """The memory from the first range of ``found`` to its last, read-only; None for a place outside of it.

        The lease lasts until the array and everything made from it are gone.
        """
        segment = self._mapped.get(found.segment)
        start, stop = found.ranges[0].start, found.ranges[-1].stop
        if segment is None or not 0 <= start <= stop <= len(segment):
            return None
        array = np.frombuffer(segment, np.uint8, stop - start, start)
        window = _Window(array, _died)
        window.end_lease, window.lease, window.size_bytes = self._end_lease, found.lease, stop - start
        _windows[id(window)] = window
        return array

    @staticmethod
    def sum_of(window: "NDArray[np.uint8]") -> int:
        """The word sum of a window (:func:`~kvloom.kvstore.sharing.word_sum`)."""
        return word_sum(window.data)
