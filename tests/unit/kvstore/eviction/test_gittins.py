import hashlib
import random
import tracemalloc

import numpy as np
import pytest

from kvloom.kvstore.eviction import UNATTRIBUTED, ChunkAttributes, make_policy
from kvloom.kvstore.eviction.ghosts import NO_GHOST, GhostTable
from kvloom.kvstore.eviction.prefix_slots import NO_SLOT, PrefixSlots
from kvloom.kvstore.eviction.reuse_model import BUCKETS, EDGES, ReuseClass, ReuseModel, bucket_of

CHUNK = ChunkAttributes(None, 0, 64)
"""First and short: that much is known of it."""


def replay(policy, key, references, capacity):
    hits = 0
    for number in references:
        if key(number) in policy:
            hits += 1
            policy.record_use(key(number))
            continue
        while len(policy) >= capacity:
            policy.record_evict(policy.victim())
        policy.record_put(key(number), 1, CHUNK)
    return hits


def test_a_scan_does_not_push_out_what_is_used_again_and_again(key):
    """One use in five is of ten popular chunks in turn, the rest are new: an LRU of 30 keeps none of them."""
    references = [turn // 5 % 10 if turn % 5 == 0 else 1000 + turn for turn in range(6000)]
    lru = replay(make_policy("lru"), key, references, 30)
    gittins = replay(make_policy("gittins"), key, references, 30)
    assert lru == 0
    assert gittins > 0.5 * 1200


def test_chunks_used_again_after_a_pause_are_kept_over_the_pause(key):
    """Everything comes twice, 300 uses apart, which is more than fits: keeping some beats keeping the newest."""
    references = []
    for turn in range(8000):
        references.append(turn)
        if turn >= 150:
            references.append(turn - 150)
    lru = replay(make_policy("lru"), key, references, 100)
    gittins = replay(make_policy("gittins"), key, references, 100)
    assert lru == 0
    assert gittins > 1000


def test_everything_deleted_leaves_nothing_behind(key):
    policy = make_policy("gittins")
    for number in range(300):
        above = key(number - 1) if number % 10 else None
        policy.record_put(key(number), 1, ChunkAttributes(above, 256 * (number % 10), 256))
    for number in range(300):
        policy.record_delete(key(number))
    assert len(policy) == 0
    assert policy.remembered == 0
    assert not any(policy._cells)
    for number in range(300, 1000):  # time passes, so that what is empty is found
        policy.record_put(key(number), 1, CHUNK)
        policy.record_delete(key(number))
    assert len(policy._cohorts) < 10
    assert not policy._slots._slots


def test_hazards_are_shares_of_those_who_reached_the_age():
    model = ReuseModel()
    first = model.add(ReuseClass(1, 0, False, 0))
    model.note_entered(first, 3, 10_000)
    for _ in range(2500):
        model.note_used(first, 3)
    assert model.hazards()[first, 3] == pytest.approx(0.25, abs=0.01)
    assert model.hazards()[first, 9] < 0.03


def test_the_index_is_the_best_rate_over_all_times_to_stop():
    model = ReuseModel()
    model.add(ReuseClass(1, 0, False, 0))
    for bucket in range(BUCKETS):
        model.note_entered(0, bucket, 1000)
        for _ in range(5 * (bucket % 7)):
            model.note_used(0, bucket)
    hazards, index = model.hazards()[0], model.indices()[0]
    for age in (0, 5, 20):
        best = 0.0
        for stop in range(age, BUCKETS):
            alive, uses, time = 1.0, 0.0, 0.0
            for bucket in range(age, stop + 1):
                width = EDGES[bucket + 1] - EDGES[bucket]
                uses += alive * hazards[bucket]
                time += alive * (1 - hazards[bucket] / 2) * width
                alive *= 1 - hazards[bucket]
            best = max(best, uses / time)
        assert index[age] == pytest.approx(best)


def test_the_index_grows_with_the_cost():
    model = ReuseModel()
    model.add(ReuseClass(1, 0, False, 0))
    model.add(ReuseClass(1, 0, False, 4))
    index = model.indices()
    assert np.allclose(index[1], 2 * index[0])


def test_a_class_seldom_seen_leans_on_its_like():
    model = ReuseModel()
    model.add(ReuseClass(1, 0, False, 0))
    model.add(ReuseClass(1, 1, False, 0))
    model.add(ReuseClass(2, 0, False, 0))
    model.note_entered(0, 5, 10_000)
    for _ in range(4000):
        model.note_used(0, 5)
    model.note_entered(2, 5, 10_000)
    hazards = model.hazards()
    assert hazards[1, 5] == pytest.approx(0.4, abs=0.02)
    assert hazards[2, 5] < 0.03


def test_halving_keeps_the_shares():
    model = ReuseModel()
    model.add(ReuseClass(1, 0, False, 0))
    model.note_entered(0, 2, 100_000)
    for _ in range(1000):
        model.note_used(0, 2)
    before = model.hazards()[0, 2]
    model.halve()
    assert model.hazards()[0, 2] == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize(("age", "bucket"), [(0, 0), (31, 0), (32, 1), (43, 1), (44, 2), (10**12, BUCKETS - 1)])
def test_ages_fall_into_buckets(age, bucket):
    assert bucket_of(age) == bucket


def test_ghosts_are_found_once_and_the_oldest_make_room(key):
    table = GhostTable()
    newest = 4 * table.capacity
    lost = [table.add(key(number), number) for number in range(1, newest + 1)]
    assert len(table) <= table.capacity
    assert sum(number != NO_GHOST for number in lost) + len(table) == newest
    assert table.take(key(newest)) == newest
    assert table.take(key(newest)) == NO_GHOST
    assert table.take(key(1)) == NO_GHOST


def test_ghosts_forgotten_when_the_table_grows_are_handed_back(key):
    table = GhostTable()
    table.add(key(1), 7)
    assert len(table.expect(table.capacity)) == 0
    forgotten = table.expect(table.capacity + 1)
    assert [number for number in forgotten if number != NO_GHOST] == [7]
    assert len(table) == 0


def test_slots_keep_the_tree_through_deletion_and_return():
    def name(number: int) -> bytes:
        return hashlib.blake2b(bytes([number]), digest_size=32).digest()

    slots = PrefixSlots()
    child = slots.add(name(2), 5, ChunkAttributes(name(1), 7, 9))
    assert slots.find(name(1)) == NO_SLOT
    assert slots.attributes(child) == ChunkAttributes(name(1), 7, 9)
    parent = slots.add(name(1), 3, UNATTRIBUTED)
    assert slots.parent[child] == parent
    assert slots.children[parent] == 1
    assert slots.remove(parent) == NO_SLOT
    assert slots.total_bytes == 5
    assert slots.remove(child) == NO_SLOT
    assert slots.residents == 0
    again = slots.add(name(3), 1, UNATTRIBUTED)
    assert again in (parent, child)


def churned(policy, key, references, capacity, attributes):
    """The victims of a tier of ``capacity`` records, by the turn in which they went."""
    victims = {}
    for turn, number in enumerate(references):
        if key(number) in policy:
            policy.record_use(key(number))
            continue
        while len(policy) >= capacity:
            victims[turn] = policy.victim()
            policy.record_evict(victims[turn])
        policy.record_put(key(number), 1, attributes)
    return victims


@pytest.mark.parametrize(
    "attributes", [UNATTRIBUTED, ChunkAttributes(None, 512, 256)], ids=["unknown", "behind others"]
)
@pytest.mark.parametrize("capacity", [1, 20, 90])
def test_without_places_the_victims_are_lrus(attributes, capacity, key):
    source = random.Random(capacity)
    references = [int(source.paretovariate(0.6)) % 400 for _ in range(6000)]
    lru = churned(make_policy("lru"), key, references, capacity, attributes)
    gittins = churned(make_policy("gittins"), key, references, capacity, attributes)
    settled = 1000  # what was put before the policy knew has gone
    assert {turn: victim for turn, victim in gittins.items() if turn >= settled} == {
        turn: victim for turn, victim in lru.items() if turn >= settled
    }
    assert max(lru) >= settled


def test_when_places_are_said_nobody_leaves_and_leaves_go_first(key):
    policy = make_policy("gittins")
    for number in range(400):
        policy.record_put(key(number), 1)
    for number in range(10_000, 10_400):  # chains of four, longer than it takes to believe it
        above = key(number - 1) if number % 4 else None
        policy.record_put(key(number), 1, ChunkAttributes(above, 256 * (number % 4), 256))
    assert len(policy) == 800
    resident = {key(number): number for number in (*range(400), *range(10_000, 10_400))}
    while resident:
        victim = policy.victim()
        number = resident.pop(victim)
        assert number < 10_000 or number % 4 == 3 or key(number + 1) not in resident
        policy.record_evict(victim)
    assert policy.victim() is None


def test_when_places_are_said_no_more_the_oldest_go_first(key):
    policy = make_policy("gittins")
    for number in range(100):
        policy.record_put(key(number), 1, CHUNK)
        policy.record_use(key(number))
    for number in range(1000, 2000):
        policy.record_put(key(number), 1)
    for number in range(100):
        victim = policy.victim()
        assert victim in {key(old) for old in range(100)}, number
        policy.record_evict(victim)


def test_memory_per_resident_is_what_the_policy_says_with_all_it_remembers(key):
    residents = 5000
    keys = [key(number) for number in range(2 * residents)]
    churned(make_policy("gittins"), key, range(300), 100, CHUNK)  # what the first eviction loads is no resident's
    policy = make_policy("gittins")
    tracemalloc.start()
    try:
        for item in keys:
            while len(policy) >= residents:
                policy.record_evict(policy.victim())
            policy.record_put(item, 10**9, CHUNK)
        used_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used_bytes / residents < policy.resident_bytes


def test_cohorts_get_longer_where_there_are_too_many(key, monkeypatch):
    """Two dozen classes at a time, which would take 24 cohorts for each quantum of 32 calls."""
    monkeypatch.setattr("kvloom.kvstore.eviction.gittins._COHORTS_MAX", 64)
    policy = make_policy("gittins")
    for number in range(6000):
        while len(policy) >= 500:
            policy.record_evict(policy.victim())
        policy.record_put(key(number), 1 << number % 24, ChunkAttributes(None, 0, 64))
    assert len(policy._cohorts) < 160
