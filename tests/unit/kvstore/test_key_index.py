from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.key_index import ABSENT, KeyIndex

CROWDED = st.integers(0, 40).map(lambda n: StorageKey(bytes(16) + bytes([n % 3]) + bytes(14) + bytes([n])))
"""Keys of three tags, so that nearly all of them collide."""
SPREAD = st.integers(0, 2**32 - 1).map(lambda n: StorageKey(bytes(16) + n.to_bytes(16, "little")))


def spread(number: int) -> StorageKey:
    return StorageKey(bytes(16) + blake3(number.to_bytes(4, "little")).digest(16))


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


@given(held=st.lists(CROWDED | SPREAD, unique=True, max_size=80), asked=st.lists(CROWDED | SPREAD, max_size=80))
def test_many_are_found_as_one_is(held: list[StorageKey], asked: list[StorageKey]) -> None:
    index = KeyIndex(held)
    for slot, key in enumerate(held):
        index.add(key, slot)
    questions = [*asked, *held]
    assert index.find_many(questions) == [index.find(key) for key in questions]


def test_it_grows_with_many_entries() -> None:
    keys = [spread(number) for number in range(5000)]
    index = KeyIndex(keys)
    for slot, item in enumerate(keys):
        index.add(item, slot)
    assert [index.find(item) for item in keys] == list(range(5000))
    assert index.find(spread(5001)) == ABSENT
    assert index.find_many([*keys[::7], spread(5001)]) == [*range(0, 5000, 7), ABSENT]
