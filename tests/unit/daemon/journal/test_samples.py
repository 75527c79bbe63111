"""The ring of samples: bounded, numbered, and of tenants only those that did something."""

from dataclasses import replace

import pytest

from kvloom.clients import tenancy, wire
from kvloom.daemon.journal.samples import Samples

MEMORY = wire.TierStats("memory", False, 100, 50, 2, 0, 0, 0, 0, 0, 0)
STATS = wire.DaemonStats(
    "0.1.0", 1, "ready", 10.0, "alice", 0, 0, 100, 0, 50, hits=0, misses=0, puts=0, put_bytes=0,
    write_behind_failures=0, profiles=0, tiers=(MEMORY,),
)  # fmt: skip


def at(seconds, reads=0, **tenants):
    """A report of ``seconds`` after the start, in which each tenant has read so often."""
    rows = tuple(tenancy.TenantStats(name, 0, 0, hits, 0, 0, 0, ()) for name, hits in tenants.items())
    return replace(STATS, uptime_seconds=float(seconds), hits=reads, tenants=rows)


def test_a_sample_has_the_rates_since_the_one_before():
    samples = Samples()
    samples.take(at(10, reads=4))
    samples.take(at(12, reads=10))
    first, second = samples.since(0)
    assert (first.number, first.rates.seconds, first.rates.gets_per_second) == (0, 0.0, 0.0)
    assert (second.number, second.rates.seconds, second.rates.gets_per_second) == (1, 2.0, 3.0)


def test_the_oldest_is_given_up_and_numbers_go_on():
    samples = Samples(samples_max=3)
    for seconds in range(8):
        samples.take(at(seconds))
    assert [sample.number for sample in samples.since(0)] == [5, 6, 7]
    assert samples.next_number == 8


@pytest.mark.parametrize(("since", "numbers"), [(0, [0, 1, 2]), (2, [2]), (3, []), (4, [0, 1, 2])])
def test_whoever_has_some_asks_for_the_rest_and_one_of_another_daemon_gets_all(since, numbers):
    samples = Samples()
    for seconds in range(3):
        samples.take(at(seconds))
    assert [sample.number for sample in samples.since(since)] == numbers


def test_only_the_busiest_tenants_are_kept_and_none_that_did_nothing():
    samples = Samples(tenants_max=2)
    samples.take(at(0, a=0, b=0, c=0, idle=7))
    samples.take(at(2, a=2, b=6, c=4, idle=7))
    assert [row.name for row in samples.since(1)[0].rates.tenants] == ["b", "c"]


def test_the_last_seconds_are_counted_back_from_the_newest_sample():
    samples = Samples()
    assert samples.last(10) == ()
    for seconds in (0, 2, 4, 6, 50):
        samples.take(at(seconds))
    assert [sample.number for sample in samples.last(45)] == [3, 4]
    assert [sample.number for sample in samples.last(0)] == [4]


def test_a_daemon_that_counts_from_nothing_again_has_no_negative_rates():
    samples = Samples()
    samples.take(at(100, reads=50))
    samples.take(at(1, reads=5))
    assert samples.since(1)[0].rates.gets_per_second == 0.0
