"""Which requests a read of ranges takes, and the names of objects."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.container import ByteRange
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.network.s3_object import cut, frames, key_of, object_path, spans

CONTENT = make_record(1, 3_000_000).payload
RANGES = st.lists(
    st.tuples(st.integers(0, len(CONTENT)), st.integers(0, 50_000)).map(
        lambda item: ByteRange(item[0], min(len(CONTENT), item[0] + item[1]))
    ),
    max_size=8,
)


@given(RANGES)
def test_every_range_is_cut_out_of_one_request(ranges):
    wanted = [item for item in ranges if item.start < item.stop]
    requests = spans(wanted)
    held = [(item.start, memoryview(CONTENT)[item.start : item.stop]) for item in requests]
    for item in ranges:
        assert bytes(cut(held, item)) == CONTENT[item.start : item.stop]
    assert all(one.stop < other.start for one, other in pairwise(requests))
    assert {item.start for item in requests} <= {item.start for item in wanted}
    assert {item.stop for item in requests} <= {item.stop for item in wanted}


def test_near_ranges_are_one_request_and_far_ones_are_not():
    near, far = ByteRange(1000, 2000), ByteRange(2_000_000, 2_000_100)
    assert spans([far, near, ByteRange(0, 10)]) == [ByteRange(0, 2000), far]


@given(st.integers(0, 3_000_000))
def test_the_pieces_of_an_object_are_the_object(size_bytes):
    pieces = list(frames(b"header", memoryview(CONTENT)[:size_bytes]))
    assert b"".join(pieces) == b"header" + CONTENT[:size_bytes]
    assert max(map(len, pieces)) <= 1024 * 1024


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_found_again_by_the_name_of_its_object(key):
    path = object_path(StorageKey(key))
    assert key_of(path) == key
    assert path.startswith(key[:16].hex() + "/")


@pytest.mark.parametrize(
    "path", ["", "a", "a/b", "0" * 32, "0" * 32 + "/" + "0" * 31, "0" * 32 + "/" + "A" * 32, "/" + "0" * 64]
)
def test_a_name_that_is_none_of_ours_has_no_key(path):
    assert key_of(path) is None
