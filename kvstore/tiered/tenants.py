"""What each tenant did: its counters, and the namespace by which the store knows it."""

from dataclasses import dataclass

from ... import limits
from ..key import OwnerId
from ..namespace import Namespace
from ..tier import Holdings

__all__ = ["TenantCounters", "TenantStats", "Tenants", "TierHoldings"]


@dataclass(slots=True)
class TenantCounters:
    """The running counts behind :class:`TenantStats`."""

    puts: int = 0
    put_bytes: int = 0
    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0


@dataclass(frozen=True, slots=True)
class TierHoldings:
    """What a tenant holds of one tier."""

    tier: str
    holdings: Holdings


@dataclass(frozen=True, slots=True)
class TenantStats:
    """One tenant: what it did since the store was made, and what it holds now of the tiers that can say so."""

    namespace: str
    puts: int
    put_bytes: int
    hits: int
    hit_bytes: int
    misses: int
    pinned_bytes: int
    tiers: tuple[TierHoldings, ...]


class Tenants:
    """Counters by owner, up to a limit; further owners share one set, so that nobody can make the list grow."""

    def __init__(self, owners_max: int = limits.OWNERS_COUNTED_MAX) -> None:
        self._owners_max = owners_max
        self._namespaces: dict[OwnerId, Namespace] = {}
        self._counters: dict[OwnerId, TenantCounters] = {}
        self.others = TenantCounters()

    def of(self, namespace: Namespace) -> TenantCounters:
        """The counters of ``namespace``, which is known from now on."""
        owner = namespace.owner
        counters = self._counters.get(owner)
        if counters is None:
            if len(self._counters) >= self._owners_max:
                return self.others
            counters = self._counters[owner] = TenantCounters()
            self._namespaces[owner] = namespace
        return counters

    def namespaces(self) -> list[Namespace]:
        """Those with counters of their own."""
        return list(self._namespaces.values())

    def counters(self, owner: OwnerId) -> TenantCounters | None:
        """The counters of a known owner."""
        return self._counters.get(owner)
