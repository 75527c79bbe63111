"""The statistics of a store, put together from where they are counted."""

from ..namespace import Namespace
from ..tier import Tier
from .admission import DiskAdmission
from .cascade import Cascade
from .copies import WRITE_BEHIND
from .pins import Pins
from .promotion import Promoter
from .roles import Roles
from .stats import StoreStats, TierStats
from .tally import Tally
from .tenants import TenantCounters, Tenants, TenantStats, TierHoldings

__all__ = ["Reporting"]


class Reporting:
    """Reads the counters of a store; changes nothing."""

    def __init__(
        self,
        roles: Roles,
        cascade: Cascade,
        tally: Tally,
        tenants: Tenants,
        pins: Pins,
        admission: DiskAdmission,
        promoter: Promoter,
    ) -> None:
        self._roles = roles
        self._cascade = cascade
        self._tally = tally
        self._tenants = tenants
        self._pins = pins
        self._admission = admission
        self._promoter = promoter

    def stats(self) -> StoreStats:
        """All counters now."""
        tally, cascade = self._tally, self._cascade
        return StoreStats(
            tiers=tuple(self._tier(tier) for tier in self._roles.all),
            misses=tally.misses,
            puts=tally.puts,
            put_bytes=tally.put_bytes,
            dirty_bytes=cascade.dirty_bytes,
            dirty_records=len(cascade),
            write_behind_hits=tally.tiers[WRITE_BEHIND].hits,
            write_behind_failures=cascade.failures,
            stages=cascade.stats(),
            expired=tally.expired,
            pinned_bytes=self._pins.pinned_bytes,
            pinned=len(self._pins),
            leases=self._pins.leases,
            admitted=self._admission.admitted,
            deferred=self._admission.deferred,
            promotions_dropped=self._promoter.dropped,
        )

    def tenant(self, namespace: Namespace) -> TenantStats:
        """What one tenant did and has; all zero for one that nobody has asked about yet."""
        owner = namespace.owner
        counters = self._tenants.counters(owner) or TenantCounters()
        held = ((tier.name, tier.holdings(owner)) for tier in self._roles.local)
        return TenantStats(
            namespace.name,
            counters.puts,
            counters.put_bytes,
            counters.hits,
            counters.hit_bytes,
            counters.misses,
            self._pins.owner_bytes(owner),
            tuple(TierHoldings(name, holdings) for name, holdings in held if holdings is not None),
        )

    def _tier(self, tier: Tier) -> TierStats:
        counters = self._tally.tiers[tier.name]
        return TierStats(
            tier.name,
            tier.durable,
            tier.capacity(),
            counters.hits,
            counters.hit_bytes,
            counters.corrupt,
            counters.errors,
            counters.promotions,
            tier.shared,
            tier.breaker(),
        )
