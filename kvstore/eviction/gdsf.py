"""GDSF with recompute cost: greedy dual, by size and frequency, on the tree of prefixes.

Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", HP Labs 1998. The cost
of a chunk is its prefill, which grows with its position. A chunk is worthless without the ones before it, so
a parent stays while a child is resident, and a child whose parent is gone goes first.
"""

import heapq
from dataclasses import dataclass, field

from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey
from .base import EvictionPolicy
from .cost import RecomputeCost

__all__ = ["GdsfPolicy"]

_HEAP_SLACK = 64


@dataclass(slots=True, eq=False)
class _Resident:
    size_bytes: int
    attributes: ChunkAttributes
    uses: int = 0
    entry: tuple[float, int] = field(default=(0.0, 0))
    """Priority and turn of the one heap entry that counts."""


class GdsfPolicy(EvictionPolicy):
    """Priority is ``floor + uses · cost / size``; the floor is the last victim's. O(log n), nothing remembered."""

    name = "gdsf"
    resident_bytes = 416

    def __init__(self, cost: RecomputeCost | None = None) -> None:
        self._cost = cost or RecomputeCost()
        self._residents: dict[StorageKey, _Resident] = {}
        self._children: dict[StorageKey, int] = {}
        """Resident children of a key, which may itself be gone."""
        self._heap: list[tuple[float, int, StorageKey]] = []
        self._floor = 0.0
        self._turn = 0
        self._total_bytes = 0

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Enter at the floor."""
        old = self._residents.get(key)
        uses = 0 if old is None else old.uses
        if old is not None:
            self._remove(key)
        self._residents[key] = _Resident(size_bytes, attributes, uses)
        self._total_bytes += size_bytes
        if attributes.parent is not None:
            self._children[attributes.parent] = self._children.get(attributes.parent, 0) + 1
        self.record_use(key)

    def record_use(self, key: StorageKey) -> None:
        """Count the use and raise the priority."""
        resident = self._residents.get(key)
        if resident is None:
            return
        resident.uses += 1
        parent = resident.attributes.parent
        rooted = parent is None or parent in self._residents
        cost = self._cost.of(resident.attributes)
        worth = resident.uses * cost / max(resident.size_bytes, 1) if rooted else 0.0
        self._turn += 1
        resident.entry = (self._floor + worth, self._turn)
        self._push(key, resident)

    def record_delete(self, key: StorageKey) -> None:
        """Take ``key`` out."""
        if key in self._residents:
            self._remove(key)

    def record_evict(self, key: StorageKey) -> None:
        """Take ``key`` out and raise the floor to it."""
        resident = self._residents.get(key)
        if resident is not None:
            self._floor = max(self._floor, resident.entry[0])
            self._remove(key)

    def victim(self) -> StorageKey | None:
        """The lowest priority among records without resident children."""
        heap = self._heap
        while heap:
            priority, turn, key = heap[0]
            resident = self._residents.get(key)
            if resident is None or resident.entry != (priority, turn) or self._children.get(key):
                heapq.heappop(heap)
            else:
                return key
        return next(iter(self._residents), None)  # parents in a circle: keys that no honest client computes

    def size_of(self, key: StorageKey) -> int:
        """The size ``key`` was last put with."""
        resident = self._residents.get(key)
        return 0 if resident is None else resident.size_bytes

    def attributes_of(self, key: StorageKey) -> ChunkAttributes:
        """All of them."""
        resident = self._residents.get(key)
        return UNATTRIBUTED if resident is None else resident.attributes

    @property
    def total_bytes(self) -> int:
        """The sum of all sizes."""
        return self._total_bytes

    def __contains__(self, key: object) -> bool:
        return key in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    def _push(self, key: StorageKey, resident: _Resident) -> None:
        if len(self._heap) > 2 * len(self._residents) + _HEAP_SLACK:
            self._heap = [(*item.entry, name) for name, item in self._residents.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (*resident.entry, key))

    def _remove(self, key: StorageKey) -> None:
        resident = self._residents.pop(key)
        self._total_bytes -= resident.size_bytes
        parent = resident.attributes.parent
        if parent is None:
            return
        self._children[parent] -= 1
        if not self._children[parent]:
            del self._children[parent]
            above = self._residents.get(parent)
            if above is not None:
                self._push(parent, above)
