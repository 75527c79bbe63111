"""Hashes of the chunks that were stored last, by their storage keys: in a table of fixed size, with no object for each.

A dictionary of as many would take five times the memory, and would go on growing for hours after a daemon has started.
"""

from typing import Final

import numpy as np

from .. import limits
from ..kvstore.key import KEY_BYTES, OWNER_BYTES, ContentKey, StorageKey

__all__ = ["ChunkNames"]

_WAYS_MAX: Final = 8
_TAIL_BYTES: Final = KEY_BYTES - OWNER_BYTES
_ENTRY_BYTES: Final = _TAIL_BYTES + KEY_BYTES


class ChunkNames:
    """The last ``names_max`` names, about: of the eight that share a place the oldest makes room.

    A storage key is found by what follows its owner, 128 bits of a hash made under a secret. Pages that nothing has
    been written to take no memory.
    """

    __slots__ = ("_sets", "_table", "_ways")

    def __init__(self, names_max: int = limits.EVENT_NAMES_MAX) -> None:
        self._ways = min(_WAYS_MAX, names_max)
        self._sets = names_max // self._ways
        self._table = np.zeros(self._sets * self._ways * _ENTRY_BYTES, np.uint8).data

    def note(self, key: StorageKey, content_key: ContentKey) -> None:
        """``content_key`` is what is kept under ``key``; the newest of its place from now on."""
        first, place = self._find(key)
        if place is None:
            place = first + (self._ways - 1) * _ENTRY_BYTES
        if place > first:
            self._table[first + _ENTRY_BYTES : place + _ENTRY_BYTES] = bytes(self._table[first:place])
        self._table[first : first + _ENTRY_BYTES] = key[OWNER_BYTES:] + content_key

    def get(self, key: StorageKey) -> ContentKey | None:
        """What is kept under ``key``, where that is remembered."""
        _, place = self._find(key)
        if place is None:
            return None
        return ContentKey(bytes(self._table[place + _TAIL_BYTES : place + _ENTRY_BYTES]))

    def _find(self, key: StorageKey) -> tuple[int, int | None]:
        """Where the entries begin among which ``key`` would be, and where its own does."""
        tail = key[OWNER_BYTES:]
        size = self._ways * _ENTRY_BYTES
        first = int.from_bytes(tail[:4], "little") % self._sets * size
        entries = bytes(self._table[first : first + size])
        place = entries.find(tail)
        while place >= 0 and place % _ENTRY_BYTES:
            place = entries.find(tail, place + 1)
        return first, None if place < 0 else first + place
