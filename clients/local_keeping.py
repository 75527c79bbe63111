"""What one connection keeps: the chunks on its board, and the reads by them that the daemon has not heard of."""

import mmap
import struct
from typing import TYPE_CHECKING, Final

from .. import limits
from ..kvstore.key import ContentKey
from ..kvstore.tier import Buffer
from .local_board import Board
from .local_replies import Mapped
from .local_wire import Frame, Kind

if TYPE_CHECKING:
    from .local_connection import LocalConnection
    from .local_kept import KeptChunk

__all__ = ["Keeping"]

_USE: Final = struct.Struct("<QQ")


class Keeping:
    """``chunks`` are those of all connections of a client that nobody reads, by their keys."""

    def __init__(self, board: Board, chunks: "dict[ContentKey, KeptChunk]") -> None:
        self._board = board
        self._chunks = chunks
        self._on_board: dict[int, KeptChunk] = {}
        self._uses: dict[int, int] = {}
        self._reads = 0

    def add(self, connection: "LocalConnection", segment: mmap.mmap, key: ContentKey, found: Mapped) -> "KeptChunk":
        """A chunk that is read for the first time, and is kept when it is read no more."""
        from .local_kept import KeptChunk  # here: a client of a remote daemon needs no NumPy

        chunk = KeptChunk(connection, self._board, segment, key, found)
        slot = found.lease % limits.LOCAL_BOARD_LEASES_MAX
        self._take_out(self._on_board.get(slot))
        self._on_board[slot] = chunk
        return chunk

    def spoil(self, found: Mapped) -> None:
        """What lies there is damaged: do not read it by this lease again."""
        chunk = self._on_board.get(found.lease % limits.LOCAL_BOARD_LEASES_MAX)
        if chunk is not None and chunk.found is found:
            chunk.usable = False

    def put_back(self, chunk: "KeptChunk") -> bool:
        """Nobody reads the chunk any more; whether it may be kept on, there being no other lease on it."""
        return self._chunks.setdefault(chunk.key, chunk) is chunk

    def forget(self, segment: mmap.mmap | None = None) -> None:
        """Keep nothing in ``segment`` any more, or nothing at all."""
        for slot, chunk in list(self._on_board.items()):
            if segment is None or chunk.segment is segment:
                self._take_out(chunk)
                del self._on_board[slot]

    def note_use(self, lease: int) -> bool:
        """A kept lease was read by; whether it is time to say so."""
        self._uses[lease] = self._uses.get(lease, 0) + 1
        self._reads += 1
        return self._reads >= limits.LOCAL_USES_DEFERRED_MAX

    def used(self) -> list[Buffer]:
        """A frame that tells the daemon of the reads since the last one, if there were any."""
        uses, self._uses, self._reads = self._uses, {}, 0
        if not uses:
            return []
        pairs = list(uses.items())[: limits.LOCAL_LEASES_MAX]
        body = b"".join([_USE.pack(*pair) for pair in pairs])
        return [Frame(Kind.USED, 0, len(body)).encode(), body]

    def _take_out(self, chunk: "KeptChunk | None") -> None:
        if chunk is not None and self._chunks.get(chunk.key) is chunk:
            self._chunks.pop(chunk.key, None)
