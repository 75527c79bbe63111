"""The daemon's index of pools: what they said they hold, no more of it than there is room for, gone when they go."""

import pytest

from kvloom import limits
from kvloom.clients.pool_wire import Held, PoolCounts, PoolIntroduction, PoolMatch
from kvloom.daemon.pools import PoolRegistry
from kvloom.kvstore.key import OwnerId

ALICE, BOB = OwnerId(b"a" * 16), OwnerId(b"b" * 16)
KEYS = [bytes([number]) * 32 for number in range(6)]


@pytest.fixture
def registry():
    return PoolRegistry()


def test_who_holds_most_of_a_prefix_comes_first(registry):
    for pid, held in ((1, KEYS[:2]), (2, KEYS[:4]), (3, KEYS[1:])):
        registry.update(registry.register(ALICE, PoolIntroduction("cuda:0", 100, pid)), Held(PoolCounts(), held))
    assert registry.resident(ALICE, KEYS[:5]) == (
        PoolMatch("cuda:0", 2, 4),
        PoolMatch("cuda:0", 1, 2),
        PoolMatch("cuda:0", 3, 0),
    )
    assert [match.matched for match in registry.resident(ALICE, [])] == [0, 0, 0]
    assert registry.resident(BOB, KEYS) == (), "another tenant's pools are nobody's business"


def test_what_goes_is_held_no_more(registry):
    pool = registry.register(ALICE, PoolIntroduction("host", 100, 1))
    registry.update(pool, Held(PoolCounts(used_bytes=60, chunks=3, hits=5), KEYS[:3]))
    registry.update(pool, Held(PoolCounts(used_bytes=40, chunks=2, hits=9), KEYS[3:4], gone=[*KEYS[:2], KEYS[5]]))
    (report,) = registry.reports()
    assert (report.device, report.limit_bytes, report.used_bytes, report.tracked, report.hits) == (
        "host",
        100,
        40,
        2,
        9,
    )
    assert registry.resident(ALICE, [KEYS[2], KEYS[3], KEYS[0]])[0].matched == 2
    registry.remove(pool)
    assert registry.reports() == registry.resident(ALICE, KEYS) == ()


def test_keys_of_all_pools_together_are_bounded(registry, monkeypatch):
    monkeypatch.setattr(limits, "POOL_CHUNKS_REGISTERED_MAX", 4)
    one, other = (registry.register(ALICE, PoolIntroduction("host", 100, pid)) for pid in (1, 2))
    registry.update(one, Held(PoolCounts(chunks=3), KEYS[:3]))
    registry.update(other, Held(PoolCounts(chunks=6), KEYS))
    assert [report.tracked for report in registry.reports()] == [3, 1]
    assert [report.chunks for report in registry.reports()] == [3, 6]
    registry.remove(one)
    registry.update(other, Held(PoolCounts(chunks=6), KEYS[1:]))
    assert registry.reports()[0].tracked == 4
