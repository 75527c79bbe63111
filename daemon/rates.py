"""How fast a daemon goes: two of its reports and the time between them. Pure."""

from dataclasses import dataclass

from ..clients.pool_wire import PoolReport
from ..clients.wire import DaemonStats, TierStats
from ..kvstore.tier import UNBOUNDED_BYTES

__all__ = ["DaemonRates", "TenantRates", "TierRates", "rates_between"]


@dataclass(frozen=True, slots=True)
class TierRates:
    """One tier now, and what it did per second since the report before. ``fill`` is ``None`` where nothing bounds it.

    ``hit_share`` is the share of all reads that it answered, in the time between the reports; a pool's is of what it
    was asked for. Pools, in other processes, stand before the tiers.
    """

    name: str
    used_bytes: int
    limit_bytes: int | None
    fill: float | None
    chunks: int
    hit_share: float | None
    hits_per_second: float
    read_bytes_per_second: float
    written_bytes_per_second: float
    evictions_per_second: float
    errors_per_second: float
    breaker: str
    dirty_bytes: int


@dataclass(frozen=True, slots=True)
class TenantRates:
    """One tenant now and per second; ``used_bytes`` is on all local tiers."""

    name: str
    puts_per_second: float
    gets_per_second: float
    hit_rate: float | None
    read_bytes_per_second: float
    put_bytes_per_second: float
    used_bytes: int


@dataclass(frozen=True, slots=True)
class DaemonRates:
    """All of it. Rates are zero where ``seconds`` is: there was no report before."""

    version: str
    pid: int
    phase: str
    uptime_seconds: float
    seconds: float
    puts_per_second: float
    gets_per_second: float
    hit_rate: float | None
    hit_rate_since_start: float | None
    read_bytes_per_second: float
    put_bytes_per_second: float
    requests_inflight: int
    bytes_inflight: int
    bytes_inflight_max: int
    dirty_bytes: int
    dirty_bytes_max: int
    leases: int
    pinned_bytes: int
    tiers: tuple[TierRates, ...]
    tenants: tuple[TenantRates, ...]


def rates_between(before: DaemonStats | None, now: DaemonStats) -> DaemonRates:
    """What happened between two reports; of a daemon that was restarted in between, since it started."""
    if before is not None and (before.pid != now.pid or before.uptime_seconds > now.uptime_seconds):
        before = None
    seconds = 0.0 if before is None else now.uptime_seconds - before.uptime_seconds
    old = now if before is None else before

    def rate(later: int, earlier: int) -> float:
        return (later - earlier) / seconds if seconds > 0 else 0.0

    reads = now.hits + now.misses - old.hits - old.misses
    tenants = {item.namespace: item for item in old.tenants}
    rows = []
    for tenant in now.tenants:
        was = tenants.get(tenant.namespace)
        hits, misses = (0, 0) if was is None else (was.hits, was.misses)
        asked = tenant.hits + tenant.misses - hits - misses
        rows.append(
            TenantRates(
                tenant.namespace,
                rate(tenant.puts, 0 if was is None else was.puts),
                rate(tenant.hits + tenant.misses, hits + misses),
                _share(tenant.hits - hits, asked),
                rate(tenant.hit_bytes, 0 if was is None else was.hit_bytes),
                rate(tenant.put_bytes, 0 if was is None else was.put_bytes),
                sum(tier.used_bytes for tier in tenant.tiers),
            )
        )
    rows.sort(key=lambda row: (-row.gets_per_second - row.puts_per_second, -row.used_bytes, row.name))
    tiers = tuple(_tier(now, old, index, seconds, reads) for index in range(len(now.tiers)))
    pools = tuple(_pool(pool, old, seconds) for pool in now.pools)
    return DaemonRates(
        version=now.version,
        pid=now.pid,
        phase=now.phase,
        uptime_seconds=now.uptime_seconds,
        seconds=seconds,
        puts_per_second=rate(now.puts, old.puts),
        gets_per_second=rate(now.hits + now.misses, old.hits + old.misses),
        hit_rate=_share(now.hits - old.hits, reads),
        hit_rate_since_start=_share(now.hits, now.hits + now.misses),
        read_bytes_per_second=sum(tier.read_bytes_per_second for tier in tiers),
        put_bytes_per_second=rate(now.put_bytes, old.put_bytes),
        requests_inflight=now.requests_inflight,
        bytes_inflight=now.bytes_inflight,
        bytes_inflight_max=now.bytes_inflight_max,
        dirty_bytes=now.dirty_bytes,
        dirty_bytes_max=now.dirty_bytes_max,
        leases=now.leases,
        pinned_bytes=now.pinned_bytes,
        tiers=pools + tiers,
        tenants=tuple(rows),
    )


def _tier(now: DaemonStats, old: DaemonStats, index: int, seconds: float, reads: int) -> TierRates:
    tier = now.tiers[index]
    was = next((item for item in old.tiers if item.name == tier.name), tier)
    bounded = tier.limit_bytes != UNBOUNDED_BYTES

    def rate(later: int, earlier: int) -> float:
        return (later - earlier) / seconds if seconds > 0 else 0.0

    return TierRates(
        tier.name,
        tier.used_bytes,
        tier.limit_bytes if bounded else None,
        tier.used_bytes / tier.limit_bytes if bounded and tier.limit_bytes else None,
        tier.records,
        _share(tier.hits - was.hits, reads),
        rate(tier.hits, was.hits),
        rate(tier.hit_bytes, was.hit_bytes),
        rate(_written_bytes(now, tier), _written_bytes(old, was)),
        rate(tier.evictions, was.evictions),
        rate(tier.errors, was.errors),
        tier.breaker,
        sum(stage.dirty_bytes for stage in now.stages if stage.tier == tier.name),
    )


def _pool(pool: PoolReport, old: DaemonStats, seconds: float) -> TierRates:
    """A pool of decoded chunks in another process, which answers before any tier is asked."""
    was = next((item for item in old.pools if (item.device, item.pid) == (pool.device, pool.pid)), pool)
    found, asked = pool.hits - was.hits, pool.hits + pool.misses - was.hits - was.misses
    return TierRates(
        f"{pool.device} of {pool.pid}",
        pool.used_bytes,
        pool.limit_bytes,
        pool.used_bytes / pool.limit_bytes,
        pool.chunks,
        _share(found, asked),
        found / seconds if seconds > 0 else 0.0,
        read_bytes_per_second=0.0,
        written_bytes_per_second=0.0,
        evictions_per_second=(pool.evictions - was.evictions) / seconds if seconds > 0 else 0.0,
        errors_per_second=0.0,
        breaker="none",
        dirty_bytes=pool.dirty_bytes,
    )


def _written_bytes(stats: DaemonStats, tier: TierStats) -> int:
    """Bytes written behind to a tier; a volatile one takes every put."""
    if not tier.durable and not tier.shared:
        return stats.put_bytes
    return sum(stage.written_bytes for stage in stats.stages if stage.tier == tier.name)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole > 0 else None
