"""LRU with one-bit discard predictions: follows them while they pay, and is an LRU where they do not.

After Antoniadis et al., "Paging with succinct predictions" (ICML 2023): with every use somebody says whether an optimal
cache would drop the chunk before its next use ("this conversation is over"). Chunks so marked go first, oldest first;
where all marks are right nothing else ever has to go and the cache is optimal. Robustness is by comparison: the
policy also keeps the list of what an LRU of its size would hold, and adds up the recompute cost that each would have
saved. It follows the hints until they have cost 2 % of what the LRU saved, and again when that has become 1 % of it,
the next time half a percent, and so on.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey
from .base import EvictionPolicy
from .cost import RecomputeCost

__all__ = ["HintedPolicy"]

_LOSS_SHARE: Final = 0.02
"""What of the LRU's savings may be lost before the hints are ignored; and what may be won to be lost again later."""


@dataclass(frozen=True, slots=True)
class _Known:
    size_bytes: int
    attributes: ChunkAttributes


class HintedPolicy(EvictionPolicy):
    """O(1) per call. It remembers at most as many bytes of records as are resident."""

    name = "hinted"
    resident_bytes = 304

    def __init__(self, cost: RecomputeCost | None = None) -> None:
        self._cost = cost or RecomputeCost()
        self._residents: OrderedDict[StorageKey, _Known] = OrderedDict()
        self._discards: OrderedDict[StorageKey, None] = OrderedDict()
        """Residents predicted not to be worth keeping, least recently hinted first."""
        self._shadow: OrderedDict[StorageKey, int] = OrderedDict()
        """What an LRU of this size would hold, and its size."""
        self._shadow_bytes = 0
        self._total_bytes = 0
        self._shadow_saved = 0.0
        self._balance = 0.0
        """Cost saved beyond what the LRU would have saved; at most ``_LOSS_SHARE`` of that is kept to be lost again."""
        self._follows = True
        self._disappointments = 0

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Place ``key`` at the young end, and count it as lost if the LRU would have had it."""
        old = self._residents.pop(key, None)
        known = _Known(size_bytes, attributes)
        self._residents[key] = known
        self._discards.pop(key, None)
        self._total_bytes += size_bytes - (0 if old is None else old.size_bytes)
        if old is None and self._shadowed(key, known):
            cost = self._cost.of(attributes)
            self._settle(-cost, cost)
        self._use_shadow(key, size_bytes)

    def record_use(self, key: StorageKey) -> None:
        """Move ``key`` to the young end, and count it as won if the LRU would not have had it."""
        known = self._residents.get(key)
        if known is None:
            return
        self._residents.move_to_end(key)
        self._discards.pop(key, None)
        cost = self._cost.of(known.attributes)
        if self._shadowed(key, known):
            self._settle(0.0, cost)
        else:
            self._settle(cost, 0.0)
        self._use_shadow(key, known.size_bytes)

    def record_hint(self, key: StorageKey, *, discard: bool) -> None:
        """Mark ``key`` until its next use, or take the mark away."""
        if discard and key in self._residents:
            self._discards[key] = None
        else:
            self._discards.pop(key, None)

    def record_delete(self, key: StorageKey) -> None:
        """Take ``key`` out."""
        self._drop(key)
        self._shadow_bytes -= self._shadow.pop(key, 0)

    def record_evict(self, key: StorageKey) -> None:
        """Take ``key`` out; the LRU may still have it."""
        self._drop(key)

    def victim(self) -> StorageKey | None:
        """The oldest marked record while the hints are followed, else the least recently used."""
        if self.follows_hints and self._discards:
            return next(iter(self._discards))
        return next(iter(self._residents), None)

    @property
    def follows_hints(self) -> bool:
        """Whether the hints have cost no more than they may."""
        return self._follows

    @property
    def remembered(self) -> int:
        """Records that the LRU would hold and that are not resident."""
        return sum(key not in self._residents for key in self._shadow)

    def size_of(self, key: StorageKey) -> int:
        """The size ``key`` was last put with."""
        known = self._residents.get(key)
        return 0 if known is None else known.size_bytes

    def attributes_of(self, key: StorageKey) -> ChunkAttributes:
        """All of them."""
        known = self._residents.get(key)
        return UNATTRIBUTED if known is None else known.attributes

    @property
    def total_bytes(self) -> int:
        """The sum of all sizes."""
        return self._total_bytes

    def __contains__(self, key: object) -> bool:
        return key in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    def _drop(self, key: StorageKey) -> None:
        known = self._residents.pop(key, None)
        if known is not None:
            self._total_bytes -= known.size_bytes
            self._discards.pop(key, None)

    def _shadowed(self, key: StorageKey, known: _Known) -> bool:
        """Whether the LRU would have the chunk, and the one before it, without which it is worthless."""
        parent = known.attributes.parent
        return key in self._shadow and (parent is None or parent in self._shadow)

    def _settle(self, won: float, shadow_saved: float) -> None:
        self._shadow_saved += shadow_saved
        allowed = _LOSS_SHARE * self._shadow_saved
        self._balance = min(self._balance + won, allowed)
        if self._follows and self._balance < -allowed:
            self._follows = False
            self._disappointments += 1
        elif not self._follows and self._balance >= -allowed / 2.0**self._disappointments:
            self._follows = True

    def _use_shadow(self, key: StorageKey, size_bytes: int) -> None:
        self._shadow_bytes += size_bytes - self._shadow.pop(key, 0)
        self._shadow[key] = size_bytes
        while self._shadow_bytes > self._total_bytes:
            self._shadow_bytes -= self._shadow.popitem(last=False)[1]
