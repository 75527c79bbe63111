"""Rules for metrics: those of ``promtool check metrics``, and this house's, against a scrape that has every metric.

1. Every metric has a HELP text of one sentence and a TYPE (promtool: help).
2. A counter ends in ``_total``, and nothing else does (counter).
3. Only a histogram has ``_bucket``, ``_count`` and ``_sum``, and only its buckets have the label ``le`` (histogram).
4. Units are base units, written out, at the end of the name: ``_seconds``, ``_bytes`` (units, abbreviations).
5. A name does not say the type of its metric (type in name), has no colon (reserved for rules) and no capital
   (camelCase).
6. No two samples have the same name and labels (duplicates).
7. Names begin with ``kvloom_``, but for the standard ``process_`` ones.
8. Labels are of a closed list: each has a bounded number of values, and no remote client makes one up.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from kvloom.clients import tenancy, wire
from kvloom.clients.plan_wire import ChunkAction, DecisionCount, PlannerStats, QualityStats, Reason
from kvloom.clients.pool_wire import PoolReport
from kvloom.daemon.metrics import Metrics

UNITS = {
    "milliseconds": "seconds", "microseconds": "seconds", "minutes": "seconds", "hours": "seconds", "ms": "seconds",
    "sec": "seconds", "kilobytes": "bytes", "kib": "bytes", "mib": "bytes", "gib": "bytes", "mb": "bytes",
    "bits": "bytes",
    "percent": "ratio", "celcius": "celsius", "bytes_bytes": "bytes",
}  # fmt: skip
TYPES = {"counter", "gauge", "histogram", "summary"}
LABELS = {
    "method", "route", "status", "call", "tier", "namespace", "device", "pid", "version", "le", "action", "reason",
}  # fmt: skip
DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "kvloom.json"
DOCUMENT = Path(__file__).parents[3] / "docs" / "OPERATIONS.md"


def lint(text):
    """What a scrape in the Prometheus text format breaks of the rules above."""
    problems, helps, types, samples = [], {}, {}, set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, *rest = line.split(" ", 3)
            helps[name] = rest[0] if rest else ""
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            types[name] = kind
        elif line:
            match = re.fullmatch(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? \S+( \S+)?", line)
            if match is None:
                problems.append(f"{line!r} is no sample")
                continue
            if match.group(0) and (match[1], match[2]) in samples:
                problems.append(f"{line!r} comes twice")
            samples.add((match[1], match[2]))
            problems += _of_sample(match[1], set(re.findall(r'(\w+)="', match[2] or "")), helps, types)
    problems += [f"{name} has no sentence of help" for name in types if not helps.get(name, "").endswith(".")]
    problems += [f"{name} has no type" for name in helps.keys() - types.keys()]
    return problems + [problem for name, kind in types.items() for problem in _of_name(name, kind)]


def _of_sample(name, labels, helps, types):
    base = name if name in types else re.sub(r"_(bucket|count|sum|created)$", "", name)
    if base not in types:
        yield f"{name} has no TYPE"
    elif base != name and types[base] not in ("histogram", "summary"):
        yield f"{name} has the suffix of a histogram"
    if ("le" in labels) != (name.endswith("_bucket") and types.get(base) == "histogram"):
        yield f"{name} has le, or lacks it"
    if not labels <= LABELS:
        yield f"{name} has labels {sorted(labels - LABELS)}"


def _of_name(name, kind):
    words = name.split("_")
    if (kind == "counter") != (words[-1] == "total"):
        yield f"{name} is a {kind}: only counters end in _total"
    if kind != "histogram" and words[-1] in ("bucket", "count", "sum"):
        yield f"{name} has the suffix of a histogram"
    if TYPES & set(words):
        yield f"{name} says its type"
    if ":" in name or name != name.lower():
        yield f"{name} has a colon or a capital"
    for word in words:
        if word in UNITS:
            yield f"{name} has unit {word}, should be {UNITS[word]}"
    if {"seconds", "bytes"} & set(words[:-1]) and words[-1] != "total":
        yield f"{name} has its unit in the middle"
    if not name.startswith(("kvloom_", "process_")):
        yield f"{name} does not begin with kvloom_"


@pytest.fixture(scope="module")
def metrics():
    tier = wire.TierStats("ssd", True, 100, 40, 3, 7, 700, 1, 2, 5, 6)
    away = replace(tier, name="valkey", breaker="open", breaker_openings=1)
    held = (tenancy.TenantTier("ssd", 1, 1, 1, 9),)
    stats = wire.DaemonStats(
        "0.1.0", 1, "ready", 2.5, "default", 3, 30, 300, 4, 400, 8, 9, 10, 11, 12, 13, (tier, away)
    )
    stats = replace(
        stats,
        pools=tuple(PoolReport("cuda:0", pid, 9, 8, 7, 6, 5, 4, 3, 2) for pid in (1, 1, 2)),
        planner=PlannerStats(plans=1, decisions=(DecisionCount(ChunkAction.LOAD, Reason.LOAD_FASTER, 3),)),
        quality=QualityStats(checked=3, agreed=2, kl_sum=0.5, recent_kl=0.2, recent_agreement=0.5),
        stages=(tenancy.StageStats("ssd", 1, 9, 1, 5, 6, 0, 7),),
        tenants=tuple(tenancy.TenantStats(f"tenant-{number}", 1, 10, 2, 20, 3, 30, held) for number in range(100)),
    )
    metrics = Metrics(lambda: stats)
    metrics.observe_request("GET", "/chunks/{key}", 200, 0.003)
    metrics.observe_call("Get", "OK", 0.003)
    metrics.add_call_received(5)
    metrics.add_call_sent(7)
    metrics.add_received(5)
    metrics.add_sent(7)
    return metrics


def test_a_scrape_breaks_no_rule(metrics):
    assert lint(metrics.render().body.decode()) == []


def test_openmetrics_parses_strictly(metrics):
    text = metrics.render("application/openmetrics-text").body.decode()
    assert text.endswith("# EOF\n")
    assert {family.name for family in openmetrics_families(text)} >= {"kvloom_ready", "kvloom_http_requests"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kvloom_x 1", "kvloom_x has no TYPE"),
        ("# TYPE kvloom_x gauge\nkvloom_x 1", "kvloom_x has no sentence of help"),
        ("# HELP kvloom_x X.\nkvloom_x 1", "kvloom_x has no type"),
        ("# HELP kvloom_x X.\n# TYPE kvloom_x counter\nkvloom_x 1", "only counters end in _total"),
        ("# HELP kvloom_x_total X.\n# TYPE kvloom_x_total gauge\nkvloom_x_total 1", "only counters end in _total"),
        ("# HELP kvloom_x_count X.\n# TYPE kvloom_x_count gauge\nkvloom_x_count 1", "suffix of a histogram"),
        ("# HELP kvloom_x_ms X.\n# TYPE kvloom_x_ms gauge\nkvloom_x_ms 1", "has unit ms, should be seconds"),
        ("# HELP kvloom_gauge X.\n# TYPE kvloom_gauge gauge\nkvloom_gauge 1", "says its type"),
        ("# HELP kvloom_bytes_x X.\n# TYPE kvloom_bytes_x gauge\nkvloom_bytes_x 1", "unit in the middle"),
        ("# HELP kvloomX X.\n# TYPE kvloomX gauge\nkvloomX 1", "a colon or a capital"),
        ("# HELP up X.\n# TYPE up gauge\nup 1", "does not begin with kvloom_"),
        ('# HELP kvloom_x X.\n# TYPE kvloom_x gauge\nkvloom_x{key="1"} 1', "has labels ['key']"),
        ('# HELP kvloom_x X.\n# TYPE kvloom_x gauge\nkvloom_x{le="1"} 1', "has le, or lacks it"),
        ("# HELP kvloom_x X.\n# TYPE kvloom_x gauge\nkvloom_x 1\nkvloom_x 2", "comes twice"),
        ("kvloom_x", "is no sample"),
    ],
)
def test_every_rule_can_be_broken(text, problem):
    assert any(problem in found for found in lint(text)), lint(text)


def test_series_are_bounded_whatever_the_number_of_tenants(metrics):
    assert len(metrics.render().body.splitlines()) < 1500


def test_the_alerts_in_the_documents_name_metrics_that_exist(metrics):
    scrape = metrics.render().body.decode()
    named = set(re.findall(r"\bkvloom_[a-z_]+", DOCUMENT.read_text()))
    assert len(named) >= 5
    assert [name for name in named if f"\n{name}" not in scrape] == []


def test_every_query_of_the_dashboard_names_metrics_and_labels_that_exist(metrics):
    samples = {}
    for line in metrics.render().body.decode().splitlines():
        match = re.match(r"([a-z_]+)(?:\{(.*)\})?", line)
        if match is not None and not line.startswith("#"):
            samples.setdefault(match[1], set()).update(re.findall(r'(\w+)="', match[2] or ""))
    queries = list(expressions(json.loads(DASHBOARD.read_text())))
    assert len(queries) > 15
    scraped = {"job", "instance"}
    for query in queries:
        named = re.findall(r"\b(?:kvloom|process)_[a-z_]+", query)
        assert named, query
        assert set(named) <= samples.keys(), query
        labels = scraped | set().union(*(samples[name] for name in named))
        asked = set(re.findall(r"(\w+)(?:=~|=|!=)\"", query))
        for group in re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", query):
            asked |= {item.strip() for item in group.split(",")}
        assert asked <= labels, query


def expressions(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "expr" or (key == "query" and isinstance(value, str) and "kvloom" in value):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for item in node:
            yield from expressions(item)
