"""What tenants do to a store and what waits to be written in it, as records on the wire (:mod:`.wire`)."""

from dataclasses import dataclass

__all__ = ["StageStats", "TenantStats", "TenantTier"]


@dataclass(frozen=True, slots=True)
class StageStats:
    """What waits to be written to one tier, and what became of what waited since the daemon started."""

    tier: str
    dirty_bytes: int
    dirty_bytes_max: int
    dirty_records: int
    written: int
    failures: int
    dropped: int
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TenantTier:
    """What a tenant holds of one tier; ``limit_bytes`` is its quota, where it has one."""

    tier: str
    used_bytes: int
    records: int
    evictions: int
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TenantStats:
    """One namespace of this daemon; counts are since it started."""

    namespace: str
    puts: int
    put_bytes: int
    hits: int
    hit_bytes: int
    misses: int
    pinned_bytes: int
    tiers: tuple[TenantTier, ...]
