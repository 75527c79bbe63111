import random

import psutil
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.daemon.chunk_names import ChunkNames

OWNER = b"o" * 16


def keyed(number):
    chance = random.Random(number)
    return OWNER + chance.randbytes(16), chance.randbytes(32)


def test_the_last_names_are_remembered_and_the_others_forgotten():
    names = ChunkNames(1024)
    told = [keyed(number) for number in range(3000)]
    for key, content in told:
        names.note(key, content)
    assert all(names.get(key) == content for key, content in told[-256:])
    found = [names.get(key) for key, _ in told]
    assert {content for content in found if content is not None} <= {content for _, content in told}
    assert 900 < sum(content is not None for content in found) <= 1024


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 8))
def test_of_a_few_names_it_is_the_oldest_that_is_forgotten(numbers, names_max):
    names, expected = ChunkNames(names_max), {}
    for turn, number in enumerate(numbers):
        key, _ = keyed(number)
        content = bytes((turn,)) * 32
        names.note(key, content)
        expected.pop(key, None)
        expected[key] = content
        if len(expected) > names_max:
            del expected[next(iter(expected))]
    assert {key: names.get(key) for key, _ in map(keyed, range(13))} == {
        key: expected.get(key) for key, _ in map(keyed, range(13))
    }


def test_all_of_them_take_what_the_limit_says():
    names = ChunkNames()
    before = psutil.Process().memory_info().rss
    for number in range(20_000):
        names.note(*keyed(number))
    assert psutil.Process().memory_info().rss - before < 8 * 2**20
    assert names.get(keyed(19_999)[0]) == keyed(19_999)[1]
    assert limits.EVENT_NAMES_MAX * 48 < 8 * 2**20
