from dataclasses import replace

from kvloom.clients import tenancy, wire
from kvloom.clients.pool_wire import PoolReport
from kvloom.daemon.rates import rates_between
from kvloom.kvstore.tier import UNBOUNDED_BYTES

MEMORY = wire.TierStats("memory", False, 100, 50, 2, 10, 1000, 0, 0, 0, 0)
SSD = wire.TierStats("ssd", True, 1000, 100, 5, 20, 4000, 0, 0, 0, 0)
NET = wire.TierStats("valkey", True, UNBOUNDED_BYTES, 0, 0, 0, 0, 0, 0, 0, 0, shared=True, breaker="closed")
ALICE = tenancy.TenantStats("alice", 5, 500, 8, 800, 2, 0, (tenancy.TenantTier("ssd", 30, 1, 0),))
BOB = tenancy.TenantStats("bob", 1, 100, 1, 100, 0, 0, ())
BEFORE = wire.DaemonStats(
    "0.1.0", 1, "ready", 10.0, "alice", 1, 2, 100, 3, 50, hits=30, misses=10, puts=6, put_bytes=600,
    write_behind_failures=0, profiles=0, tiers=(MEMORY, SSD, NET), tenants=(ALICE, BOB),
    stages=(tenancy.StageStats("ssd", 7, 50, 1, 3, 0, 0, 300),),
)  # fmt: skip
NOW = replace(
    BEFORE,
    uptime_seconds=12.0,
    hits=36,
    misses=14,
    puts=10,
    put_bytes=1000,
    tiers=(
        replace(MEMORY, hits=12, hit_bytes=1400, evictions=8),
        replace(SSD, hits=24, hit_bytes=5000, errors=2),
        replace(NET, breaker="open"),
    ),
    tenants=(ALICE, replace(BOB, hits=7, misses=4, puts=5, put_bytes=500)),
    stages=(tenancy.StageStats("ssd", 9, 50, 1, 5, 0, 0, 500),),
)


def test_what_happened_is_per_second_between_two_reports():
    rates = rates_between(BEFORE, NOW)
    assert (rates.seconds, rates.puts_per_second, rates.gets_per_second) == (2.0, 2.0, 5.0)
    assert (rates.put_bytes_per_second, rates.read_bytes_per_second) == (200.0, 700.0)
    assert (rates.hit_rate, rates.hit_rate_since_start) == (0.6, 36 / 50)
    memory, ssd, net = rates.tiers
    assert (memory.fill, memory.hit_share, memory.hits_per_second, memory.evictions_per_second) == (0.5, 0.2, 1.0, 4.0)
    assert (memory.written_bytes_per_second, memory.read_bytes_per_second) == (200.0, 200.0)
    assert (ssd.written_bytes_per_second, ssd.errors_per_second, ssd.dirty_bytes) == (100.0, 1.0, 9)
    assert (net.fill, net.limit_bytes, net.breaker) == (None, None, "open")


def test_a_pool_stands_before_the_tiers():
    pool = PoolReport("cuda:0", 7, 100, 25, 3, 3, hits=10, misses=5, evictions=1, dirty_bytes=4)
    now = replace(NOW, pools=(replace(pool, hits=16, misses=7, evictions=5),))
    first, second, *_ = rates_between(replace(BEFORE, pools=(pool,)), now).tiers
    assert (first.name, first.fill, first.hit_share, first.hits_per_second) == ("cuda:0 of 7", 0.25, 0.75, 3.0)
    assert (first.evictions_per_second, first.dirty_bytes, second.name) == (2.0, 4, "memory")


def test_the_busiest_tenant_stands_first():
    bob, alice = rates_between(BEFORE, NOW).tenants
    assert (bob.name, bob.gets_per_second, bob.puts_per_second, bob.hit_rate) == ("bob", 5.0, 2.0, 0.6)
    assert (alice.name, alice.gets_per_second, alice.hit_rate, alice.used_bytes) == ("alice", 0.0, None, 30)


def test_a_first_report_and_one_of_a_restarted_daemon_have_no_rates():
    for before in (None, replace(BEFORE, pid=2), replace(BEFORE, uptime_seconds=99.0)):
        rates = rates_between(before, NOW)
        assert (rates.seconds, rates.puts_per_second, rates.hit_rate) == (0.0, 0.0, None)
        assert rates.hit_rate_since_start == 36 / 50
        assert rates.tiers[0].read_bytes_per_second == 0.0


def test_a_tenant_and_a_tier_that_are_new_count_from_nothing():
    rates = rates_between(replace(BEFORE, tenants=(), tiers=(MEMORY,)), NOW)
    assert {tenant.name: tenant.puts_per_second for tenant in rates.tenants} == {"alice": 2.5, "bob": 2.5}
    assert rates.tiers[1].hits_per_second == 0.0
