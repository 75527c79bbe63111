"""The daemon's state as Prometheus metrics: put together anew at every scrape, from what the service says of itself."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import limits
from ..clients.plan_wire import PlannerStats, QualityStats
from ..clients.tenancy import TenantStats, TenantTier
from ..clients.wire import DaemonStats
from ..kvstore.tier import UNBOUNDED_BYTES

__all__ = ["StatsCollector"]

_OTHERS: Final = "(others)"


class StatsCollector(Collector):
    """Asks ``snapshot`` at every scrape."""

    def __init__(self, snapshot: Callable[[], DaemonStats]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        """Nothing is known before it is asked."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state of the daemon now."""
        stats = self._snapshot()
        yield GaugeMetricFamily("kvloom_ready", "1 while requests are served.", value=float(stats.phase == "ready"))
        yield GaugeMetricFamily("kvloom_uptime_seconds", "Time since the start.", value=stats.uptime_seconds)
        yield GaugeMetricFamily("kvloom_inflight_requests", "Requests inside.", value=stats.requests_inflight)
        yield GaugeMetricFamily("kvloom_inflight_bytes", "Bytes that requests inside hold.", value=stats.bytes_inflight)
        yield GaugeMetricFamily("kvloom_inflight_limit_bytes", "Their limit.", value=stats.bytes_inflight_max)
        yield GaugeMetricFamily("kvloom_dirty_bytes", "Accepted and not yet on disk.", value=stats.dirty_bytes)
        yield GaugeMetricFamily("kvloom_dirty_limit_bytes", "Their limit.", value=stats.dirty_bytes_max)
        yield GaugeMetricFamily("kvloom_profiles", "Codec profiles on the shelf.", value=stats.profiles)
        yield CounterMetricFamily("kvloom_reads_missed", "Reads no tier could answer.", value=stats.misses)
        yield CounterMetricFamily("kvloom_puts", "Containers accepted.", value=stats.puts)
        yield CounterMetricFamily("kvloom_put_bytes", "Their bytes.", value=stats.put_bytes)
        yield CounterMetricFamily(
            "kvloom_write_behind_failures",
            "Chunks acknowledged in memory that a durable tier then refused.",
            value=stats.write_behind_failures,
        )
        yield from _tier_metrics(stats)
        yield CounterMetricFamily("kvloom_expired", "Records freed because their time was over.", value=stats.expired)
        yield CounterMetricFamily("kvloom_disk_deferred", "Puts kept off the disk, first use.", value=stats.deferred)
        yield GaugeMetricFamily("kvloom_pinned_bytes", "Bytes that leases keep.", value=stats.pinned_bytes)
        yield GaugeMetricFamily("kvloom_leases", "Leases running.", value=stats.leases)
        yield from _stage_metrics(stats)
        yield from _pool_metrics(stats)
        yield from _planner_metrics(stats.planner)
        yield from _quality_metrics(stats.quality)
        yield from _tenant_metrics(stats)


def _tier_metrics(stats: DaemonStats) -> Iterator[Metric]:
    label = ["tier"]
    gauges = (
        GaugeMetricFamily("kvloom_tier_used_bytes", "Bytes a tier occupies.", labels=label),
        GaugeMetricFamily("kvloom_tier_limit_bytes", "Bytes a tier may occupy.", labels=label),
        GaugeMetricFamily("kvloom_tier_chunks", "Chunks in a tier.", labels=label),
    )
    counters = (
        CounterMetricFamily("kvloom_tier_hits", "Reads a tier answered.", labels=label),
        CounterMetricFamily("kvloom_tier_hit_bytes", "Bytes read from a tier.", labels=label),
        CounterMetricFamily("kvloom_tier_errors", "Times a tier refused or failed.", labels=label),
        CounterMetricFamily("kvloom_tier_corrupt", "Damaged records a tier was found with.", labels=label),
        CounterMetricFamily("kvloom_tier_evictions", "Chunks a tier gave up for room.", labels=label),
        CounterMetricFamily("kvloom_tier_promotions", "Chunks copied into a tier on use.", labels=label),
    )
    away = GaugeMetricFamily("kvloom_tier_breaker_open", "1 while a tier is away and refused at once.", labels=label)
    opened = CounterMetricFamily("kvloom_tier_breaker_openings", "Times a tier was found away.", labels=label)
    for tier in stats.tiers:
        if tier.limit_bytes != UNBOUNDED_BYTES:
            for gauge, level in zip(gauges, (tier.used_bytes, tier.limit_bytes, tier.records), strict=True):
                gauge.add_metric([tier.name], level)
        counts = (tier.hits, tier.hit_bytes, tier.errors, tier.corrupt, tier.evictions, tier.promotions)
        for counter, count in zip(counters, counts, strict=True):
            counter.add_metric([tier.name], count)
        if tier.breaker != "none":
            away.add_metric([tier.name], float(tier.breaker == "open"))
            opened.add_metric([tier.name], tier.breaker_openings)
    yield from (*gauges, *counters, away, opened)


def _stage_metrics(stats: DaemonStats) -> Iterator[Metric]:
    dirty = GaugeMetricFamily("kvloom_stage_dirty_bytes", "Bytes waiting to be written to a tier.", labels=["tier"])
    written = CounterMetricFamily("kvloom_stage_written", "Records written behind to a tier.", labels=["tier"])
    failed = CounterMetricFamily("kvloom_stage_failures", "Records a tier refused.", labels=["tier"])
    dropped = CounterMetricFamily("kvloom_stage_dropped", "Records not sent to a tier: too many.", labels=["tier"])
    size = CounterMetricFamily("kvloom_stage_written_bytes", "Bytes written behind to a tier.", labels=["tier"])
    for stage in stats.stages:
        dirty.add_metric([stage.tier], stage.dirty_bytes)
        written.add_metric([stage.tier], stage.written)
        failed.add_metric([stage.tier], stage.failures)
        dropped.add_metric([stage.tier], stage.dropped)
        size.add_metric([stage.tier], stage.written_bytes)
    yield from (dirty, written, size, failed, dropped)


def _pool_metrics(stats: DaemonStats) -> Iterator[Metric]:
    """Pools of decoded chunks in other processes; those of one process on one device are one series."""
    names = ["device", "pid"]
    families: tuple[GaugeMetricFamily | CounterMetricFamily, ...] = (
        GaugeMetricFamily("kvloom_pool_used_bytes", "Bytes of pages in use.", labels=names),
        GaugeMetricFamily("kvloom_pool_limit_bytes", "Bytes of all pages.", labels=names),
        GaugeMetricFamily("kvloom_pool_chunks", "Decoded chunks.", labels=names),
        CounterMetricFamily("kvloom_pool_hits", "Chunks found decoded.", labels=names),
        CounterMetricFamily("kvloom_pool_misses", "Chunks that had to be decoded.", labels=names),
        CounterMetricFamily("kvloom_pool_evictions", "Chunks dropped for room.", labels=names),
    )
    sums: dict[tuple[str, str], list[int]] = {}
    for pool in stats.pools:
        counts = (pool.used_bytes, pool.limit_bytes, pool.chunks, pool.hits, pool.misses, pool.evictions)
        before = sums.get((pool.device, str(pool.pid)), [0] * len(counts))
        sums[pool.device, str(pool.pid)] = [one + other for one, other in zip(before, counts, strict=True)]
    for label, totals in sums.items():
        for family, total in zip(families, totals, strict=True):
            family.add_metric(list(label), total)
    yield from families


def _planner_metrics(planner: PlannerStats) -> Iterator[Metric]:
    """Decisions are labelled by what there is to decide and why, never by engines, whose names clients make up."""
    decided = CounterMetricFamily("kvloom_plan_chunks", "Chunks decided about.", labels=["action", "reason"])
    for count in planner.decisions:
        decided.add_metric([count.action.value, count.reason.value], count.chunks)
    yield decided
    counters = (
        ("kvloom_plans", "Plans made.", planner.plans),
        ("kvloom_plan_deciding_seconds", "Time that deciding took.", planner.deciding_seconds),
        ("kvloom_plan_prefetched", "Chunks copied into memory for a plan.", planner.prefetched),
        ("kvloom_plan_samples", "Measurements taken in from engines.", planner.samples),
        ("kvloom_plan_samples_ignored", "Measurements that could not be true.", planner.ignored),
        ("kvloom_plan_outcomes", "Plans of which the outcome was reported.", planner.outcomes),
        ("kvloom_plan_slower", "Outcomes later than computing everything was expected.", planner.slower),
        ("kvloom_plan_regret_seconds", "Time that outcomes were later than expected.", planner.regret_seconds),
    )
    for name, means, value in counters:
        yield CounterMetricFamily(name, means, value=value)


def _quality_metrics(quality: QualityStats) -> Iterator[Metric]:
    """The gauges are there from the first check on: before it there is nothing that they could be."""
    yield CounterMetricFamily("kvloom_answers_checked", "Answers checked against full prefill.", value=quality.checked)
    yield CounterMetricFamily("kvloom_answers_agreed", "Those that began with the same token.", value=quality.agreed)
    yield CounterMetricFamily("kvloom_answers_kl_nats", "KL of their first tokens, summed.", value=quality.kl_sum)
    if quality.checked:
        yield GaugeMetricFamily("kvloom_answers_recent_kl_nats", "Mean KL of the latest.", value=quality.recent_kl)
        yield GaugeMetricFamily(
            "kvloom_answers_recent_agreement_ratio", "Share of the latest that agreed.", value=quality.recent_agreement
        )
    yield GaugeMetricFamily(
        "kvloom_answers_alert", "1 while the latest miss the quality asked for.", value=float(quality.alert)
    )


def _tenant_metrics(stats: DaemonStats) -> Iterator[Metric]:
    """Labelled by the namespaces of this daemon, never by what a client sends; those past a limit are one series.

    Tenants stand in the order in which they were first asked about, so a series that is there stays the same tenant's.
    """
    name = ["namespace"]
    puts = CounterMetricFamily("kvloom_tenant_puts", "Containers accepted from a tenant.", labels=name)
    put_bytes = CounterMetricFamily("kvloom_tenant_put_bytes", "Their bytes.", labels=name)
    hits = CounterMetricFamily("kvloom_tenant_hits", "Reads of a tenant that were answered.", labels=name)
    hit_bytes = CounterMetricFamily("kvloom_tenant_hit_bytes", "Their bytes.", labels=name)
    misses = CounterMetricFamily("kvloom_tenant_misses", "Reads of a tenant that were not.", labels=name)
    pinned = GaugeMetricFamily("kvloom_tenant_pinned_bytes", "Bytes that a tenant's leases keep.", labels=name)
    used = GaugeMetricFamily("kvloom_tenant_used_bytes", "Bytes of a tier that a tenant has.", labels=[*name, "tier"])
    evictions = CounterMetricFamily(
        "kvloom_tenant_evictions", "Chunks of a tenant that a tier gave up for room.", labels=[*name, "tier"]
    )
    for tenant in _capped(stats.tenants):
        label = [tenant.namespace]
        puts.add_metric(label, tenant.puts)
        put_bytes.add_metric(label, tenant.put_bytes)
        hits.add_metric(label, tenant.hits)
        hit_bytes.add_metric(label, tenant.hit_bytes)
        misses.add_metric(label, tenant.misses)
        pinned.add_metric(label, tenant.pinned_bytes)
        for tier in tenant.tiers:
            used.add_metric([*label, tier.tier], tier.used_bytes)
            evictions.add_metric([*label, tier.tier], tier.evictions)
    yield from (puts, put_bytes, hits, hit_bytes, misses, pinned, used, evictions)


def _capped(tenants: Sequence[TenantStats]) -> Sequence[TenantStats]:
    """The first tenants, and all others added up as one whose name no tenant can have."""
    most = limits.METRIC_TENANTS_MAX
    if len(tenants) <= most:
        return tenants
    rest = tenants[most:]
    tiers = {tier.tier: TenantTier(tier.tier, 0, 0, 0) for tenant in rest for tier in tenant.tiers}
    for tier in (tier for tenant in rest for tier in tenant.tiers):
        before = tiers[tier.tier]
        tiers[tier.tier] = TenantTier(
            tier.tier,
            before.used_bytes + tier.used_bytes,
            before.records + tier.records,
            before.evictions + tier.evictions,
        )
    others = TenantStats(
        _OTHERS,
        puts=sum(tenant.puts for tenant in rest),
        put_bytes=sum(tenant.put_bytes for tenant in rest),
        hits=sum(tenant.hits for tenant in rest),
        hit_bytes=sum(tenant.hit_bytes for tenant in rest),
        misses=sum(tenant.misses for tenant in rest),
        pinned_bytes=sum(tenant.pinned_bytes for tenant in rest),
        tiers=tuple(tiers.values()),
    )
    return (*tenants[:most], others)
