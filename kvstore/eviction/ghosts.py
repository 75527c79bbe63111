"""Keys that were evicted, remembered in a table of fixed size: 12 bytes each, no key object."""

from array import array
from typing import Final, Generic, TypeVar

from ..key import OWNER_BYTES, StorageKey

__all__ = ["GhostTable"]

Value = TypeVar("Value")
_WAYS: Final = 8
_SETS_MIN: Final = 16


class GhostTable(Generic[Value]):
    """A set-associative table from 32 bits of a key to a value; a newcomer pushes out the oldest of its eight.

    Other 32 bits choose the set, so a key is taken for another one in about one of 500 million look-ups.
    """

    def __init__(self) -> None:
        self._sets = _SETS_MIN
        self._tags = array("I", bytes(4 * _SETS_MIN * _WAYS))
        self._values: list[Value | None] = [None] * (_SETS_MIN * _WAYS)

    @property
    def capacity(self) -> int:
        """Keys that fit."""
        return self._sets * _WAYS

    def expect(self, entries: int) -> list[Value]:
        """Have room for ``entries`` and a quarter more; growing forgets everything. Returns the values forgotten."""
        if entries <= self.capacity:
            return []
        forgotten = [value for value in self._values if value is not None]
        self._sets = -(-entries * 5 // (4 * _WAYS))
        self._tags = array("I", bytes(4 * self.capacity))
        self._values = [None] * self.capacity
        return forgotten

    def add(self, key: StorageKey, value: Value) -> Value | None:
        """Remember ``key``; the value that had to go for it, if any."""
        first, tag = self._place(key)
        last = first + _WAYS - 1
        gone = self._values[last]
        self._values[first + 1 : last + 1] = self._values[first:last]
        self._tags[first + 1 : last + 1] = self._tags[first:last]
        self._values[first] = value
        self._tags[first] = tag
        return gone

    def take(self, key: StorageKey) -> Value | None:
        """Forget ``key`` and return its value, ``None`` where it is not remembered."""
        first, tag = self._place(key)
        for place in range(first, first + _WAYS):
            value = self._values[place]
            if value is not None and self._tags[place] == tag:
                self._values[place] = None
                return value
        return None

    def __len__(self) -> int:
        return sum(value is not None for value in self._values)

    def _place(self, key: StorageKey) -> tuple[int, int]:
        bits = int.from_bytes(key[OWNER_BYTES : OWNER_BYTES + 8], "little")  # all of a policy may be one owner's
        return (bits >> 32) % self._sets * _WAYS, bits & 0xFFFFFFFF
