"""A file in memory that a client fills with a container and passes to the daemon, which copies it out before it judges.

It is filled again for the next put, so its pages are touched for the first time only once.
"""

import os
import weakref
from typing import Final

from ..kvstore.tier import Buffer

__all__ = ["Stage"]

_BYTES_KEPT_MAX: Final = 64 * 1024 * 1024


class Stage:
    """Made on first use. Not thread-safe: it belongs to one connection."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._size_bytes = 0

    def fill(self, data: Buffer) -> int:
        """Write ``data`` at the beginning of the file; its descriptor, to be passed and not closed.

        Raises :class:`OSError` where there is no memory.
        """
        if self._descriptor < 0:
            self._descriptor = os.memfd_create("kvloom-stage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            weakref.finalize(self, os.close, self._descriptor)
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += os.pwrite(self._descriptor, view[written:], written)
        self._size_bytes = max(self._size_bytes, len(view))
        return self._descriptor

    def trim(self) -> None:
        """Give back the memory of an unusually large container."""
        if self._size_bytes > _BYTES_KEPT_MAX:
            os.ftruncate(self._descriptor, 0)
            self._size_bytes = 0
