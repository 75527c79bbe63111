"""What the SSD tier knows in memory: which records are resident, where they lie, who was used when.

The policy is the list of residents and their charges, the dictionary of places their order of use. The event loop, the
readers and the writer all come here, so every method takes the lock, briefly. The order of use is written down when
the tier is closed: after a crash the order of eviction is that of the writes.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence

from .eviction import EvictionPolicy
from .key import StorageKey
from .ssd_segment import Place

__all__ = ["SsdCatalogue"]


class SsdCatalogue:
    """Thread-safe; ``budget_bytes`` is what all residents together may be charged."""

    def __init__(self, policy: EvictionPolicy, budget_bytes: int) -> None:
        self._policy = policy
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._places: dict[StorageKey, int] = {}
        self._evictions = 0
        self._damaged = 0

    @property
    def evictions(self) -> int:
        """Records evicted since the tier was opened."""
        return self._evictions

    @property
    def damaged(self) -> int:
        """Records found damaged and given up while their segment was reclaimed."""
        return self._damaged

    @property
    def used_bytes(self) -> int:
        """What all residents are charged."""
        with self._lock:
            return self._policy.total_bytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._places)

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._places

    def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """For each key, whether it is resident."""
        with self._lock:
            return [key in self._places for key in keys]

    def place_of(self, key: StorageKey) -> Place | None:
        """Where the record lies."""
        with self._lock:
            packed = self._places.get(key)
        return None if packed is None else Place.unpacked(packed)

    def keys(self) -> list[StorageKey]:
        """All residents, least recently used first."""
        with self._lock:
            return list(self._places)

    def keys_by_place(self) -> list[StorageKey]:
        """All residents in the order of the log."""
        with self._lock:
            places = dict(self._places)
        return sorted(places, key=places.__getitem__)

    def load(
        self, keys: Iterable[StorageKey], places: Mapping[StorageKey, int], sizes: Mapping[StorageKey, int]
    ) -> None:
        """Fill an empty catalogue with ``keys``, least recently used first: their packed places and charges."""
        with self._lock:
            for key in keys:
                self._policy.record_put(key, sizes[key])
                self._places[key] = places[key]

    def note_use(self, key: StorageKey) -> None:
        """A record was read."""
        with self._lock:
            packed = self._places.pop(key, None)
            if packed is not None:
                self._places[key] = packed
                self._policy.record_use(key)

    def note_put(self, key: StorageKey, size_bytes: int, place: Place) -> None:
        """A record is durable at ``place``."""
        with self._lock:
            self._places.pop(key, None)
            self._places[key] = place.packed()
            self._policy.record_put(key, size_bytes)

    def note_delete(self, key: StorageKey) -> None:
        """A deletion is durable."""
        with self._lock:
            self._places.pop(key, None)
            self._policy.record_delete(key)

    def evict_to_budget(self) -> None:
        """Forget records until the rest is within the budget."""
        with self._lock:
            self._evict_down_to(self._budget_bytes)

    def give_up(self, size_bytes: int, *, keep_bytes: int = 0) -> None:
        """Forget records of at least ``size_bytes`` together, down to ``keep_bytes``: they would have to be moved."""
        with self._lock:
            self._evict_down_to(max(keep_bytes, self._policy.total_bytes - size_bytes))

    def holds(self, key: StorageKey, place: Place) -> bool:
        """Whether the record at ``place`` is the resident one of ``key``."""
        with self._lock:
            return self._places.get(key) == place.packed()

    def note_move(self, key: StorageKey, place: Place) -> None:
        """A resident record lies at ``place`` from now on; not a use."""
        with self._lock:
            if key in self._places:
                self._places[key] = place.packed()

    def note_lost(self, key: StorageKey, *, damaged: bool) -> None:
        """A record is gone: to make room, or because it was ``damaged``."""
        with self._lock:
            if self._places.pop(key, None) is None:
                return
            if damaged:
                self._damaged += 1
                self._policy.record_delete(key)
            else:
                self._evictions += 1
                self._policy.record_evict(key)

    def _evict_down_to(self, size_bytes: int) -> None:
        while self._policy.total_bytes > size_bytes:
            key = self._policy.victim()
            if key is None:
                return
            self._policy.record_evict(key)
            self._places.pop(key, None)
            self._evictions += 1
