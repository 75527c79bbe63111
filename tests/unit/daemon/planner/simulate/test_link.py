"""Transfers that share a link: bytes are neither lost nor made, whatever starts and stops when."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.daemon.planner.simulate.bandwidth import Bandwidth, constant
from kvloom.daemon.planner.simulate.link import SharedLink

bandwidths = st.lists(st.tuples(st.floats(0.1, 3.0), st.sampled_from([0.0, 2.0, 7.0])), min_size=1, max_size=5)
actions = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.sampled_from(["start", "start", "cancel"]), st.floats(0.5, 30.0)),
    min_size=1,
    max_size=15,
)


@given(bandwidths.filter(lambda pieces: any(rate for _, rate in pieces)), st.floats(0.0, 9.0), actions)
def test_bytes_delivered_are_the_integral_of_the_bandwidth_while_anything_is_on_the_link(pieces, offset, script):
    edges = [0.0]
    for length, _ in pieces:
        edges.append(edges[-1] + length)
    bandwidth = Bandwidth(edges, [rate for _, rate in pieces])
    link = SharedLink(bandwidth, offset)
    now, came, busy = 0.0, 0.0, 0.0
    running = []

    def advance(until):
        nonlocal now, came, busy
        while link.next_s() <= until:
            at = link.next_s()
            busy += bandwidth.delivered(at + offset) - bandwidth.delivered(now + offset)
            finished = link.finish(at)
            came += finished.size_bytes
            running.remove(finished)
            now = at
        if link.active:
            busy += bandwidth.delivered(until + offset) - bandwidth.delivered(now + offset)
        now = until

    for wait, action, size in script:
        advance(now + wait)
        if action == "start":
            running.append(link.start(0, size, now))
        elif running:
            came += link.cancel(running.pop(0), now)
    while running:
        advance(link.next_s())
    assert came == pytest.approx(busy, rel=1e-6, abs=1e-5)
    assert link.active == 0
    assert math.isinf(link.next_s())


def test_two_transfers_get_half_each_and_the_rest_gets_all():
    link = SharedLink(constant(10.0))
    link.start(1, 100.0, 0.0)
    link.start(2, 30.0, 2.0)  # the first has 80 left; shared from now on
    assert link.next_s() == pytest.approx(8.0)
    assert link.finish(8.0).owner == 2
    assert link.next_s() == pytest.approx(13.0)
    assert link.finish(13.0).owner == 1


def test_a_transfer_given_up_says_what_had_come():
    link = SharedLink(constant(10.0))
    transfer = link.start(1, 100.0, 1.0)
    assert link.left_bytes(transfer, 4.0) == pytest.approx(70.0)
    assert link.cancel(transfer, 5.0) == pytest.approx(40.0)
    assert math.isinf(link.next_s())
