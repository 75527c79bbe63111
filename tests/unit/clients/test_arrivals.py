"""Chunks on their way: in order, given up in time, and never written once somebody else has computed them."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvloom.clients.arrivals import Arrivals, ChunkPlace, Loaded, LoadOrder
from kvloom.codec.container import Container
from kvloom.codec.level import EXACT
from kvloom.errors import Forbidden
from kvloom.kvstore.key import ChunkRef
from kvloom.kvstore.outcome import Hit, Miss, Unavailable

LATE = 20.0
"""Only what hangs waits so long."""


class Link:
    """Answers when told to; ``decoded`` are the places that were written to."""

    def __init__(self, blob):
        self.container = Container.parse(blob)
        self.may_come = {}
        self.answers = {}
        self.asked = []
        self.decoded = []
        self.decoding = threading.Event()
        self.may_decode = threading.Event()
        self.may_decode.set()
        self.may_decode_at_all = threading.Event()
        self.may_decode_at_all.set()
        self.has_profile = True
        self.unreadable = False

    def get(self, order, seconds_max):
        self.asked.append((order.place, seconds_max))
        if order.place in self.may_come:
            assert self.may_come[order.place].wait(LATE)
        answer = self.answers.get(order.place, Hit(self.container, "ssd"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ready(self, order, container):
        assert self.may_decode_at_all.wait(LATE)
        return self.has_profile

    def decode(self, order, container):
        self.decoding.set()
        assert self.may_decode.wait(LATE)
        if self.unreadable:
            return None
        self.decoded.append(order.place)
        return 1000


@pytest.fixture
def link(container_bytes):
    return Link(container_bytes((EXACT,)))


@pytest.fixture
def begin(link):
    with ThreadPoolExecutor(2) as workers:
        yield lambda orders, **more: Arrivals(orders, workers, link.get, link.ready, link.decode, **more)


def places(count):
    refs = (ChunkRef(os.urandom(32), 10 * n, 10 * n + 10) for n in range(count))
    return [ChunkPlace(ref, ref.start) for ref in refs]


def orders(chosen, **more):
    return [LoadOrder(place, EXACT, "ssd", 500, **more) for place in chosen]


def test_all_that_is_there_is_loaded_and_measured(begin, link):
    one, two, three = places(3)
    link.answers[two] = Miss()
    arrivals = begin(orders([three, two, one]))
    result = arrivals.settle()
    assert (result.loaded, result.missed) == ((one, three), (two,))
    assert result.bytes_read == 2 * len(link.container.data)
    transfers, decodings = arrivals.measured()
    assert [(item.link, item.size_bytes) for item in transfers] == [("ssd", len(link.container.data))] * 2
    assert [item.size_bytes for item in decodings] == [1000] * 2
    assert all(item.ended >= item.began for item in (*transfers, *decodings))


def test_what_does_not_come_in_time_is_not_written_afterwards(begin, link):
    one, two = places(2)
    link.may_come[one] = threading.Event()
    arrivals = begin([*orders([one], until=0.0), *orders([two], until=LATE + 1e9)])
    assert not arrivals.came(one)
    assert not arrivals.coming(one)
    assert arrivals.came(two)
    link.may_come[one].set()
    assert arrivals.settle().missed == (one,)
    assert link.decoded == [two]


def test_a_late_chunk_ends_the_wait_for_those_ordered_after_it(begin, link):
    one, two = places(2)
    for place in (one, two):
        link.may_come[place] = threading.Event()
    arrivals = begin([*orders([two], until=0.0), *orders([one])])
    try:
        assert not arrivals.came(one), "it has no limit of its own"
    finally:
        for place in (one, two):
            link.may_come[place].set()


def test_what_is_being_decoded_is_waited_for(begin, link):
    (one,) = places(1)
    link.may_decode.clear()
    arrivals = begin(orders([one], until=0.0))
    assert link.decoding.wait(LATE)
    with ThreadPoolExecutor(1) as other:
        came = other.submit(arrivals.came, one)
        link.may_decode.set()
        assert came.result(LATE)


@pytest.mark.parametrize("wrong", [Miss(), Forbidden("no"), RuntimeError("a bug")])
def test_whatever_is_wrong_nobody_waits(begin, link, wrong):
    one, two = places(2)
    link.answers[one] = wrong
    result = begin(orders([one, two])).settle()
    assert (result.loaded, result.missed) == ((two,), (one,))


def test_a_daemon_that_is_gone_is_not_asked_for_every_chunk(begin, link):
    all_places = places(30)
    link.answers = dict.fromkeys(all_places, Unavailable("daemon", "gone"))
    assert begin(orders(all_places)).settle().missed == tuple(all_places)
    assert 1 <= len(link.asked) <= 2, "by each thread once"


def test_a_chunk_that_cannot_be_decoded_has_not_come(begin, link):
    (one,) = places(1)
    link.unreadable = True
    assert begin(orders([one])).settle().missed == (one,)


def test_a_profile_that_takes_long_keeps_nobody(begin, link):
    one, two = places(2)
    link.may_decode_at_all.clear()
    arrivals = begin(orders([one], until=0.0))
    assert not arrivals.came(one)
    link.may_decode_at_all.set()
    link.has_profile = False
    assert begin(orders([two])).settle().missed == (two,)
    assert not link.decoded


def test_a_transfer_that_was_cut_off_says_how_slow_the_link_is(begin, link):
    (one,) = places(1)
    now = iter([10.0, 14.0, *[20.0] * 50])
    link.answers[one] = Unavailable("daemon", "took too long")
    arrivals = begin(orders([one]), ends=14.0, clock=lambda: next(now))
    arrivals.settle()
    (transfer,), _ = arrivals.measured()
    assert (transfer.link, transfer.size_bytes, transfer.began, transfer.ended) == ("ssd", 500, 10.0, 14.0)
    assert link.asked == [(one, 4.0)]


def test_nothing_is_asked_for_when_it_is_too_late(begin, link):
    (one,) = places(1)
    assert begin(orders([one]), ends=0.0).settle().missed == (one,)
    assert link.asked == []


def test_what_is_loaded_is_there(begin):
    one, two = places(2)
    there = Loaded(frozenset([one]))
    assert (there.coming(one), there.came(one), there.coming(two), there.came(two)) == (True, True, False, False)
    assert not begin([]).coming(one)


class Planner:
    """Says what it is told to of how long to wait, and remembers what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def __call__(self, halfway):
        self.asked.append(halfway)
        return self.replies.pop(0)


def test_an_overdue_chunk_is_decided_anew_and_waited_for_or_not(begin, link):
    one, two = places(2)
    link.may_come = {one: threading.Event(), two: threading.Event()}
    moments = iter(range(1, 1000))
    planner = Planner({one: 1e9}, {})

    def waiting(halfway):
        link.may_come[one].set()
        return planner(halfway)

    arrivals = begin(orders([one, two], until=0.0), revise=waiting, clock=lambda: float(next(moments)))
    assert arrivals.came(one), "the planner said so"
    assert not arrivals.came(two), "no longer, once it is told that computing is faster"
    link.may_come[two].set()
    assert planner.asked[0].there == frozenset()
    assert planner.asked[0].moving <= {one, two}
    assert planner.asked[0].front == one.start
    assert len(planner.asked) == 1, "what is not to be loaded any more is not asked about again"


def test_what_is_raced_is_never_waited_for_nor_asked_about(begin, link):
    first, second = places(2)
    link.may_come = {second: threading.Event()}
    planner = Planner()
    chosen = [LoadOrder(second, EXACT, until=-math.inf), LoadOrder(first, EXACT, until=math.inf)]
    arrivals = begin(chosen, revise=planner)
    assert arrivals.came(first), "that one raced before it has not come does not matter"
    assert not arrivals.came(second)
    link.may_come[second].set()


def test_an_engine_that_holds_waits_for_the_first_and_then_has_it_decided_anew(begin, link):
    one, two = places(2)
    link.may_come = {two: threading.Event()}
    planner = Planner({two: math.inf}, {})
    arrivals = begin(orders([one, two], until=-math.inf), revise=planner)
    arrivals.hold(math.inf)
    assert one in planner.asked[0].there
    link.may_come[two].set()
    assert arrivals.came(two), "it was raced, and is waited for since the link is known"
    (place,) = places(1)
    link.may_come[place] = threading.Event()
    slow = begin(orders([place], until=0.0), revise=planner)
    asked = len(planner.asked)
    slow.hold(-math.inf)
    assert len(planner.asked) == asked, "nothing has come: what was planned holds"
    link.may_come[place].set()


def test_past_the_end_nothing_is_decided_anew(begin, link):
    (one,) = places(1)
    link.may_come = {one: threading.Event()}
    planner = Planner()
    arrivals = begin(orders([one], until=0.0), revise=planner, ends=0.5, clock=lambda: 1.0)
    assert not arrivals.came(one)
    link.may_come[one].set()
