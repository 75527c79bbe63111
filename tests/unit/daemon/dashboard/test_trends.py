"""Averages and series over samples: weighted by time and by reads, and aligned whatever comes and goes."""

from dataclasses import replace

import pytest

from kvloom.clients import tenancy, wire
from kvloom.clients.pool_wire import PoolReport
from kvloom.daemon.dashboard.trends import figures_of, history_of, namespaces_of, tier_pulse
from kvloom.daemon.journal.samples import Samples

MEMORY = wire.TierStats("memory", False, 100, 50, 2, 0, 0, 0, 0, 0, 0)
ACME = tenancy.TenantStats("acme", 0, 0, 0, 0, 0, 0, ())
START = wire.DaemonStats(
    "0.1.0", 1, "ready", 0.0, "acme", 0, 0, 100, 0, 50, hits=0, misses=0, puts=0, put_bytes=0,
    write_behind_failures=0, profiles=0, tiers=(MEMORY,), tenants=(ACME,),
)  # fmt: skip


@pytest.fixture
def samples():
    """In 2 s nine reads of ten hit; in the next 8 s one of 30 does, for another tenant, and 80 bytes are written."""
    taken = Samples()
    taken.take(START)
    busy = replace(
        START, uptime_seconds=2.0, hits=9, misses=1, tiers=(replace(MEMORY, hits=9, hit_bytes=900),),
        tenants=(replace(ACME, hits=9, misses=1, hit_bytes=900),),
    )  # fmt: skip
    taken.take(busy)
    taken.take(
        replace(
            busy, uptime_seconds=10.0, hits=10, misses=30, puts=4, put_bytes=80,
            tiers=(replace(MEMORY, hits=10, hit_bytes=1000, used_bytes=70), replace(MEMORY, name="ssd", durable=True)),
            tenants=(*busy.tenants, replace(ACME, namespace="other", hits=1, misses=29)),
        )
    )  # fmt: skip
    return taken


def test_figures_are_averages_over_time_and_the_hit_rate_over_reads(samples):
    figures = figures_of(samples.since(0), None, since_start=0.25, pinned_bytes=7)
    assert (figures.seconds, figures.gets_per_second, figures.puts_per_second) == (10.0, 4.0, 0.4)
    assert (figures.hit_rate, figures.hit_rate_since_start) == (0.25, 0.25)
    assert (figures.read_bytes_per_second, figures.put_bytes_per_second, figures.pinned_bytes) == (100.0, 8.0, 7)


def test_a_tenants_figures_are_its_own(samples):
    figures = figures_of(samples.since(0), "acme", since_start=None, pinned_bytes=0)
    assert (figures.gets_per_second, figures.hit_rate, figures.read_bytes_per_second) == (1.0, 0.9, 90.0)
    nobody = figures_of(samples.since(0), "nobody", since_start=None, pinned_bytes=0)
    assert (nobody.seconds, nobody.gets_per_second, nobody.hit_rate) == (10.0, 0.0, None)


def test_before_the_second_sample_nothing_is_known():
    samples = Samples()
    samples.take(START)
    figures = figures_of(samples.since(0), None, since_start=None, pinned_bytes=0)
    assert (figures.seconds, figures.gets_per_second, figures.hit_rate) == (0.0, 0.0, None)
    assert tier_pulse(samples.since(0), "memory") is None
    assert history_of((), None, next_number=0).first == 0


def test_the_busiest_namespace_stands_first_then_the_largest(samples):
    rows = namespaces_of(samples.since(0), {"acme": 5, "other": 3, "large": 90, "small": 1})
    assert [row.name for row in rows] == ["other", "acme", "large", "small"]
    assert [(row.gets_per_second, row.hit_rate, row.used_bytes) for row in rows[:3]] == [
        (3.0, pytest.approx(1 / 30, abs=1e-4), 3), (1.0, 0.9, 5), (0.0, None, 90),
    ]  # fmt: skip


def test_a_series_has_one_item_per_sample_also_of_a_tier_that_came_later(samples):
    history = history_of(samples.since(0), None, next_number=samples.next_number)
    assert (history.first, history.next, history.uptime_seconds) == (0, 3, (0.0, 2.0, 10.0))
    assert history.hit_rate == (None, 0.9, pytest.approx(1 / 30, abs=1e-4))
    memory, ssd = history.tiers
    assert (memory.name, memory.fill, memory.read_bytes_per_second) == ("memory", (0.5, 0.5, 0.7), (0.0, 450.0, 12.5))
    assert (ssd.name, ssd.fill[:2]) == ("ssd", (None, None))
    rest = history_of(samples.since(2), None, next_number=samples.next_number)
    assert (rest.first, len(rest.uptime_seconds), len(rest.tiers[0].fill)) == (2, 1, 1)


def test_a_tenants_series_say_nothing_of_tiers_or_of_others(samples):
    history = history_of(samples.since(0), "acme", next_number=3)
    assert history.tiers == ()
    assert history.gets_per_second == (0.0, 5.0, 0.0)
    assert history.hit_rate == (None, 0.9, None)


def test_a_tier_goes_by_the_reads_it_was_there_for(samples):
    pulse = tier_pulse(samples.since(0), "memory")
    assert (pulse.hit_share, pulse.read_bytes_per_second, pulse.written_bytes_per_second) == (0.25, 100.0, 8.0)
    assert tier_pulse(samples.since(0), "nowhere") is None


def test_a_pool_that_answers_everything_counts_though_the_daemon_is_not_asked():
    pool = PoolReport("cuda:0", 7, 100, 25, 3, 3, hits=0, misses=0, evictions=0, dirty_bytes=0)
    samples = Samples()
    samples.take(replace(START, pools=(pool,)))
    samples.take(replace(START, uptime_seconds=2.0, pools=(replace(pool, hits=3, misses=1),)))
    assert tier_pulse(samples.since(0), "cuda:0 of 7").hit_share == 0.75
