"""Policies that know the tree of prefixes: what it costs to compute again, and who is worth what without whom."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.kvstore.eviction import ChunkAttributes, RecomputeCost, make_policy

PREFIX_POLICIES = ("gdsf", "gittins")


def put_chain(policy, key, numbers, *, below=None, start=0):
    for place, number in enumerate(numbers):
        policy.record_put(key(number), 10, ChunkAttributes(below, start + 256 * place, 256))
        below = key(number)


@pytest.mark.parametrize("name", PREFIX_POLICIES)
@settings(max_examples=40)
@given(
    paths=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=40),
    capacity=st.integers(3, 30),
)
def test_a_parent_never_goes_before_its_resident_children(name, key, paths, capacity):
    policy, parents = make_policy(name), {}
    for path in paths:
        above, number = None, 1
        for branch in path:
            number = 5 * number + branch
            if key(number) in policy:
                policy.record_use(key(number))
            else:
                while len(policy) >= capacity:
                    victim = policy.victim()
                    assert not any(child in policy for child, parent in parents.items() if parent == victim)
                    policy.record_evict(victim)
                policy.record_put(key(number), 1, ChunkAttributes(above, 256 * len(path), 256))
                parents[key(number)] = above
            above = key(number)


@pytest.mark.parametrize("name", PREFIX_POLICIES)
def test_parents_in_a_circle_do_not_stop_eviction(name, key):
    policy = make_policy(name)
    policy.record_put(key(1), 1, ChunkAttributes(key(2), 0, 256))
    policy.record_put(key(2), 1, ChunkAttributes(key(1), 0, 256))
    policy.record_put(key(3), 1, ChunkAttributes(key(3), 0, 256))
    for _ in range(3):
        policy.record_evict(policy.victim())
    assert len(policy) == 0


@pytest.mark.parametrize("name", PREFIX_POLICIES)
def test_a_parent_that_comes_back_finds_its_children(name, key):
    policy = make_policy(name)
    put_chain(policy, key, [1, 2])
    policy.record_delete(key(1))
    policy.record_put(key(1), 10, ChunkAttributes(None, 0, 256))
    policy.record_put(key(9), 10, ChunkAttributes(None, 0, 256))
    victims = []
    while (victim := policy.victim()) is not None:
        victims.append(victim)
        policy.record_evict(victim)
    assert victims.index(key(2)) < victims.index(key(1))


def test_cost_grows_with_the_position():
    cost = RecomputeCost(even_tokens=1000.0)
    assert cost.of(ChunkAttributes(None, 0, 200)) == pytest.approx(220.0)
    assert cost.of(ChunkAttributes(None, 1000, 200)) == pytest.approx(420.0)


def test_gdsf_keeps_what_costs_more_and_what_is_used_more(key):
    policy = make_policy("gdsf")
    policy.record_put(key(1), 10, ChunkAttributes(None, 0, 256))
    policy.record_put(key(2), 10, ChunkAttributes(None, 100_000, 256))
    policy.record_put(key(3), 10, ChunkAttributes(None, 0, 256))
    for _ in range(9):
        policy.record_use(key(3))
    victims = [policy.victim()]
    policy.record_evict(victims[0])
    victims.append(policy.victim())
    assert victims == [key(1), key(2)]


def test_gdsf_lets_a_child_without_its_parent_go_first(key):
    policy = make_policy("gdsf")
    policy.record_put(key(1), 10, ChunkAttributes(None, 0, 256))
    policy.record_put(key(3), 10, ChunkAttributes(key(2), 50_000, 256))
    assert policy.victim() == key(3)
