"""Least recently used: the record whose last put or use lies furthest back goes first."""

from collections import OrderedDict

from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey
from .base import EvictionPolicy

__all__ = ["LruPolicy"]


class LruPolicy(EvictionPolicy):
    """One ordered dictionary, oldest use first; every call is O(1)."""

    name = "lru"
    resident_bytes = 112

    def __init__(self) -> None:
        self._sizes: OrderedDict[StorageKey, int] = OrderedDict()
        self._total_bytes = 0

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Place ``key`` at the young end."""
        self._total_bytes += size_bytes - self._sizes.get(key, 0)
        self._sizes[key] = size_bytes
        self._sizes.move_to_end(key)

    def record_use(self, key: StorageKey) -> None:
        """Move ``key`` to the young end."""
        if key in self._sizes:
            self._sizes.move_to_end(key)

    def record_delete(self, key: StorageKey) -> None:
        """Take ``key`` out."""
        self._total_bytes -= self._sizes.pop(key, 0)

    def victim(self) -> StorageKey | None:
        """The key at the old end."""
        return next(iter(self._sizes), None)

    def size_of(self, key: StorageKey) -> int:
        """The size ``key`` was last put with."""
        return self._sizes.get(key, 0)

    @property
    def total_bytes(self) -> int:
        """The sum of all sizes."""
        return self._total_bytes

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)
