"""The counts of a store as they grow, and whom it tells of them."""

from collections.abc import Iterable

from ..key import ContentKey
from ..outcome import Hit, Outcome
from ..tier import Tier
from .chunk_reader import ChunkRead
from .stats import StoreObserver, TierCounters
from .tenants import TenantCounters

__all__ = ["Tally"]


class Tally:
    """Counters by the name of the tier, and those of the store as a whole."""

    def __init__(self, names: Iterable[str], observer: StoreObserver) -> None:
        self.observer = observer
        self.tiers = {name: TierCounters() for name in names}
        self.misses = 0
        self.puts = 0
        self.put_bytes = 0
        self.expired = 0

    def note_put(self, tenant: TenantCounters, size_bytes: int) -> None:
        """A container was accepted."""
        self.puts += 1
        self.put_bytes += size_bytes
        tenant.puts += 1
        tenant.put_bytes += size_bytes
        self.observer.on_put(size_bytes)

    def note_read(self, tenant: TenantCounters, outcome: Outcome[ChunkRead]) -> None:
        """A read came to an end."""
        if not isinstance(outcome, Hit):
            self.misses += 1
            tenant.misses += 1
            self.observer.on_miss()
            return
        self.note_hit(tenant, outcome.tier, outcome.value.total_bytes)

    def note_hit(self, tenant: TenantCounters, tier: str, size_bytes: int, reads: int = 1) -> None:
        """A read, or as many, was answered by ``tier``."""
        counters = self.tiers[tier]
        counters.hits += reads
        counters.hit_bytes += reads * size_bytes
        tenant.hits += reads
        tenant.hit_bytes += reads * size_bytes
        self.observer.on_hit(tier, reads * size_bytes)

    def note_promotion(self, tier: Tier) -> None:
        """A record was copied into ``tier``."""
        self.tiers[tier.name].promotions += 1

    def note_corrupt(self, tier: str, key: ContentKey, detail: str) -> None:
        """A copy was found damaged."""
        self.tiers[tier].corrupt += 1
        self.observer.on_corrupt(tier, key, detail)

    def note_error(self, tier: str, operation: str, detail: str) -> None:
        """A tier refused or failed at something that the store could do without."""
        self.tiers[tier].errors += 1
        self.observer.on_tier_error(tier, operation, detail)
