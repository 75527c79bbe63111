from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import ConfigError
from kvloom.kvstore.eviction import POLICIES, make_policy
from kvloom.kvstore.key import StorageKey

CALLS = st.lists(st.tuples(st.sampled_from(["put", "use", "delete", "evict"]), st.integers(0, 8), st.integers(1, 99)))


def key(number: int) -> StorageKey:
    return StorageKey(bytes([number]) * 32)


@pytest.mark.parametrize("name", POLICIES)
@given(calls=CALLS)
def test_policy_knows_what_is_resident_and_names_a_victim_among_it(
    name: str, calls: list[tuple[str, int, int]]
) -> None:
    policy = make_policy(name)
    sizes: dict[StorageKey, int] = {}
    for call, number, size_bytes in calls:
        if call == "put":
            policy.record_put(key(number), size_bytes)
            sizes[key(number)] = size_bytes
        elif call == "use":
            policy.record_use(key(number))
        elif call == "delete":
            policy.record_delete(key(number))
            sizes.pop(key(number), None)
        elif (victim := policy.victim()) is not None:
            policy.record_evict(victim)
            del sizes[victim]
        assert len(policy) == len(sizes)
        assert policy.total_bytes == sum(sizes.values())
        assert all(policy.size_of(key(n)) == sizes.get(key(n), 0) for n in range(9))
        assert all((key(n) in policy) == (key(n) in sizes) for n in range(9))
        assert policy.victim() == policy.victim()
        assert (policy.victim() in sizes) if sizes else policy.victim() is None


@given(calls=CALLS)
def test_lru_evicts_by_last_put_or_use(calls: list[tuple[str, int, int]]) -> None:
    policy = make_policy("lru")
    order: OrderedDict[StorageKey, None] = OrderedDict()
    for call, number, size_bytes in calls:
        if call == "put":
            policy.record_put(key(number), size_bytes)
            order[key(number)] = None
            order.move_to_end(key(number))
        elif call == "use":
            policy.record_use(key(number))
            if key(number) in order:
                order.move_to_end(key(number))
        elif call == "delete":
            policy.record_delete(key(number))
            order.pop(key(number), None)
        assert policy.victim() == next(iter(order), None)


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'oldest' is unknown; policies are .*lru"):
        make_policy("oldest")
