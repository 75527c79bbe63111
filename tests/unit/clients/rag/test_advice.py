"""Advice: what is asked of the planner, what it costs when nobody answers, and what it is told."""

import math
import os
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients.arrivals import ChunkPlace, Halfway, Work
from kvloom.clients.plan_wire import (
    BlendQuestion,
    ChunkAction,
    ChunkDecision,
    DecodeSample,
    EngineReport,
    LoadSample,
    PlanReply,
    PrefillSample,
    Reason,
)
from kvloom.clients.rag.advice import Adviser, engine_name
from kvloom.clients.rag.advised import PlanPreview
from kvloom.codec.container import Container
from kvloom.codec.level import EXACT, STANDARD
from kvloom.errors import Overloaded
from kvloom.kvstore.key import ChunkRef, ModelIdentity
from kvloom.kvstore.outcome import Hit

PLACES = [ChunkPlace(ChunkRef(os.urandom(32), 0, length), start) for start, length in ((40, 100), (140, 20), (160, 60))]
LOAD = ChunkDecision(ChunkAction.LOAD, Reason.LOAD_FASTER, 0.5, "ssd", STANDARD, 900)
COMPUTE = ChunkDecision(ChunkAction.RECOMPUTE, Reason.COMPUTE_FASTER, 0.1)
PLAN = PlanReply(b"p" * 16, (COMPUTE, replace(LOAD, action=ChunkAction.RACE), LOAD), (2, 1), 1, 0.6, 0.7, 2.0, 0.003)


class Planner:
    """A client whose daemon says what it is told to."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.questions, self.reports, self.reads = [], [], []
        self.found = None
        self.told = threading.Event()

    def plan(self, question, *, seconds_max):
        self.questions.append((question, seconds_max))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def report(self, report, *, seconds_max):
        self.reports.append(report)
        self.told.set()
        return 1

    def get(self, key, **options):
        self.reads.append((key, options))
        return self.found


def adviser(client, **more):
    return Adviser(client, "engine", **{"seconds_max": 0.25, "decoding_competes": False, **more})


def test_what_is_asked_and_what_comes_of_it():
    client = Planner(PLAN)
    advice = adviser(client).ask(PLACES, 240, floor=STANDARD)
    ((question, seconds_max),) = client.questions
    assert question.chunk_lengths == (100, 20, 60)
    assert (question.first_position, question.prompt_tokens, question.floor) == (40, 240, STANDARD)
    assert question.keys == tuple(place.ref.key.hex() for place in PLACES)
    assert seconds_max == 0.25
    late, raced = advice.orders(100.0)
    assert (late.place, late.level, late.link, late.size_bytes) == (PLACES[2], STANDARD, "ssd", 900)
    assert late.until == pytest.approx(100.0 + 2 * 0.5), "overdue: then it is asked again"
    assert raced.until == -math.inf
    assert advice.ends(100.0) == 102.0
    assert not advice.loads_nothing
    assert advice.preview() == PlanPreview(1, 1, 1, 1800, 0.6, 2.0)
    assert str(advice.preview()) == "this question will load 1 chunks, race 1, recompute 1, expected 600 ms"


def test_what_is_blended_is_waited_for_as_long_again_as_computing_it_takes_and_not_asked_about_again():
    client = Planner(PLAN)
    advice = adviser(client).ask(PLACES, 240, floor=STANDARD, blend=BlendQuestion(4))
    assert not advice.revisable
    assert not client.questions[0][0].stops
    assert advice.orders(100.0)[0].until == pytest.approx(100.5 + 2.0 * 60 / 200)


def test_what_is_overdue_is_decided_anew_by_what_has_come_without_asking():
    loads = tuple(replace(LOAD, seconds=0.1 * (at + 1), size_bytes=1000) for at in range(3))
    client = Planner(replace(PLAN, decisions=loads, load_order=(0, 1, 2)))
    advice = adviser(client).ask(PLACES, 240, floor=STANDARD)
    first, second, third = PLACES
    fast = Halfway(frozenset({first}), frozenset({second}), 0)
    assert set(advice.decided_anew(fast, 0.15)) == {second, third}, "150 ms for a chunk and a half"
    assert advice.decided_anew(fast, 0.15)[third] == pytest.approx(0.05 + 0.1)
    assert not advice.decided_anew(fast, 30.0), "computing all takes two seconds"
    nothing = Halfway(frozenset(), frozenset({first, second}), 0)
    assert set(advice.decided_anew(nothing, 0.5)) >= {second, third}
    assert not advice.decided_anew(nothing, 50.0)
    done = Halfway(frozenset({second}), frozenset({third}), third.start)
    assert set(advice.decided_anew(done, 0.15)) == {third}, "what is before is there"
    assert len(client.questions) == 1


@pytest.mark.parametrize(
    "reply",
    [
        None,
        Overloaded("too much to do"),
        replace(PLAN, decisions=(LOAD, COMPUTE)),
        replace(PLAN, load_order=(0, 3)),
        replace(PLAN, load_order=(-1,)),
    ],
)
def test_no_answer_and_nonsense_are_no_advice(reply):
    assert adviser(Planner(reply)).ask(PLACES, 240, floor=EXACT) is None


def test_a_prompt_without_chunks_asks_nobody():
    client = Planner()
    assert adviser(client).ask([], 240, floor=EXACT) is None
    assert not client.questions


def test_a_daemon_that_has_forgotten_is_told_again():
    client = Planner(replace(PLAN, recompute_seconds=0.01), PLAN)
    asking = adviser(client)
    asking.note_prefill(100, 0, 1.0)
    assert asking.ask(PLACES, 240, floor=EXACT).reply is PLAN
    assert client.reports == [EngineReport("engine", prefills=(PrefillSample(100, 0, 1.0),))]
    client.replies = [PLAN]
    assert asking.ask(PLACES, 240, floor=EXACT) is not None
    assert len(client.reports) == 1


def test_computing_takes_what_it_took():
    asking = adviser(Planner())
    assert asking.compute_seconds(10) is None
    for seconds in (1.0, 2.0, 50.0):
        asking.note_prefill(100, 0, seconds)
    assert asking.compute_seconds(200) == pytest.approx(4.0)


class Measured:
    """Two loads, half of the time side by side, and a part of one that nobody knows the link of."""

    def measured(self):
        transfers = [
            Work("ssd", EXACT, 1000, 0.0, 2.0), Work("ssd", EXACT, 3000, 1.0, 3.0), Work(None, EXACT, 10, 8.0, 9.0),
        ]  # fmt: skip
        return transfers, [Work("ssd", EXACT, 5000, 4.0, 5.0), Work("ssd", EXACT, 5000, 4.0, 5.0)]


def test_what_was_measured_is_sent_once():
    client = Planner()
    asking = adviser(client)
    asking.note_prefill(64, 32, 0.5)
    asking.note_arrivals(Measured())
    asking.send()
    asking.send()
    asking.close()
    (report,) = client.reports
    assert report == EngineReport(
        "engine",
        prefills=(PrefillSample(64, 32, 0.5),),
        loads=(LoadSample("ssd", 1000, 2.0, 1.5), LoadSample("ssd", 3000, 2.0, 1.5)),
        decodes=(DecodeSample(EXACT, 5000, 0.5),) * 2,
    )


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 2**10)), max_size=12), st.integers(0, 2**20))
def test_how_many_worked_at_once_is_what_their_times_have_in_common(spans, offset):
    works = [Work("ssd", EXACT, 1, (offset + at) / 64, (offset + at + length) / 64) for at, length in spans]

    class Timed:
        def measured(self):
            return works, []

    client = Planner()
    asking = adviser(client)
    asking.note_arrivals(Timed())
    asking.send()
    asking.close()
    reported = [load.concurrent for report in client.reports for load in report.loads]
    for item, found in zip(works, reported, strict=True):
        both = [min(item.ended, other.ended) - max(item.began, other.began) for other in works]
        seconds = item.ended - item.began
        assert found == pytest.approx(max(1.0, sum(map(max, both, [0.0] * len(both))) / seconds) if seconds else 1.0)


def test_no_report_is_longer_than_a_daemon_takes():
    client = Planner()
    asking = adviser(client)
    for _ in range(2 * limits.PLAN_SAMPLES_MAX):
        asking.note_prefill(1, 0, 1.0)
    asking.send()
    asking.close()
    assert len(client.reports[0].prefills) == limits.PLAN_SAMPLES_MAX


def test_where_nothing_is_loaded_the_link_is_looked_at_now_and_then(container_bytes):
    client, now = Planner(replace(PLAN, decisions=(COMPUTE,) * 3, load_order=())), [50.0]
    container = Container.parse(container_bytes((EXACT,)))
    client.found = Hit(container, "network")
    asking = adviser(client, clock=lambda: now[0])
    advice = asking.ask(PLACES, 240, floor=EXACT)
    assert advice.loads_nothing
    asking.note_prefill(1, 0, 1.0)
    asking._note_load("network", 100, 3.0, 1.0)
    asking.send(advice, floor=EXACT)
    assert client.told.wait(20)
    now[0] += 31.0
    asking.send(advice, floor=EXACT)
    asking.send(advice, floor=EXACT)
    asking.close()
    reads = [(key, options["level"], options["layers"]) for key, options in client.reads]
    assert set(reads) == {(PLACES[0].ref.key, EXACT, range(1))}, "a part of a chunk"
    assert client.reports[-1].loads[-1].size_bytes == len(container.data)


def test_a_link_that_is_slow_to_look_at_is_looked_at_once_at_a_time():
    client, looked_at = Planner(replace(PLAN, decisions=(COMPUTE,) * 3, load_order=())), threading.Event()

    def get(key, **options):
        client.reads.append(key)
        assert looked_at.wait(60)
        raise Overloaded("too much to do")

    client.get = get
    asking = adviser(client, clock=lambda: 50.0)
    advice = asking.ask(PLACES, 240, floor=EXACT)
    for _ in range(5):
        asking.send(advice, floor=EXACT)
    looked_at.set()
    asking.close()
    assert len(client.reads) == 1


def test_an_engine_is_named_after_model_and_machine(monkeypatch):
    identity = ModelIdentity(b"\xab" * 32, bytes(32))
    monkeypatch.setattr("platform.node", lambda: "a machine ü" + "x" * 200)
    name = engine_name(identity)
    assert name.startswith("transformers-abababababababab-a-machine--x")
    assert len(name) == limits.ENGINE_NAME_CHARACTERS_MAX
