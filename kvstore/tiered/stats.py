"""What the tiered store counts, and whom it tells: plain data and one interface, no metrics library."""

from dataclasses import dataclass, field

from ..key import ContentKey, StorageKey
from ..tier import Breaker, Capacity, RecordInfo

__all__ = ["StageStats", "StoreObserver", "StoreStats", "TierCounters", "TierStats"]


@dataclass(frozen=True, slots=True)
class TierStats:
    """One tier: how full it is and what happened in it since the store was made."""

    name: str
    durable: bool
    capacity: Capacity
    hits: int
    hit_bytes: int
    corrupt: int
    errors: int
    promotions: int
    """Records copied into this tier because of a use: a hit in a slower one, or the second use of a chunk."""
    shared: bool = False
    breaker: Breaker | None = None


@dataclass(frozen=True, slots=True)
class StageStats:
    """What waits to be written to one tier, and what became of what waited."""

    tier: str
    dirty_bytes: int
    dirty_bytes_max: int
    dirty_records: int
    written: int
    failures: int
    """Records that the tier refused."""
    dropped: int
    """Records that do not go to the tier because too much waited for it."""
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The store as a whole. A read that no tier could answer is one of ``misses``, whatever the reason.

    ``dirty_bytes``, ``dirty_records`` and ``write_behind_failures`` are of the local tiers; ``stages`` tells of each.
    """

    tiers: tuple[TierStats, ...]
    misses: int
    puts: int
    put_bytes: int
    dirty_bytes: int
    dirty_records: int
    write_behind_hits: int
    """Reads answered from the queue of records not yet durable."""
    write_behind_failures: int
    """Records acknowledged as ``memory`` that a durable tier then refused."""
    stages: tuple[StageStats, ...] = ()
    expired: int = 0
    """Records that the sweep freed because their time was over."""
    pinned_bytes: int = 0
    pinned: int = 0
    leases: int = 0
    admitted: int = 0
    deferred: int = 0
    """Records kept off the disk at their first use."""
    promotions_dropped: int = 0
    """Promotions and prefetches not even tried because too many were waiting."""


class StoreObserver:
    """Told what the store does, as it does it, on its event loop; a method overridden must not block or raise."""

    def on_hit(self, tier: str, size_bytes: int) -> None:
        """A read, or several that were told of together, was answered with ``size_bytes`` from ``tier``."""

    def on_read(self, tier: str, size_bytes: int, seconds: float, concurrent: int) -> None:
        """``tier`` took so long for ``size_bytes``, with ``concurrent`` reads of it under way, this one included."""

    def on_miss(self) -> None:
        """A read was answered by no tier."""

    def on_put(self, size_bytes: int) -> None:
        """A container was accepted."""

    def on_named(self, key: StorageKey, content_key: ContentKey) -> None:
        """A put named the chunk before it, and this is where that one is kept, if it is."""

    def on_stored(self, tier: str, info: RecordInfo) -> None:
        """A record is in ``tier`` now: put, written behind, or copied there."""

    def on_removed(self, tier: str, key: StorageKey) -> None:
        """A record is not in ``tier`` any more: deleted, expired, damaged, or evicted."""

    def on_corrupt(self, tier: str, key: ContentKey, detail: str) -> None:
        """A copy in ``tier`` was found damaged; it is deleted if it still is damaged when read again."""

    def on_tier_error(self, tier: str, operation: str, detail: str) -> None:
        """A tier refused or failed at something that the store could do without."""

    def on_promotion(self, tier: str, size_bytes: int) -> None:
        """A record was copied into ``tier``."""

    def on_write_behind(self, size_bytes: int) -> None:
        """A record acknowledged as ``memory`` is durable now."""

    def on_write_behind_failed(self, key: ContentKey, detail: str) -> None:
        """A record acknowledged as ``memory`` was refused by a durable tier and stays in memory only."""

    def on_write_behind_dropped(self, tier: str, size_bytes: int) -> None:
        """A record of ``size_bytes`` does not go to ``tier``: too much waits for it already."""


@dataclass(slots=True)
class TierCounters:
    """The running counts behind :class:`TierStats`."""

    hits: int = field(default=0)
    hit_bytes: int = field(default=0)
    corrupt: int = field(default=0)
    errors: int = field(default=0)
    promotions: int = field(default=0)
