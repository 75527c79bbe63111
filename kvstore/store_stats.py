"""What the tiered store counts, and whom it tells: plain data and one interface, no metrics library."""

from dataclasses import dataclass, field

from .key import ContentKey
from .tier import Capacity

__all__ = ["StoreObserver", "StoreStats", "TierCounters", "TierStats"]


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
    """Records copied into this tier because a slower one had the hit."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The store as a whole. A read that no tier could answer is one of ``misses``, whatever the reason."""

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


class StoreObserver:
    """Told what the store does, as it does it; every method may be overridden and must not block or raise."""

    def on_hit(self, tier: str, size_bytes: int) -> None:
        """A read was answered with ``size_bytes`` from ``tier``."""

    def on_miss(self) -> None:
        """A read was answered by no tier."""

    def on_put(self, size_bytes: int) -> None:
        """A container was accepted."""

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


@dataclass(slots=True)
class TierCounters:
    """The running counts behind :class:`TierStats`."""

    hits: int = field(default=0)
    hit_bytes: int = field(default=0)
    corrupt: int = field(default=0)
    errors: int = field(default=0)
    promotions: int = field(default=0)
