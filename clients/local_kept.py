"""A chunk that was read where it lies and may be read again without asking, as long as the daemon leaves it there.

A kept lease is in one of two places: among its client's kept chunks, read by nobody, or with the one who reads. Whoever
takes it from there locks it, sees whether it still stands on the board (:mod:`.local_board`), and verifies the bytes
like those of any mapped read; when his window dies it goes back. Two who read one chunk at once have a lease each, of
which one goes back and the other is released.

A module of its own since it needs NumPy, which a client of a remote daemon does without.
"""

import mmap
from typing import TYPE_CHECKING, Final

import numpy as np

from ..codec.container import Container
from ..kvstore.key import ContentKey
from ..kvstore.outcome import Hit
from .local_board import Board, LeaseLock, unlock
from .local_replies import Mapped
from .local_segments import take_window
from .mapped_container import MappedContainer

if TYPE_CHECKING:
    from .local_connection import LocalConnection

__all__ = ["KeptChunk"]

_WORD: Final = np.dtype("<u8")
_add = np.add.reduce


class KeptChunk:
    """A chunk under a lease that stands on the board of ``connection``, in the mapped ``segment``."""

    __slots__ = ("_board", "_bytes", "_connection", "_lock", "_sum", "_words", "found", "key", "segment", "usable")

    def __init__(
        self, connection: "LocalConnection", board: Board, segment: mmap.mmap, key: ContentKey, found: Mapped
    ) -> None:
        self._connection = connection
        self._board = board
        self._lock: LeaseLock | None = None
        self.segment = segment
        self.key = key
        self.found = found
        self.usable = True
        """Whether it may be read by this lease again; not when it was found damaged."""

    def read(self) -> Hit[Container] | None:
        """Read it again; None where the daemon has to be asked, the lease being given back."""
        lease, connection = self.found.lease, self._connection
        if not connection.may_read_kept():
            connection.put_back(self)
            return None
        lock = self._lock or self._made_ready()
        try:
            lock.take()
        except OSError:  # the daemon is taking it back just now
            connection.end_lease(lease, 0)
            return None
        if not self._board.stands(lease):
            lock.give_back()
            connection.end_lease(lease, 0)
            return None
        connection.hold(lease)
        window = take_window(self._bytes, lease, self.end)
        if int(_add(self._words)) != self._sum:
            self.usable = False
            return None
        return Hit(MappedContainer(window.data), self.found.tier)

    def end(self, lease: int, size_bytes: int) -> None:
        """Nobody reads it any more: keep the lease if it still stands and there is no other, or give it back."""
        if self._lock is None:
            unlock(self._board.descriptor, lease)
        else:
            self._lock.give_back()
        if self.usable and self._board.stands(lease) and self._connection.put_back(self):
            return
        self._connection.end_lease(lease, size_bytes)

    def _made_ready(self) -> LeaseLock:
        """Make what every read but the first needs: most chunks are read once."""
        start, stop = self.found.ranges[0].start, self.found.ranges[0].stop
        count, rest_bytes = divmod(stop - start, _WORD.itemsize)
        self._bytes = np.frombuffer(self.segment, np.uint8, stop - start, start)
        self._words = np.frombuffer(self.segment, _WORD, count, start)
        rest = int.from_bytes(self.segment[stop - rest_bytes : stop], "little")
        self._sum = ((self.found.word_sum or 0) - rest) % 2**64
        self._lock = lock = LeaseLock(self._board.descriptor, self.found.lease)
        return lock
