import asyncio
from dataclasses import replace

import structlog
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from kvloom import limits
from kvloom.clients import tenancy, wire
from kvloom.daemon.metrics import Metrics
from kvloom.kvstore.tier import UNBOUNDED_BYTES

TIER = wire.TierStats("ssd", True, 100, 40, 3, 7, 700, 1, 2, 5, 6)
STATS = wire.DaemonStats("0.1.0", 1, "ready", 2.5, "default", 3, 30, 300, 4, 400, 8, 9, 10, 11, 12, 13, (TIER,))


def samples(metrics):
    families = text_string_to_metric_families(metrics.render().body.decode())
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


async def test_tasks_of_the_loop_are_counted_and_outside_there_are_none():
    metrics = Metrics(lambda: STATS)
    before = samples(metrics)["kvloom_tasks",]
    assert before >= 1
    waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    assert samples(metrics)["kvloom_tasks",] == before + 3
    assert (await asyncio.to_thread(samples, metrics))["kvloom_tasks",] == 0
    for task in waiting:
        task.cancel()


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


def test_the_number_of_tenants_in_a_scrape_is_bounded_and_none_is_left_out_of_the_sum(monkeypatch):
    monkeypatch.setattr(limits, "METRIC_TENANTS_MAX", 3)
    held = tenancy.TenantTier("ssd", 10, 1, 2)
    tenants = tuple(tenancy.TenantStats(f"tenant-{n}", n, 1, 1, 1, 1, 1, (held,)) for n in range(10))
    seen = samples(Metrics(lambda: replace(STATS, tenants=tenants)))
    puts = {name[1]: value for name, value in seen.items() if name[0] == "kvloom_tenant_puts_total"}
    assert puts == {"tenant-0": 0, "tenant-1": 1, "tenant-2": 2, "(others)": sum(range(3, 10))}
    assert seen["kvloom_tenant_used_bytes", "(others)", "ssd"] == 70


def test_a_breaker_is_told_where_there_is_one():
    away = replace(TIER, name="valkey", breaker="open", breaker_openings=3)
    seen = samples(Metrics(lambda: replace(STATS, tiers=(TIER, away))))
    assert (seen["kvloom_tier_breaker_open", "valkey"], seen["kvloom_tier_breaker_openings_total", "valkey"]) == (1, 3)
    assert ("kvloom_tier_breaker_open", "ssd") not in seen


def test_a_tier_without_a_limit_of_its_own_has_no_fill():
    seen = samples(Metrics(lambda: replace(STATS, tiers=(replace(TIER, limit_bytes=UNBOUNDED_BYTES),))))
    assert ("kvloom_tier_used_bytes", "ssd") not in seen
    assert seen["kvloom_tier_hits_total", "ssd"] == 7


def test_openmetrics_has_the_request_by_which_a_bucket_was_filled():
    metrics = Metrics(lambda: STATS)
    with structlog.contextvars.bound_contextvars(request_id="r-17", tenant="secret"):
        metrics.observe_request("GET", "/chunks/{key}", 200, 0.003)
    scrape = metrics.render("application/openmetrics-text; version=1.0.0")
    assert scrape.content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = openmetrics_families(scrape.body.decode())
    found = [item.exemplar for family in families for item in family.samples if item.exemplar is not None]
    assert [(item.labels, item.value) for item in found] == [({"request_id": "r-17"}, 0.003)]
    assert "# EOF" not in metrics.render().body.decode()
    assert "r-17" not in metrics.render("text/html").body.decode()
