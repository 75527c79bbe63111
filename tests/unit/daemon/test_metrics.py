from prometheus_client.parser import text_string_to_metric_families

from kvloom.clients import wire
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
