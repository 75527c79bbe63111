"""When loads are looked at, and what they say of their link by then."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.overdue import look_again_seconds, overdue_seconds, seen_byte_seconds

SECONDS = st.floats(0, 1e5)


@given(SECONDS, SECONDS | st.just(math.inf))
def test_a_load_is_overdue_after_twice_what_it_takes_or_once_it_could_have_been_computed(expected, computing):
    overdue = overdue_seconds(expected, computing)
    assert 0 < overdue <= max(2 * expected, 1e-6)
    assert overdue <= max(expected + computing, 1e-6)
    assert overdue >= expected


@given(st.floats(1e-3, 1e5))
def test_what_never_comes_is_looked_at_a_few_times(passed):
    looks, at = 0, passed
    while at < 100 * passed:
        at += look_again_seconds(at)
        looks += 1
    assert looks <= 12


def test_a_transfer_says_how_fast_its_link_is():
    assert seen_byte_seconds(1000, 100, 2.0) == pytest.approx(0.02)
    assert seen_byte_seconds(1000, 0, 2.0) == pytest.approx(0.002), "it has not come whole, in any case"
    assert seen_byte_seconds(0, 0, 2.0) == 2.0
