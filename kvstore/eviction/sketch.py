"""A count-min sketch of how often keys came, which halves itself: the memory of TinyLFU."""

from typing import Final

from ..key import OWNER_BYTES, StorageKey

__all__ = ["FrequencySketch"]

_COUNT_MAX: Final = 15
_ROWS: Final = 4
_WIDTH_MIN: Final = 64
_SAMPLE_PER_ENTRY: Final = 10


class FrequencySketch:
    """Four rows of counters up to 15, all halved when ten times as many uses were counted as records are expected.

    Einziger, Friedman and Manes, "TinyLFU: a highly efficient cache admission policy", ACM ToS 2017. A storage key is a
    hash already (behind its owner, and a policy may have one owner only), so its bytes are the row indices. Widening
    tiles the rows, which keeps every estimate.
    """

    def __init__(self) -> None:
        self._width = _WIDTH_MIN
        self._rows = [bytearray(self._width) for _ in range(_ROWS)]
        self._counted = 0

    def expect(self, entries: int) -> None:
        """Make room for ``entries`` distinct keys; never shrinks."""
        while self._width < entries:
            self._rows = [row + row for row in self._rows]
            self._width *= 2

    def add(self, key: StorageKey) -> None:
        """Count one use of ``key``."""
        low = self.count(key)
        if low < _COUNT_MAX:
            for row, place in zip(self._rows, self._places(key), strict=True):
                if row[place] == low:
                    row[place] = low + 1
        self._counted += 1
        if self._counted >= _SAMPLE_PER_ENTRY * self._width:
            self._rows = [bytearray(count >> 1 for count in row) for row in self._rows]
            self._counted //= 2

    def count(self, key: StorageKey) -> int:
        """How often ``key`` came, never less than it did since the last halvings, at most 15."""
        first, second, third, fourth = self._places(key)
        rows = self._rows
        return min(rows[0][first], rows[1][second], rows[2][third], rows[3][fourth])

    def _places(self, key: StorageKey) -> tuple[int, int, int, int]:
        bits = int.from_bytes(key[OWNER_BYTES:], "little")
        mask = self._width - 1
        return bits & mask, bits >> 32 & mask, bits >> 64 & mask, bits >> 96 & mask
