"""One segment of the memory tier: shared memory of one owner that records are appended to.

A segment is a memfd, sealed as soon as this process has mapped it: it can neither be resized nor, by anybody but
through that one mapping, be written. So its descriptor may be handed to a local client of its owner, who maps it
read-only and reads a record where it lies. Where there are no sealed memfds (another system, no descriptors left) the
memory is private and nothing can be shared.

What keeps a view valid: every read takes a ``memoryview`` of the segment's *window*, an array that the segment itself
holds weakly. Slices, casts and NumPy arrays made from such a view keep the window alive, so a view handed out *is* the
lease, and a dead window says that nobody reads. Only then is the segment unmapped, or rewound and filled again. A
second window does the same for those who write: a put that is cancelled goes on copying in its thread for a while.
"""

import contextlib
import fcntl
import mmap
import os
import struct
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..tier import UNOWNED, OwnerId

__all__ = ["ALIGNMENT_BYTES", "Segment", "aligned"]

ALIGNMENT_BYTES: Final = 64
_HUGE_PAGE_BYTES: Final = 2 * 1024 * 1024
_SEAL_FUTURE_WRITE: Final = 0x0010
"""Linux 5.1; the fcntl module names it from Python 3.14 on."""

_Window = weakref.ref[NDArray[np.uint8]] | None


def aligned(size_bytes: int) -> int:
    """``size_bytes`` rounded up to the alignment at which records start."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Segment:
    """A mapping of ``size_bytes``, appended to by :meth:`reserve`.

    ``number`` names it among those of its tier. Whoever holds no view may :meth:`try_close` or :meth:`try_rewind` it.
    """

    __slots__ = (
        "__weakref__",
        "_close_descriptor",
        "_map",
        "_read_window",
        "_watchers",
        "_write_window",
        "abandoned",
        "closed",
        "dedicated",
        "descriptor",
        "end_bytes",
        "live_bytes",
        "number",
        "owner",
        "size_bytes",
    )

    def __init__(self, size_bytes: int, *, number: int = 0, owner: OwnerId = UNOWNED, dedicated: bool = False) -> None:
        self.descriptor: int | None
        """Of the sealed memfd, this segment's own; None where the memory cannot be shared."""
        self._map, self.descriptor = _sealed_map(size_bytes)
        self._close_descriptor = None if self.descriptor is None else weakref.finalize(self, os.close, self.descriptor)
        self._read_window: _Window = None
        self._write_window: _Window = None
        self._watchers: dict[int, list[Callable[[], None]]] = {}
        if size_bytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            # Four times as fast to fill as small pages; a kernel without them says EINVAL and nothing is lost.
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.number = number
        self.owner = owner
        self.size_bytes = size_bytes
        self.dedicated = dedicated
        """Whether it was made for one large record."""
        self.end_bytes = 0
        """Where the next record goes; everything below has been given out."""
        self.live_bytes = 0
        """Bytes of resident records and of puts that are still copying."""
        self.abandoned = False
        """Whether somebody who may still read it went away without saying that he does not: never write it again."""
        self.closed = False

    @property
    def free_bytes(self) -> int:
        """Bytes that can still be appended."""
        return self.size_bytes - self.end_bytes

    @property
    def is_read(self) -> bool:
        """Whether a view of it is alive."""
        return self._read_window is not None and self._read_window() is not None

    @property
    def is_written(self) -> bool:
        """Whether somebody still fills a part of it, be it for a put that was cancelled."""
        return self._write_window is not None and self._write_window() is not None

    def reserve(self, size_bytes: int) -> int:
        """Give out the next ``size_bytes``, live until :meth:`release`; the offset of their start."""
        offset = self.end_bytes
        self.end_bytes += aligned(size_bytes)
        self.live_bytes += aligned(size_bytes)
        return offset

    def release(self, size_bytes: int) -> None:
        """A reservation of ``size_bytes`` is dead: its record is gone or never came to be."""
        self.live_bytes -= aligned(size_bytes)

    def watch(self, offset: int, gone: Callable[[], None]) -> None:
        """Call ``gone`` once, when the record whose payload lies at ``offset`` does not lie there any more."""
        self._watchers.setdefault(offset, []).append(gone)

    def unwatch(self, offset: int, gone: Callable[[], None]) -> None:
        """Do not call ``gone`` any more; nothing where nobody would."""
        watchers = self._watchers.get(offset, [])
        if gone in watchers:
            watchers.remove(gone)
        if not watchers:
            self._watchers.pop(offset, None)

    def leave(self, offset: int) -> None:
        """The record whose payload lies at ``offset`` is forgotten, or lies elsewhere from now on."""
        for gone in self._watchers.pop(offset, ()):
            gone()

    def writable(self, offset: int, size_bytes: int) -> memoryview:
        """The reserved bytes at ``offset``, to be filled once, before anybody is given a :meth:`view` of them."""
        window = None if self._write_window is None else self._write_window()
        if window is None:
            window = np.frombuffer(self._map, np.uint8)
            self._write_window = weakref.ref(window)
        return window.data[offset : offset + size_bytes]

    def pack(self, fields: struct.Struct, offset: int, *values: int | bytes) -> None:
        """Write ``fields`` at ``offset``, which must be reserved."""
        fields.pack_into(self._map, offset, *values)

    def unpack(self, fields: struct.Struct, offset: int) -> tuple[Any, ...]:
        """Read ``fields`` at ``offset``."""
        return fields.unpack_from(self._map, offset)

    def view(self, start: int, stop: int) -> memoryview:
        """Bytes ``[start, stop)``, read-only, valid and unchanged for as long as the view is referenced."""
        window = None if self._read_window is None else self._read_window()
        if window is None:
            window = np.frombuffer(self._map, np.uint8)
            window.flags.writeable = False
            self._read_window = weakref.ref(window)
        return window.data[start:stop]

    def try_rewind(self) -> bool:
        """Make a dead segment that nobody reads or writes any more writable from its start; whether that could be done.

        Saves the first touch of every page, which costs several times what copying into it does.
        """
        if self.closed or self.abandoned or self.live_bytes or self.is_read or self.is_written:
            return False
        self.end_bytes = 0
        return True

    def try_close(self) -> bool:
        """Unmap the segment unless somebody reads or writes it; whether it is unmapped now."""
        if self.is_read or self.is_written:
            return False
        self._map.close()
        self.closed = True
        if self._close_descriptor is not None:
            self._close_descriptor()
            self.descriptor = None
        return True


def _sealed_map(size_bytes: int) -> tuple[mmap.mmap, int | None]:
    """Memory of ``size_bytes`` and, where it can be shared, its descriptor; OSError where there is no memory."""
    if hasattr(os, "memfd_create"):
        descriptor = -1
        try:
            descriptor = os.memfd_create("kvloom-segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, size_bytes)
            mapped = mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_SHARED)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _SEAL_FUTURE_WRITE
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError:
            # No descriptors left, or a kernel without this seal: memory that cannot be shared does as well.
            if descriptor >= 0:
                os.close(descriptor)
        else:
            return mapped, descriptor
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), None
