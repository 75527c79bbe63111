"""What every policy promises, whatever it prefers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.errors import ConfigError
from kvloom.kvstore.eviction import DEFAULT_POLICY, POLICIES, ChunkAttributes, make_policy
from kvloom.kvstore.eviction.ghosts import NO_GHOST, GhostTable
from kvloom.kvstore.eviction.sketch import FrequencySketch
from kvloom.kvstore.key import OWNER_BYTES, StorageKey

KEYS = 12
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "use", "delete", "evict", "hint"]),
        st.integers(0, KEYS - 1),
        st.integers(1, 99),
        st.one_of(st.none(), st.integers(0, KEYS - 1)),
    ),
    max_size=120,
)
GHOSTS_MIN = 128
GHOSTS_PER_RECORD = 8


@pytest.mark.parametrize("name", POLICIES)
@given(calls=CALLS)
def test_knows_what_is_resident_and_names_a_victim_among_it(name, key, calls):
    policy = make_policy(name)
    sizes: dict[bytes, int] = {}
    for call, number, size_bytes, parent in calls:
        if call == "put":
            above = None if parent is None else key(parent)
            policy.record_put(key(number), size_bytes, ChunkAttributes(above, 64 * number, size_bytes))
            sizes[key(number)] = size_bytes
        elif call == "use":
            policy.record_use(key(number))
        elif call == "delete":
            policy.record_delete(key(number))
            sizes.pop(key(number), None)
        elif call == "hint":
            policy.record_hint(key(number), discard=bool(size_bytes % 2))
        elif (victim := policy.victim()) is not None:
            policy.record_evict(victim)
            del sizes[victim]
        assert len(policy) == len(sizes)
        assert policy.total_bytes == sum(sizes.values())
        assert all(policy.size_of(key(n)) == sizes.get(key(n), 0) for n in range(KEYS))
        assert all((key(n) in policy) == (key(n) in sizes) for n in range(KEYS))
        assert policy.victim() == policy.victim()
        assert (policy.victim() in sizes) if sizes else policy.victim() is None


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25)
@given(requests=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=60))
def test_gives_everything_up_one_by_one_and_replays_to_the_same_victims(name, key, requests):
    def replay() -> list[bytes]:
        policy = make_policy(name)
        victims = []
        for conversation, length in requests:
            for place in range(length):
                number = 100 * conversation + place
                if key(number) in policy:
                    policy.record_use(key(number))
                    continue
                while len(policy) >= 20:
                    victims.append(policy.victim())
                    policy.record_evict(victims[-1])
                above = key(number - 1) if place else None
                policy.record_put(key(number), 10, ChunkAttributes(above, 256 * place, 256))
        while (victim := policy.victim()) is not None:
            victims.append(victim)
            policy.record_evict(victim)
        assert len(policy) == 0
        assert policy.total_bytes == 0
        return victims

    assert replay() == replay()


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_remembered_of_the_evicted_is_bounded(name, key):
    policy = make_policy(name)
    most = 0
    for number in range(6000):
        while len(policy) >= 100:
            policy.record_evict(policy.victim())
        policy.record_put(key(number), 10, ChunkAttributes(None, 0, 256))
        if number % 3 == 0:
            policy.record_use(key(number - number % 50))
        most = max(most, getattr(policy, "remembered", 0)) if number % 100 == 0 else most
    assert most <= max(GHOSTS_MIN, GHOSTS_PER_RECORD * 100)


@pytest.mark.parametrize("name", POLICIES)
def test_an_unknown_record_needs_no_attributes(name, key):
    policy = make_policy(name)
    policy.record_put(key(1), 5)
    policy.record_put(key(2), 7)
    assert policy.total_bytes == 12
    assert policy.victim() in (key(1), key(2))


def test_unknown_policy_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'oldest' is unknown; policies are .*lru"):
        make_policy("oldest")


def test_the_default_is_one_of_them():
    assert DEFAULT_POLICY in POLICIES


def test_keys_of_one_owner_are_told_apart_by_what_follows_the_owner(key):
    """A storage key begins with its owner, and a policy may have one owner's keys only."""
    keys = [StorageKey(bytes(OWNER_BYTES) + key(number)[OWNER_BYTES:]) for number in range(64)]
    ghosts = GhostTable()
    sketch = FrequencySketch()
    for number, mine in enumerate(keys, 1):
        ghosts.add(mine, number)
        sketch.add(mine)
    assert [ghosts.take(mine) for mine in keys].count(NO_GHOST) < 16
    assert max(sketch.count(mine) for mine in keys) < 8
