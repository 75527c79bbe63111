"""The seam between the log and the file system: every call that changes a file, in one place.

Tests put another one in: a disk that fails as told, or one that writes down what was done and what was synced, so
that a power cut can be replayed. Everything here blocks and raises :class:`OSError`.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Final, cast

from ...errors import KvloomError, StorageFull, StorageUnavailable
from ..tier import Buffer

__all__ = ["Disk", "storage_error"]

_PIECE_BYTES: Final = 2 * 1024 * 1024
_STARTED_BYTES_MIN: Final = 512 * 1024
_SYNC_FILE_RANGE_WRITE: Final = 2
_BUFFERS_MAX: Final = 1024
"""What one ``pwritev`` takes (``IOV_MAX``)."""
_FULL_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Disk:
    """The real one. Descriptors are opened for reading and writing and are closed on exec; files have mode 0600."""

    def create(self, path: Path, size_bytes: int) -> int:
        """A new file whose ``size_bytes`` are allocated; no file stays behind where that fails."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return descriptor

    def open(self, path: Path) -> int:
        """An existing file."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all of ``buffers`` one after the other from ``offset``; not yet durable.

        Of much, the disk writes what has come while the rest is copied: the sync waits for little more than the rest.
        """
        for piece in _pieces(buffers):
            stop = self._write_some(descriptor, piece, offset)
            if stop - offset >= _STARTED_BYTES_MIN:
                _start_writing(descriptor, offset, stop - offset)
            offset = stop

    def read(self, descriptor: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill ``buffers`` from ``offset`` on; bytes read, fewer only where the file ends."""
        wanted_bytes = sum(len(buffer) for buffer in buffers)
        done_bytes = os.preadv(descriptor, buffers, offset) if wanted_bytes else 0
        while 0 < done_bytes < wanted_bytes:
            count = os.preadv(descriptor, _rest(buffers, done_bytes), offset + done_bytes)
            if count == 0:
                break
            done_bytes += count
        return done_bytes

    def read_cached(self, descriptor: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Like :meth:`read` where the page cache has it all; :class:`BlockingIOError` where the disk would be asked."""
        wanted_bytes = sum(len(buffer) for buffer in buffers)
        try:
            done_bytes = os.preadv(descriptor, buffers, offset, os.RWF_NOWAIT) if wanted_bytes else 0
        except OSError as error:  # of any kind: what is really wrong, a read that may wait will tell
            raise BlockingIOError from error
        if done_bytes != wanted_bytes:
            raise BlockingIOError
        return done_bytes

    def read_ahead(self, descriptor: int, buffers: Sequence[bytearray | memoryview], offset: int, stop: int) -> int:
        """Like :meth:`read`; where the disk is asked, it also begins with what follows, up to ``stop``."""
        try:
            return self.read_cached(descriptor, buffers, offset)
        except BlockingIOError:
            with suppress(OSError):  # a hint: what is really wrong, the reads will tell
                os.posix_fadvise(descriptor, offset, stop - offset, os.POSIX_FADV_WILLNEED)
            return self.read(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        """Make what was written to the file durable. After a failure nothing written since the last one is sure."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut the file off; durable with the next :meth:`sync`."""
        os.ftruncate(descriptor, size_bytes)

    def resize(self, descriptor: int, old_bytes: int, new_bytes: int) -> None:
        """Cut the file off, or allocate what it gets longer by."""
        if new_bytes < old_bytes:
            os.ftruncate(descriptor, new_bytes)
        elif new_bytes > old_bytes:
            os.posix_fallocate(descriptor, old_bytes, new_bytes - old_bytes)

    def write_small(self, path: Path, data: bytes) -> None:
        """Write a whole small file in place of what is there; not durable and not atomic."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._write_some(descriptor, [data], 0)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name; durable with the next :meth:`sync_directory`."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a file if it is there; durable with the next :meth:`sync_directory`."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """Make the names in ``directory`` durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def _write_some(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        wanted_bytes = sum(len(buffer) for buffer in buffers)
        done_bytes = os.pwritev(descriptor, buffers, offset)
        while done_bytes < wanted_bytes:
            done_bytes += os.pwritev(descriptor, _rest(buffers, done_bytes), offset + done_bytes)
        return offset + wanted_bytes


def _pieces(buffers: Sequence[Buffer]) -> Iterator[list[Buffer]]:
    """``buffers`` in pieces of :data:`_PIECE_BYTES`, the last one shorter; none of more than :data:`_BUFFERS_MAX`."""
    piece: list[Buffer] = []
    size_bytes = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while len(view):
            taken = view[: _PIECE_BYTES - size_bytes]
            piece.append(taken)
            size_bytes += len(taken)
            view = view[len(taken) :]
            if size_bytes == _PIECE_BYTES or len(piece) == _BUFFERS_MAX:
                yield piece
                piece, size_bytes = [], 0
    if piece:
        yield piece


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The C library's, which Python has no name for; None elsewhere than on Linux."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return cast("Callable[[int, int, int, int], int] | None", function)


_sync_file_range: Final = _find_sync_file_range()


def _start_writing(descriptor: int, offset: int, size_bytes: int) -> None:
    """Have the disk begin with what was written there. A failure says nothing: the sync that follows does."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, size_bytes, _SYNC_FILE_RANGE_WRITE)


def _rest(buffers: Sequence[Buffer], done_bytes: int) -> list[memoryview]:
    """What is left of ``buffers`` after their first ``done_bytes``."""
    starts = [0, *accumulate(len(buffer) for buffer in buffers)]
    return [
        memoryview(buffer)[max(0, done_bytes - start) :]
        for buffer, start in zip(buffers, starts, strict=False)
        if start + len(buffer) > done_bytes
    ]


def storage_error(action: str, error: OSError) -> KvloomError:
    """What a failed call means to a caller: no room, or a disk that cannot."""
    if error.errno in _FULL_ERRNOS:
        return StorageFull(f"the disk has no room to {action}: {error.strerror}")
    return StorageUnavailable(f"the disk cannot {action}: {error.strerror}")
