"""W-TinyLFU: a small LRU window, a segmented LRU, and a frequency sketch at the door between them.

Einziger, Friedman and Manes, "TinyLFU: a highly efficient cache admission policy", ACM ToS 2017, with the shares of
Caffeine: the window holds 1 % of the bytes, four fifths of the rest are protected.
"""

from collections import OrderedDict
from typing import Final

from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey
from .base import EvictionPolicy
from .sketch import FrequencySketch

__all__ = ["WTinyLfuPolicy"]

_WINDOW_SHARE: Final = 0.01
_PROTECTED_SHARE: Final = 0.80


class _Segment(OrderedDict[StorageKey, int]):
    """Key to size, least recently used first, with the sum of the sizes."""

    total_bytes = 0

    def add(self, key: StorageKey, size_bytes: int) -> None:
        self[key] = size_bytes
        self.total_bytes += size_bytes

    def take(self, key: StorageKey) -> int:
        size_bytes = self.pop(key)
        self.total_bytes -= size_bytes
        return size_bytes


class WTinyLfuPolicy(EvictionPolicy):
    """The record that last left the window goes, unless it came more often than the oldest on probation. O(1)."""

    name = "w-tinylfu"
    resident_bytes = 112

    def __init__(self) -> None:
        self._window = _Segment()
        self._probation = _Segment()
        self._protected = _Segment()
        self._sketch = FrequencySketch()
        self._candidate: StorageKey | None = None
        """The record that entered probation last and was not compared with a victim yet."""

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Enter the window, whose oldest enter probation."""
        segment = self._segment_of(key)
        if segment is not None:
            segment.total_bytes += size_bytes - segment[key]
            segment[key] = size_bytes
            self.record_use(key)
            return
        self._window.add(key, size_bytes)
        self._sketch.expect(len(self))
        self._sketch.add(key)
        while len(self._window) > 1 and self._window.total_bytes > _WINDOW_SHARE * self.total_bytes:
            oldest = next(iter(self._window))
            self._probation.add(oldest, self._window.take(oldest))
            self._candidate = oldest

    def record_use(self, key: StorageKey) -> None:
        """Count the use; from probation to protected, whose oldest go back to probation."""
        segment = self._segment_of(key)
        if segment is None:
            return
        self._sketch.add(key)
        if segment is not self._probation:
            segment.move_to_end(key)
            return
        self._candidate = None if key == self._candidate else self._candidate
        self._protected.add(key, self._probation.take(key))
        main_bytes = self._protected.total_bytes + self._probation.total_bytes
        while len(self._protected) > 1 and self._protected.total_bytes > _PROTECTED_SHARE * main_bytes:
            oldest = next(iter(self._protected))
            self._probation.add(oldest, self._protected.take(oldest))

    def record_delete(self, key: StorageKey) -> None:
        """Take ``key`` out; the sketch keeps its counts."""
        segment = self._segment_of(key)
        if segment is not None:
            segment.take(key)
        if key == self._candidate:
            self._candidate = None

    def record_evict(self, key: StorageKey) -> None:
        """Take ``key`` out; the candidate has been compared."""
        self.record_delete(key)
        self._candidate = None

    def victim(self) -> StorageKey | None:
        """The candidate, or the oldest on probation where that came less often."""
        oldest = next((next(iter(part)) for part in (self._probation, self._protected, self._window) if part), None)
        candidate = self._candidate
        if candidate is None or oldest is None:
            return oldest
        return oldest if self._sketch.count(candidate) > self._sketch.count(oldest) else candidate

    def size_of(self, key: StorageKey) -> int:
        """The size ``key`` was last put with."""
        segment = self._segment_of(key)
        return 0 if segment is None else segment[key]

    @property
    def total_bytes(self) -> int:
        """The sum of all sizes."""
        return self._window.total_bytes + self._probation.total_bytes + self._protected.total_bytes

    def __contains__(self, key: object) -> bool:
        return key in self._window or key in self._probation or key in self._protected

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def _segment_of(self, key: StorageKey) -> _Segment | None:
        for segment in (self._window, self._probation, self._protected):
            if key in segment:
                return segment
        return None
