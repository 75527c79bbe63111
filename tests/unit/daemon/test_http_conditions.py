"""Conditions and ranges come to what RFC 9110 says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.container import ByteRange
from kvloom.daemon.http_conditions import Conditions, Verdict, cut, entity_tag, parse_range
from kvloom.errors import RangeNotSatisfiable

TAG = entity_tag(b"a header")
GO_ON, NOT_MODIFIED, FAILED = Verdict.GO_ON, Verdict.NOT_MODIFIED, Verdict.FAILED


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=90-", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=50-1000", (50, 100)),
        ("BYTES = 1 - 2", (1, 3)),
    ],
)
def test_a_range_is_the_bytes_it_names(text, wanted):
    assert parse_range(text, 100) == ByteRange(*wanted)


@pytest.mark.parametrize("text", ["bytes=5-4", "bytes=-", "bytes=", "lines=0-1", "bytes=0-1,3-4", "0-1", "bytes=a-b"])
def test_what_is_no_single_range_is_everything(text):
    assert parse_range(text, 100) is None


@pytest.mark.parametrize("text", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_behind_the_end_cannot_be_sent(text):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(text, 100)


@given(st.lists(st.binary(max_size=20), max_size=8), st.integers(0, 200), st.integers(0, 200))
def test_what_is_cut_out_is_what_a_slice_is(parts, start, length):
    assert b"".join(cut(parts, ByteRange(start, start + length))) == b"".join(parts)[start : start + length]


@given(st.text(max_size=60), st.integers(0, 1000))
def test_any_text_is_a_range_or_none(text, total_bytes):
    try:
        found = parse_range(text, total_bytes)
    except RangeNotSatisfiable:
        return
    assert found is None or 0 <= found.start < found.stop <= total_bytes


@pytest.mark.parametrize(
    ("match", "stored", "verdict"),
    [
        (TAG, TAG, GO_ON),
        (f'"x", {TAG}', TAG, GO_ON),
        ("*", TAG, GO_ON),
        ("*", None, FAILED),
        (TAG, None, FAILED),
        ('"other"', TAG, FAILED),
        (f"W/{TAG}", TAG, FAILED),
        ("nonsense", TAG, FAILED),
        ("", TAG, FAILED),
    ],
)
def test_if_match_wants_what_is_stored(match, stored, verdict):
    for reading in (True, False):
        assert Conditions(match=match).judge(stored, reading=reading) is verdict


@pytest.mark.parametrize(
    ("none_match", "stored", "matches"),
    [
        (TAG, TAG, True),
        (f"W/{TAG}", TAG, True),
        ("*", TAG, True),
        ("*", None, False),
        ('"x"', TAG, False),
        ("x", TAG, False),
    ],
)
def test_if_none_match_wants_something_else(none_match, stored, matches):
    conditions = Conditions(none_match=none_match)
    assert conditions.judge(stored, reading=True) is (NOT_MODIFIED if matches else GO_ON)
    assert conditions.judge(stored, reading=False) is (FAILED if matches else GO_ON)


def test_if_match_goes_before_if_none_match():
    assert Conditions(match='"x"', none_match=TAG).judge(TAG, reading=True) is FAILED


def test_if_range_lets_a_range_stand_only_for_the_same_bytes():
    assert Conditions(range="bytes=0-1", if_range=TAG).range_of(TAG, 9) == ByteRange(0, 2)
    for other in ('"x"', f"W/{TAG}", "Sun, 06 Nov 1994 08:49:37 GMT"):
        assert Conditions(range="bytes=0-1", if_range=other).range_of(TAG, 9) is None
        assert Conditions(range="bytes=99-", if_range=other).range_of(TAG, 9) is None
