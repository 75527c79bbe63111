"""Keys that were evicted, remembered in a table of fixed size: 8 bytes each, no object."""

from array import array
from typing import Final

from ..key import OWNER_BYTES, StorageKey

__all__ = ["NO_GHOST", "GhostTable"]

NO_GHOST: Final = 0
_WAYS: Final = 8
_SETS_MIN: Final = 16


class GhostTable:
    """A set-associative table from 32 bits of a key to a number of 1 to 2**32 - 1; of eight the oldest makes room.

    Other 32 bits choose the set, so a key is taken for another one in about one of 500 million look-ups.
    """

    __slots__ = ("_numbers", "_sets", "_tags")

    def __init__(self) -> None:
        self._resize(_SETS_MIN)

    @property
    def capacity(self) -> int:
        """Keys that fit."""
        return self._sets * _WAYS

    def expect(self, entries: int) -> "array[int]":
        """Have room for ``entries`` and a quarter more; growing forgets everything. What stood in each place then."""
        if entries <= self.capacity:
            return array("I")
        forgotten = self._numbers
        self._resize(-(-entries * 5 // (4 * _WAYS)))
        return forgotten

    def add(self, key: StorageKey, number: int) -> int:
        """Remember ``key``; the number that had to go for it, or :data:`NO_GHOST`."""
        first, tag = self._place(key)
        last = first + _WAYS - 1
        gone = self._numbers[last]
        self._numbers[first + 1 : last + 1] = self._numbers[first:last]
        self._tags[first + 1 : last + 1] = self._tags[first:last]
        self._numbers[first] = number
        self._tags[first] = tag
        return gone

    def take(self, key: StorageKey) -> int:
        """Forget ``key`` and return its number, :data:`NO_GHOST` where it is not remembered."""
        first, tag = self._place(key)
        if tag in self._tags[first : first + _WAYS]:  # seldom, and much faster than looking at one after the other
            for place in range(first, first + _WAYS):
                number = self._numbers[place]
                if number != NO_GHOST and self._tags[place] == tag:
                    self._numbers[place] = NO_GHOST
                    return number
        return NO_GHOST

    def __len__(self) -> int:
        return self.capacity - self._numbers.count(NO_GHOST)

    def _resize(self, sets: int) -> None:
        self._sets = sets
        self._tags = array("I", [0]) * self.capacity
        self._numbers = array("I", [NO_GHOST]) * self.capacity

    def _place(self, key: StorageKey) -> tuple[int, int]:
        bits = int.from_bytes(key[OWNER_BYTES : OWNER_BYTES + 8], "little")  # all of a policy may be one owner's
        return (bits >> 32) % self._sets * _WAYS, bits & 0xFFFFFFFF
