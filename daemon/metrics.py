"""Prometheus metrics of one daemon, in a registry of its own: requests as they happen, tiers as they are when asked."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__, limits
from ..clients.wire import DaemonStats

__all__ = ["METRICS_TYPE", "Metrics"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


class Metrics:
    """Counters that the edges bump, and a snapshot of the service at every scrape. Thread-safe."""

    def __init__(self, snapshot: Callable[[], DaemonStats]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "kvloom_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "kvloom_http_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            ["method", "route"],
            buckets=_LATENCY_SECONDS,
            registry=self._registry,
        )
        self._received = Counter("kvloom_http_received_bytes_total", "Body bytes received.", registry=self._registry)
        self._sent = Counter("kvloom_http_sent_bytes_total", "Chunk and profile bytes sent.", registry=self._registry)
        self._calls = Counter("kvloom_grpc_calls_total", "Calls answered.", ["call", "status"], registry=self._registry)
        self._call_seconds = Histogram(
            "kvloom_grpc_call_duration_seconds",
            "Time from a call's metadata to the end of its answer.",
            ["call"],
            buckets=_LATENCY_SECONDS,
            registry=self._registry,
        )
        self._call_received = Counter(
            "kvloom_grpc_received_bytes_total", "Chunk and profile bytes received.", registry=self._registry
        )
        self._call_sent = Counter(
            "kvloom_grpc_sent_bytes_total", "Chunk and profile bytes sent.", registry=self._registry
        )
        build = Gauge(
            "kvloom_build_info", "Constant 1; its label is the version.", ["version"], registry=self._registry
        )
        build.labels(__version__).set(1)
        self._registry.register(_StatsCollector(snapshot))

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered; ``route`` is a route's pattern, never a path a client made up."""
        verb = method if method in _METHODS else "other"
        self._requests.labels(verb, route, str(status)).inc()
        self._seconds.labels(verb, route).observe(seconds)

    def add_received(self, size_bytes: int) -> None:
        """A body came in."""
        self._received.inc(size_bytes)

    def add_sent(self, size_bytes: int) -> None:
        """A body went out."""
        self._sent.inc(size_bytes)

    def observe_call(self, call: str, status: str, seconds: float) -> None:
        """One gRPC call was answered."""
        self._calls.labels(call, status).inc()
        self._call_seconds.labels(call).observe(seconds)

    def add_call_received(self, size_bytes: int) -> None:
        """A chunk or a profile came in over gRPC."""
        self._call_received.inc(size_bytes)

    def add_call_sent(self, size_bytes: int) -> None:
        """A chunk or a profile went out over gRPC."""
        self._call_sent.inc(size_bytes)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class _StatsCollector(Collector):
    def __init__(self, snapshot: Callable[[], DaemonStats]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
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
        gauges = (
            GaugeMetricFamily("kvloom_tier_used_bytes", "Bytes a tier occupies.", labels=["tier"]),
            GaugeMetricFamily("kvloom_tier_limit_bytes", "Bytes a tier may occupy.", labels=["tier"]),
            GaugeMetricFamily("kvloom_tier_chunks", "Chunks in a tier.", labels=["tier"]),
        )
        counters = (
            CounterMetricFamily("kvloom_tier_hits", "Reads a tier answered.", labels=["tier"]),
            CounterMetricFamily("kvloom_tier_hit_bytes", "Bytes read from a tier.", labels=["tier"]),
            CounterMetricFamily("kvloom_tier_errors", "Times a tier refused or failed.", labels=["tier"]),
            CounterMetricFamily("kvloom_tier_corrupt", "Damaged records a tier was found with.", labels=["tier"]),
            CounterMetricFamily("kvloom_tier_evictions", "Chunks a tier gave up for room.", labels=["tier"]),
            CounterMetricFamily("kvloom_tier_promotions", "Chunks copied into a tier on use.", labels=["tier"]),
        )
        for tier in stats.tiers:
            for gauge, level in zip(gauges, (tier.used_bytes, tier.limit_bytes, tier.records), strict=True):
                gauge.add_metric([tier.name], level)
            counts = (tier.hits, tier.hit_bytes, tier.errors, tier.corrupt, tier.evictions, tier.promotions)
            for counter, count in zip(counters, counts, strict=True):
                counter.add_metric([tier.name], count)
        yield from gauges
        yield from counters
        yield CounterMetricFamily("kvloom_expired", "Records freed because their time was over.", value=stats.expired)
        yield CounterMetricFamily("kvloom_disk_deferred", "Puts kept off the disk, first use.", value=stats.deferred)
        yield GaugeMetricFamily("kvloom_pinned_bytes", "Bytes that leases keep.", value=stats.pinned_bytes)
        yield GaugeMetricFamily("kvloom_leases", "Leases running.", value=stats.leases)
        yield from _stage_metrics(stats)
        yield from _pool_metrics(stats)
        yield from _tenant_metrics(stats)


def _stage_metrics(stats: DaemonStats) -> Iterator[Metric]:
    dirty = GaugeMetricFamily("kvloom_stage_dirty_bytes", "Bytes waiting to be written to a tier.", labels=["tier"])
    written = CounterMetricFamily("kvloom_stage_written", "Records written behind to a tier.", labels=["tier"])
    failed = CounterMetricFamily("kvloom_stage_failures", "Records a tier refused.", labels=["tier"])
    dropped = CounterMetricFamily("kvloom_stage_dropped", "Records not sent to a tier: too many.", labels=["tier"])
    for stage in stats.stages:
        dirty.add_metric([stage.tier], stage.dirty_bytes)
        written.add_metric([stage.tier], stage.written)
        failed.add_metric([stage.tier], stage.failures)
        dropped.add_metric([stage.tier], stage.dropped)
    yield from (dirty, written, failed, dropped)


def _pool_metrics(stats: DaemonStats) -> Iterator[Metric]:
    """Pools of decoded chunks in other processes, one per connection that has registered one."""
    names = ["device", "pid"]
    used = GaugeMetricFamily("kvloom_pool_used_bytes", "Bytes of pages in use.", labels=names)
    limit = GaugeMetricFamily("kvloom_pool_limit_bytes", "Bytes of all pages.", labels=names)
    chunks = GaugeMetricFamily("kvloom_pool_chunks", "Decoded chunks.", labels=names)
    hits = CounterMetricFamily("kvloom_pool_hits", "Chunks found decoded.", labels=names)
    misses = CounterMetricFamily("kvloom_pool_misses", "Chunks that had to be decoded.", labels=names)
    evictions = CounterMetricFamily("kvloom_pool_evictions", "Chunks dropped for room.", labels=names)
    for pool in stats.pools:
        label = [pool.device, str(pool.pid)]
        used.add_metric(label, pool.used_bytes)
        limit.add_metric(label, pool.limit_bytes)
        chunks.add_metric(label, pool.chunks)
        hits.add_metric(label, pool.hits)
        misses.add_metric(label, pool.misses)
        evictions.add_metric(label, pool.evictions)
    yield from (used, limit, chunks, hits, misses, evictions)


def _tenant_metrics(stats: DaemonStats) -> Iterator[Metric]:
    """Labelled by the namespaces of this daemon, which its configuration bounds, never by what a client sends."""
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
    for tenant in stats.tenants[: limits.OWNERS_COUNTED_MAX]:
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
