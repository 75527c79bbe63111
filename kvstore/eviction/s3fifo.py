"""S3-FIFO: two queues and a ghost (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).

Newcomers enter a small queue of a tenth of the bytes. Whoever is used more than once there moves to the main queue when
its turn comes, the others go and are remembered; a newcomer that is remembered enters the main queue at once. The main
queue gives whoever was used another round, at most three. A tenth is of what is resident, for a policy is not told
how large its tier is.
"""

from collections import OrderedDict
from typing import Final

from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey
from .base import EvictionPolicy

__all__ = ["S3FifoPolicy"]

_SMALL_SHARE: Final = 10
_USES_MAX: Final = 3
_USES_TO_MAIN: Final = 2


class S3FifoPolicy(EvictionPolicy):
    """Algorithm 1 of the paper; O(1) amortised, and as many keys remembered as the main queue holds."""

    name = "s3-fifo"
    resident_bytes = 160

    def __init__(self) -> None:
        self._sizes: dict[StorageKey, int] = {}
        self._small: OrderedDict[StorageKey, int] = OrderedDict()
        self._main: OrderedDict[StorageKey, int] = OrderedDict()
        """Both queues: key to uses, oldest first."""
        self._ghost: OrderedDict[StorageKey, None] = OrderedDict()
        self._small_bytes = 0
        self._total_bytes = 0

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Enter the small queue, or the main one if ``key`` was evicted not long ago."""
        old_bytes = self._sizes.get(key)
        if old_bytes is not None:
            self.record_use(key)
            self._small_bytes += size_bytes - old_bytes if key in self._small else 0
            self._total_bytes += size_bytes - old_bytes
        else:
            self._total_bytes += size_bytes
            if key in self._ghost:
                del self._ghost[key]
                self._main[key] = 0
            else:
                self._small[key] = 0
                self._small_bytes += size_bytes
        self._sizes[key] = size_bytes

    def record_use(self, key: StorageKey) -> None:
        """Count up to three uses; no queue moves."""
        queue = self._small if key in self._small else self._main
        uses = queue.get(key)
        if uses is not None and uses < _USES_MAX:
            queue[key] = uses + 1

    def record_delete(self, key: StorageKey) -> None:
        """Take ``key`` out."""
        self._ghost.pop(key, None)
        size_bytes = self._sizes.pop(key, None)
        if size_bytes is not None:
            self._total_bytes -= size_bytes
            if self._small.pop(key, None) is not None:
                self._small_bytes -= size_bytes
            else:
                del self._main[key]

    def record_evict(self, key: StorageKey) -> None:
        """Take ``key`` out and remember it if it never left the small queue."""
        remembered = key in self._small
        self.record_delete(key)
        if remembered:
            self._ghost[key] = None
        while len(self._ghost) > max(1, len(self._main)):
            self._ghost.popitem(last=False)

    def victim(self) -> StorageKey | None:
        """The oldest of the small queue while that has its tenth, else of the main one; the used ones move on."""
        while self._small and (not self._main or self._small_bytes * _SMALL_SHARE >= self._total_bytes):
            key, uses = next(iter(self._small.items()))
            if uses < _USES_TO_MAIN:
                return key
            del self._small[key]
            self._small_bytes -= self._sizes[key]
            self._main[key] = 0
        while self._main:
            key, uses = next(iter(self._main.items()))
            if uses == 0:
                return key
            self._main[key] = uses - 1
            self._main.move_to_end(key)
        return next(iter(self._small), None)

    def size_of(self, key: StorageKey) -> int:
        """The size ``key`` was last put with."""
        return self._sizes.get(key, 0)

    @property
    def remembered(self) -> int:
        """Keys in the ghost queue."""
        return len(self._ghost)

    @property
    def total_bytes(self) -> int:
        """The sum of all sizes."""
        return self._total_bytes

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)
