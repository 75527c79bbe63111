"""The daemon's end of a board (:mod:`kvloom.clients.local_board`): what its client keeps until it is wanted."""

import fcntl
import mmap
import os
from typing import Final

from .. import limits
from ..clients.local_board import BOARD_BYTES, lock_exclusive, lock_shared, unlock

__all__ = ["KeptBoard"]

_SEAL_FUTURE_WRITE: Final = 0x0010


class KeptBoard:
    """Made for one connection; :meth:`close` when it ends. Raises :class:`OSError` where the system has no more files.

    ``descriptor`` is the client's end, opened anew: locks taken through it are the client's. It is kept here too, so
    that a lease is locked for the client before it hears of it.
    """

    def __init__(self) -> None:
        self._own = os.memfd_create("kvloom-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._own, BOARD_BYTES)
            self._map = mmap.mmap(self._own, BOARD_BYTES, flags=mmap.MAP_SHARED)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _SEAL_FUTURE_WRITE
            fcntl.fcntl(self._own, fcntl.F_ADD_SEALS, seals)
            self.descriptor = os.open(f"/proc/self/fd/{self._own}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._own)
            raise
        self._words = memoryview(self._map).cast("Q")

    def keep(self, lease: int) -> int:
        """Put ``lease`` on the board, locked for the client; the lease whose place that was, 0 for none."""
        lock_shared(self.descriptor, lease)
        slot = lease % limits.LOCAL_BOARD_LEASES_MAX
        earlier = self._words[slot]
        self._words[slot] = lease
        return earlier

    def take_off(self, lease: int) -> bool:
        """Let nobody read by ``lease`` from now on; whether nobody does."""
        slot = lease % limits.LOCAL_BOARD_LEASES_MAX
        if self._words[slot] == lease:
            self._words[slot] = 0
        return self.is_idle(lease)

    def is_idle(self, lease: int) -> bool:
        """Whether nobody reads by ``lease`` just now."""
        if not lock_exclusive(self._own, lease):
            return False
        unlock(self._own, lease)
        return True

    def release(self, lease: int) -> None:
        """The client has no more use for ``lease``."""
        self.take_off(lease)
        unlock(self.descriptor, lease)

    def close(self) -> None:
        """Close this end's descriptors."""
        self._words.release()
        self._map.close()
        os.close(self.descriptor)
        os.close(self._own)
