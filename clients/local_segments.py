"""What a connection has mapped, and the windows through which it is read: when a window dies, its lease ends.

A module of its own since it needs NumPy, which a client of a remote daemon does without.
"""

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kvstore.sharing import word_sum
from .local_replies import Mapped

__all__ = ["MappedSegments", "take_window"]


_ends: dict[int, Callable[[int, int], None]] = {}
"""What to call when a window is gone, by its identity. It keeps the connection and its board, whoever forgets them."""

# What a fork inherits is its parent's: that it is not read in the child any more ends no lease.
os.register_at_fork(after_in_child=_ends.clear)


class _Window(np.ndarray[Any, np.dtype[np.uint8]]):
    """Notices when nobody reads it any more; a finalizer of the standard library takes ten times as long."""

    __slots__ = ("lease",)
    lease: int

    def __del__(self) -> None:
        end_lease = _ends.pop(id(self), None)
        if end_lease is not None:
            end_lease(self.lease, self.nbytes)


def take_window(found: "NDArray[np.uint8]", lease: int, end_lease: Callable[[int, int], None]) -> "NDArray[np.uint8]":
    """A view of ``found``; ``end_lease`` is called when it and all memoryviews and slices of it are gone.

    A plain array made of it directly does not count: NumPy takes that for a view of ``found``. One made of its
    memoryview does.
    """
    window = found.view(_Window)
    window.lease = lease
    _ends[id(window)] = end_lease
    return window


class MappedSegments:
    """Segments by number."""

    def __init__(self) -> None:
        self._mapped: dict[int, mmap.mmap] = {}

    def map(self, number: int, descriptor: int, size_bytes: int) -> None:
        """Map a segment; the descriptor stays the caller's. Raises :class:`OSError` or :class:`ValueError`."""
        if not 0 < size_bytes <= os.fstat(descriptor).st_size:
            raise ValueError(f"segment {number} is shorter than its {size_bytes} bytes")
        self._mapped[number] = mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)

    def forget(self, number: int) -> mmap.mmap | None:
        """Unmap a segment as soon as nothing of it is read, and nothing else refers to it; which it was."""
        return self._mapped.pop(number, None)

    def clear(self) -> None:
        """:meth:`forget` all."""
        self._mapped.clear()

    def of(self, found: Mapped) -> mmap.mmap | None:
        """What ``found`` lies in; None for a place outside of what is mapped."""
        segment = self._mapped.get(found.segment)
        start, stop = found.ranges[0].start, found.ranges[-1].stop
        return None if segment is None or not 0 <= start <= stop <= len(segment) else segment

    @staticmethod
    def window(segment: mmap.mmap, found: Mapped, end_lease: Callable[[int, int], None]) -> "NDArray[np.uint8]":
        """:func:`take_window` of ``found``, from its first range to its last."""
        start, stop = found.ranges[0].start, found.ranges[-1].stop
        return take_window(np.frombuffer(segment, np.uint8, stop - start, start), found.lease, end_lease)

    @staticmethod
    def sum_of(window: "NDArray[np.uint8]") -> int:
        """The word sum of a window (:func:`~kvloom.kvstore.sharing.word_sum`)."""
        return word_sum(window.data)
