from hypothesis import given
from hypothesis import strategies as st

from kvloom.kvstore.eviction.key_index import ABSENT, KeyIndex
from kvloom.kvstore.key import StorageKey

CROWDED = st.integers(0, 40).map(lambda n: StorageKey(bytes(16) + bytes([n % 3]) + bytes(14) + bytes([n])))
"""Keys of three tags, so that nearly all of them collide."""
SPREAD = st.integers(0, 2**32 - 1).map(lambda n: StorageKey(bytes(16) + n.to_bytes(16, "little")))


@given(calls=st.lists(st.tuples(st.booleans(), CROWDED | SPREAD), max_size=300))
def test_it_is_a_dictionary(calls: list[tuple[bool, StorageKey]]) -> None:
    keys: list[StorageKey | None] = []
    index = KeyIndex(keys)
    expected: dict[StorageKey, int] = {}
    for put, key in calls:
        if put and key not in expected:
            expected[key] = len(keys)
            keys.append(key)
            index.add(key, expected[key])
        elif not put and key in expected:
            slot = expected.pop(key)
            index.remove(slot)
            keys[slot] = None
        assert len(index) == len(expected)
        assert index.find(key) == expected.get(key, ABSENT)
    assert [index.find(key) for key in expected] == list(expected.values())


def test_it_grows_with_many_entries(key) -> None:
    keys = [key(number) for number in range(5000)]
    index = KeyIndex(keys)
    for slot, item in enumerate(keys):
        index.add(item, slot)
    assert [index.find(item) for item in keys] == list(range(5000))
    assert index.find(key(5001)) == ABSENT
