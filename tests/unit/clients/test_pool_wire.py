"""What pools say of themselves: it comes back as it was, and what does not hold is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients import wire
from kvloom.clients.pool_wire import Held, PoolCounts, PoolIntroduction
from kvloom.errors import InvalidRequest, TooManyItems

counts = st.builds(PoolCounts, *[st.integers(0, 2**64 - 1)] * 6)
keys = st.lists(st.binary(min_size=32, max_size=32), max_size=4)


@given(counts, keys, keys, keys)
def test_a_report_comes_back_as_it_was(numbers, added, gone, used):
    assert Held.decode(Held(numbers, added, gone, used).encode()) == Held(numbers, added, gone, used)


@given(st.binary(max_size=200))
def test_garbage_is_refused(body):
    with contextlib.suppress(InvalidRequest):
        assert Held.decode(body).encode() == body


def test_a_report_has_as_many_keys_as_it_says():
    body = Held(PoolCounts(), [bytes(32)]).encode()
    for wrong in (body[:-1], body + b"\0", body[:40]):
        with pytest.raises(InvalidRequest, match="HELD"):
            Held.decode(wrong)
    many = Held(PoolCounts(), [bytes(32)] * (limits.POOL_REPORT_KEYS_MAX + 1)).encode()
    with pytest.raises(TooManyItems, match="1001 keys, the limit is 1000"):
        Held.decode(many)


@pytest.mark.parametrize(
    "about", [("x" * 65, 1, 1), ("a\nb", 1, 1), ("host", 0, 1), ("host", 2**63, 1), ("host", 1, -1), ("host", 1, 2**31)]
)
def test_a_pool_has_a_short_name_and_a_size(about):
    with pytest.raises(InvalidRequest, match="pool"):
        PoolIntroduction(*about)
    assert wire.decode(PoolIntroduction, wire.encode(PoolIntroduction("cuda:0", 5, 7))) == PoolIntroduction(
        "cuda:0", 5, 7
    )
