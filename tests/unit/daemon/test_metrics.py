from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from kvloom import limits
from kvloom.clients import tenancy, wire
from kvloom.daemon.metrics import Metrics

TIER = wire.TierStats("ssd", True, 100, 40, 3, 7, 700, 1, 2, 5, 6)
STATS = wire.DaemonStats("0.1.0", 1, "ready", 2.5, "default", 3, 30, 300, 4, 400, 8, 9, 10, 11, 12, 13, (TIER,))


def samples(metrics):
    families = text_string_to_metric_families(metrics.render().decode())
    return {(item.name, *sorted(item.labels.values())): item.value for family in families for item in family.samples}


def test_a_scrape_is_the_state_of_that_moment():
    seen = samples(Metrics(lambda: STATS))
    assert seen["kvloom_ready",] == 1
    assert seen["kvloom_dirty_bytes",] == 4
    assert seen["kvloom_reads_missed_total",] == 9
    assert seen["kvloom_put_bytes_total",] == 11
    assert seen["kvloom_write_behind_failures_total",] == 12
    expected = {"used_bytes": 40, "limit_bytes": 100, "chunks": 3, "hits_total": 7, "hit_bytes_total": 700}
    expected |= {"corrupt_total": 1, "errors_total": 2, "evictions_total": 5, "promotions_total": 6}
    assert {name: seen[f"kvloom_tier_{name}", "ssd"] for name in expected} == expected


def test_requests_and_bytes_are_counted():
    metrics = Metrics(lambda: STATS)
    metrics.observe_request("GET", "/chunks/{key}", 200, 0.003)
    metrics.observe_request("GET", "/chunks/{key}", 404, 0.001)
    metrics.observe_request("BREW", "unmatched", 405, 0.001)
    metrics.add_received(5)
    metrics.add_sent(7)
    seen = samples(metrics)
    assert seen["kvloom_http_requests_total", "/chunks/{key}", "200", "GET"] == 1
    assert seen["kvloom_http_requests_total", "405", "other", "unmatched"] == 1
    assert seen["kvloom_http_request_duration_seconds_count", "/chunks/{key}", "GET"] == 2
    assert (seen["kvloom_http_received_bytes_total",], seen["kvloom_http_sent_bytes_total",]) == (5, 7)


def test_two_daemons_in_one_process_count_for_themselves():
    one, other = Metrics(lambda: STATS), Metrics(lambda: STATS)
    one.add_sent(7)
    assert samples(other)["kvloom_http_sent_bytes_total",] == 0


def test_tenants_and_stages_are_told_apart_by_label():
    tiers = (tenancy.TenantTier("memory", 50, 2, 7, 100), tenancy.TenantTier("ssd", 60, 3, 8))
    stats = replace(
        STATS,
        stages=(tenancy.StageStats("ssd", 1, 9, 1, 5, 6, 0), tenancy.StageStats("network", 2, 9, 1, 7, 8, 4)),
        tenants=(tenancy.TenantStats("alice", 1, 10, 2, 20, 3, 30, tiers),),
        expired=11,
        pinned_bytes=30,
        leases=2,
        deferred=5,
    )
    seen = samples(Metrics(lambda: stats))
    assert (seen["kvloom_stage_dropped_total", "network"], seen["kvloom_stage_dropped_total", "ssd"]) == (4, 0)
    assert (seen["kvloom_stage_dirty_bytes", "network"], seen["kvloom_stage_failures_total", "ssd"]) == (2, 6)
    assert (seen["kvloom_stage_written_total", "network"], seen["kvloom_expired_total",]) == (7, 11)
    assert (seen["kvloom_leases",], seen["kvloom_pinned_bytes",], seen["kvloom_disk_deferred_total",]) == (2, 30, 5)
    expected = {"puts_total": 1, "put_bytes_total": 10, "hits_total": 2, "hit_bytes_total": 20, "misses_total": 3}
    expected |= {"pinned_bytes": 30}
    assert {name: seen[f"kvloom_tenant_{name}", "alice"] for name in expected} == expected
    assert seen["kvloom_tenant_used_bytes", "alice", "ssd"] == 60
    assert seen["kvloom_tenant_evictions_total", "alice", "memory"] == 7


def test_the_number_of_tenants_in_a_scrape_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "OWNERS_COUNTED_MAX", 3)
    tenants = tuple(tenancy.TenantStats(f"tenant-{number}", 1, 1, 1, 1, 1, 1, ()) for number in range(10))
    seen = samples(Metrics(lambda: replace(STATS, tenants=tenants)))
    assert sum(name[0] == "kvloom_tenant_puts_total" for name in seen) == 3
