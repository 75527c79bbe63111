"""The slowest requests: the slowest are kept whatever else comes, each tenant sees its own, and nothing grows."""

from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.daemon.journal.slow_requests import SlowRequests, note_read, note_tenant, note_written
from kvloom.kvstore.tiered.chunk_reader import ChunkRead


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def read(tier, size_bytes):
    """A chunk that was read; what is in it is nothing to this."""
    return ChunkRead(header=None, parts=(), total_bytes=size_bytes, tier=tier, info=None)


def served(requests, tenant, seconds, request_id="r"):
    work = requests.begin()
    note_tenant(tenant)
    requests.finish(work, request_id, "http", "get_chunk", "200", seconds)


def test_what_the_service_did_stands_with_the_request():
    requests = SlowRequests(clock=Clock())
    work = requests.begin()
    note_tenant("acme")
    note_read(read("memory", 10))
    note_read(read("ssd", 20), read("memory", 30))
    note_written(5)
    requests.finish(work, "id-1", "grpc", "get_chunks", "OK", 0.25)
    (found,) = requests.slowest(10)
    assert (found.request_id, found.tenant, found.edge, found.operation) == ("id-1", "acme", "grpc", "get_chunks")
    assert (found.outcome, found.tiers, found.size_bytes, found.seconds) == ("OK", ("memory", "ssd"), 65, 0.25)


def test_what_one_request_did_is_not_said_of_the_next():
    requests = SlowRequests(clock=Clock())
    served(requests, "acme", 0.1)
    note_read(read("ssd", 99))
    served(requests, "acme", 0.2)
    assert [(item.tiers, item.size_bytes) for item in requests.slowest(10)] == [((), 0), ((), 0)]


def test_a_request_that_was_refused_before_anybody_knew_whose_it_was_is_nobodys():
    requests = SlowRequests(clock=Clock())
    requests.finish(requests.begin(), "r", "http", "get_chunk", "401", 9.0)
    assert list(requests.slowest(10)) == []


@given(st.lists(st.floats(0, 100), min_size=1, max_size=100), st.integers(1, limits.SLOW_REQUESTS_PER_TENANT_MAX))
def test_the_slowest_are_kept_in_their_order(times, most):
    requests = SlowRequests(clock=Clock())
    for seconds in times:
        served(requests, "acme", seconds)
    assert [item.seconds for item in requests.slowest(most)] == sorted(times, reverse=True)[:most]


def test_a_tenant_sees_its_own_however_slow_the_others_are():
    requests = SlowRequests(clock=Clock())
    for _ in range(50):
        served(requests, "slow", 5.0)
    served(requests, "fast", 0.001)
    assert [item.tenant for item in requests.slowest(10, tenant="fast")] == ["fast"]
    assert {item.tenant for item in requests.slowest(10)} == {"slow"}


def test_what_is_older_than_the_window_is_forgotten():
    clock = Clock()
    requests = SlowRequests(clock=clock)
    served(requests, "acme", 9.0, "old")
    clock.now += limits.SLOW_WINDOW_SECONDS - 1
    served(requests, "acme", 1.0, "new")
    assert [item.request_id for item in requests.slowest(10)] == ["old", "new"]
    assert requests.age_seconds(requests.slowest(1)[0]) == limits.SLOW_WINDOW_SECONDS - 1
    clock.now += 2
    assert [item.request_id for item in requests.slowest(10)] == ["new"]


def test_it_is_bounded_by_time_and_tenants_and_each_tenants_share():
    clock = Clock()
    requests = SlowRequests(clock=clock)
    for minute in range(20):
        for tenant in range(limits.SLOW_TENANTS_MAX + 5):
            for seconds in range(2):
                served(requests, f"t{tenant}", minute + seconds)
        clock.now += 60
    clock.now -= 60
    minutes = -(-limits.SLOW_WINDOW_SECONDS // 60) + 1
    most = minutes * limits.SLOW_TENANTS_MAX * limits.SLOW_REQUESTS_PER_TENANT_MAX
    everything = requests.slowest(10**6)
    assert 0 < len(everything) <= most
    assert len({item.tenant for item in everything}) == limits.SLOW_TENANTS_MAX
