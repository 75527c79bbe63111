"""The board of a connection: which leases its client may read by again without asking, and locks that say it reads.

The board is a memfd of 64-bit words that the daemon writes and the client maps read-only. While word ``lease %
LOCAL_BOARD_LEASES_MAX`` holds a lease's number, what was leased may be read by it again. A reader holds a shared lock
on byte ``lease`` of the board's file from before it looks at the word until it reads no more. The daemon that wants
the memory back first takes the number off the board and then tries an exclusive lock: if it gets that, nobody reads
and nobody will. If not, the client finds the number gone when it is done, and releases the lease. So a client that
keeps leases keeps no memory by them.

Locks are those of the open file (``F_OFD_SETLK``): the client's descriptor is the file opened anew, so that its locks
are not the daemon's. Where the system has none of this no lease is kept.
"""

import fcntl
import mmap
import os
import struct
import sys
from functools import partial
from typing import Final

from .. import limits

__all__ = [
    "BOARD_BYTES",
    "Board",
    "LeaseLock",
    "boards_possible",
    "lock_exclusive",
    "lock_shared",
    "unlock",
]

BOARD_BYTES: Final = 8 * limits.LOCAL_BOARD_LEASES_MAX
_LOCK: Final = struct.Struct("hhqqi4x")
_forks = 0
_SET_LOCK: Final = int(getattr(fcntl, "F_OFD_SETLK", 0))


def boards_possible() -> bool:
    """Whether this system has what a board needs: locks of open files, of the layout packed here."""
    return bool(_SET_LOCK) and sys.maxsize > 2**32


def lock_shared(descriptor: int, lease: int) -> None:
    """Say that ``lease`` is read; never waits. Raises :class:`OSError` where the daemon just tries whether it is."""
    fcntl.fcntl(descriptor, _SET_LOCK, _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, lease, 1, 0))


class LeaseLock:
    """:func:`lock_shared` as ``take()`` and :func:`unlock` as ``give_back()``, made ready: both for every read."""

    __slots__ = ("give_back", "take")

    def __init__(self, descriptor: int, lease: int) -> None:
        locked = _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, lease, 1, 0)
        unlocked = _LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, lease, 1, 0)
        self.take = partial(fcntl.fcntl, descriptor, _SET_LOCK, locked)
        self.give_back = partial(fcntl.fcntl, descriptor, _SET_LOCK, unlocked)


def lock_exclusive(descriptor: int, lease: int) -> bool:
    """Whether nobody reads ``lease``; then nobody can say so until :func:`unlock`."""
    try:
        fcntl.fcntl(descriptor, _SET_LOCK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, lease, 1, 0))
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int, lease: int) -> None:
    """Take back what this open file has said of ``lease``."""
    fcntl.fcntl(descriptor, _SET_LOCK, _LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, lease, 1, 0))


class Board:
    """A client's end. Takes over ``descriptor``, which is closed when nothing refers to the board any more.

    Raises :class:`OSError` or :class:`ValueError` for a file that is none.
    """

    __slots__ = ("_forks", "_map", "descriptor", "words")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        if os.fstat(descriptor).st_size < BOARD_BYTES:
            raise ValueError(f"board is shorter than its {BOARD_BYTES} bytes")
        self._map = mmap.mmap(descriptor, BOARD_BYTES, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        self.words = memoryview(self._map).cast("Q")
        self._forks = _forks

    def __del__(self) -> None:
        os.close(self.descriptor)

    def stands(self, lease: int) -> bool:
        """Whether ``lease`` may be read by, for somebody who holds its lock; never in a fork, which shares the lock."""
        return self.words[lease % limits.LOCAL_BOARD_LEASES_MAX] == lease and self._forks == _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)
