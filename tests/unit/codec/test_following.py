"""Following a container while it comes: sound ones are known so at the end, however they come; others never are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.container import verify
from kvloom.codec.following import Following
from kvloom.codec.level import DRAFT, EXACT


def follow(data, stops):
    buffer = bytearray(len(data))
    following = Following(buffer)
    start = 0
    for stop in [*sorted(stops), len(data)]:
        buffer[start:stop] = data[start:stop]
        following.advance(stop)
        start = stop
    return following


@given(st.data())
def test_a_sound_one_is_verified_when_all_has_come(container_bytes, data):
    whole = container_bytes([EXACT], segment_bytes=500)
    stops = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    assert follow(whole, stops).verified == verify(whole)


def test_it_is_not_before(container_bytes):
    whole = container_bytes([EXACT], segment_bytes=500)
    following = Following(bytearray(whole))
    following.advance(len(whole) - 1)
    assert following.verified is None
    following.advance(len(whole))
    assert following.verified == verify(whole)


@given(st.data())
def test_a_damaged_one_never_is(container_bytes, data):
    whole = bytearray(container_bytes([EXACT], segment_bytes=500))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    assert follow(whole, data.draw(st.lists(st.integers(0, len(whole)), max_size=3))).verified is None


@pytest.mark.parametrize("data", [b"", b"KVLM", bytes(300), b"\xff" * 5000])
def test_what_is_no_container_never_is(data):
    assert follow(data, [3]).verified is None


def test_a_prefix_that_ends_at_a_level_is_one(container_bytes):
    whole = container_bytes([DRAFT, EXACT], segment_bytes=500)
    prefix = whole[: verify(whole).level_end(DRAFT)]
    assert follow(prefix, [100]).verified == verify(prefix)
    assert follow(whole[:-1], [100]).verified is None
