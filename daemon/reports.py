"""What the store says of itself, as the records that clients read (:mod:`kvloom.clients.wire`)."""

from ..clients import tenancy, wire
from ..clients.plan_wire import PlannerStats, QualityStats
from ..clients.pool_wire import PoolReport
from ..codec.container import ContainerHeader
from ..codec.level import EXACT
from ..kvstore.namespace import Namespace
from ..kvstore.tier import NEVER
from ..kvstore.tiered.stats import StageStats, StoreStats, TierStats
from ..kvstore.tiered.store import StoredChunk
from ..kvstore.tiered.tenants import TenantStats
from .admission import Admission

__all__ = ["chunk_detail", "chunk_entry", "daemon_stats", "tenant_stats"]


def chunk_entry(stored: StoredChunk) -> wire.ChunkEntry:
    """A stored chunk as a list shows it."""
    expires_at_ms = None if stored.expires_at_ms == NEVER else stored.expires_at_ms
    return wire.ChunkEntry(stored.key, stored.payload_bytes, stored.stored_at_ms, stored.tiers, expires_at_ms)


def chunk_detail(stored: StoredChunk, header: ContainerHeader) -> wire.ChunkDetail:
    """A stored chunk with what its container's ``header`` says."""
    lossy = any(level != EXACT for level in header.levels)
    return wire.ChunkDetail(
        chunk=chunk_entry(stored),
        tokens=header.tokens,
        first_position=header.first_position,
        layers=len(header.layout.layers),
        dtype=header.layout.dtype.value,
        layout_digest=header.layout.digest(),
        raw_bytes=header.tokens * header.layout.bytes_per_token,
        levels=tuple(
            wire.LevelBytes(level, sum(item.length for item in header.segments if item.level == level))
            for level in header.levels
        ),
        codec=header.codec if lossy else None,
        profile_digest=header.profile_digest if lossy else None,
    )


def _tier_stats(stats: TierStats) -> wire.TierStats:
    """A tier's figures."""
    return wire.TierStats(
        name=stats.name,
        durable=stats.durable,
        limit_bytes=stats.capacity.limit_bytes,
        used_bytes=stats.capacity.used_bytes,
        records=stats.capacity.records,
        hits=stats.hits,
        hit_bytes=stats.hit_bytes,
        corrupt=stats.corrupt,
        errors=stats.errors,
        evictions=stats.capacity.evictions,
        promotions=stats.promotions,
        shared=stats.shared,
        eviction=stats.capacity.eviction,
        breaker="none" if stats.breaker is None else "open" if stats.breaker.is_open else "closed",
        breaker_openings=0 if stats.breaker is None else stats.breaker.openings,
    )


def _stage_stats(stats: StageStats) -> tenancy.StageStats:
    """What waits for a tier."""
    return tenancy.StageStats(
        stats.tier,
        stats.dirty_bytes,
        stats.dirty_bytes_max,
        stats.dirty_records,
        stats.written,
        stats.failures,
        stats.dropped,
        stats.written_bytes,
    )


def tenant_stats(stats: TenantStats) -> tenancy.TenantStats:
    """A tenant's figures."""
    return tenancy.TenantStats(
        stats.namespace,
        stats.puts,
        stats.put_bytes,
        stats.hits,
        stats.hit_bytes,
        stats.misses,
        stats.pinned_bytes,
        tuple(
            tenancy.TenantTier(
                item.tier,
                item.holdings.used_bytes,
                item.holdings.records,
                item.holdings.evictions,
                item.holdings.limit_bytes,
            )
            for item in stats.tiers
        ),
    )


def daemon_stats(
    store: StoreStats,
    health: wire.Health,
    admission: Admission,
    namespace: Namespace,
    *,
    uptime_seconds: float,
    dirty_bytes_max: int,
    profiles: int,
    tenants: tuple[tenancy.TenantStats, ...],
    pools: tuple[PoolReport, ...],
    planner: PlannerStats,
    quality: QualityStats,
) -> wire.DaemonStats:
    """The whole daemon's figures, as whoever asks from ``namespace`` is told them."""
    return wire.DaemonStats(
        version=health.version,
        pid=health.pid,
        phase=health.phase,
        uptime_seconds=uptime_seconds,
        namespace=namespace.name,
        requests_inflight=admission.requests,
        bytes_inflight=admission.inflight_bytes,
        bytes_inflight_max=admission.inflight_bytes_max,
        dirty_bytes=store.dirty_bytes,
        dirty_bytes_max=dirty_bytes_max,
        hits=sum(tier.hits for tier in store.tiers) + store.write_behind_hits,
        misses=store.misses,
        puts=store.puts,
        put_bytes=store.put_bytes,
        write_behind_failures=store.write_behind_failures,
        profiles=profiles,
        tiers=tuple(_tier_stats(item) for item in store.tiers),
        codec=namespace.codec,
        stages=tuple(_stage_stats(item) for item in store.stages),
        tenants=tenants,
        expired=store.expired,
        pinned_bytes=store.pinned_bytes,
        leases=store.leases,
        admitted=store.admitted,
        deferred=store.deferred,
        promotions_dropped=store.promotions_dropped,
        pools=pools,
        planner=planner,
        quality=quality,
    )
