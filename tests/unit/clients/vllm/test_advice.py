"""What the planner says is done once this engine is known to it, and asking never costs more than its limit."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from blake3 import blake3

from kvloom import limits
from kvloom.clients.plan_wire import (
    Ability,
    ChunkAction,
    ChunkDecision,
    PlanQuestion,
    PlanReply,
    PrefillSample,
    Reason,
)
from kvloom.clients.sequence import SequenceChunks, ShardedChunk
from kvloom.clients.vllm.advice import LOAD_ALL, EngineState, LoadAdviser
from kvloom.codec.level import EXACT, STANDARD
from kvloom.errors import KvloomError, StorageUnavailable
from kvloom.kvstore.key import ModelIdentity

CHUNK = 64
PROMPT = list(range(150))
LOAD, RECOMPUTE = (
    ChunkDecision(ChunkAction.LOAD, Reason.LOAD_FASTER, 0.1, "ssd", EXACT, 1000),
    ChunkDecision(ChunkAction.RECOMPUTE, Reason.AFTER_CUT, 0.2),
)


def chunks(stop: int = 150) -> list[ShardedChunk]:
    sequence = SequenceChunks([ModelIdentity(blake3(b"model").digest(), blake3(b"layout").digest())], CHUNK)
    tail = sequence.tail(PROMPT, stop)
    return [*sequence.full(PROMPT[:stop]), *([tail] if tail is not None else [])]


def reply(*decisions: ChunkDecision, recompute_seconds: float = 2.0) -> PlanReply:
    return PlanReply(b"p" * 16, decisions, (), 0, 0.3, 0.4, recompute_seconds, 0.0)


class Planner:
    """A planner that gives ``answer`` and an adviser that asks it, on a clock of their own."""

    def __init__(self, level: object = EXACT) -> None:
        self.answer: PlanReply | KvloomError | None = reply(LOAD, LOAD, RECOMPUTE)
        self.asked: list[PlanQuestion] = []
        self.now = 100.0
        self.adviser = LoadAdviser("engine", level, self.ask, clock=lambda: self.now)

    def ask(self, question: PlanQuestion) -> PlanReply | None:
        self.asked.append(question)
        self.now += 0.01
        if isinstance(self.answer, KvloomError):
            raise self.answer
        return self.answer

    def compute(self, times: int = limits.ENGINE_PLAN_PREFILLS_DEFAULT, tokens: int = 500) -> None:
        self.adviser.note_prefills([PrefillSample(tokens, 0, 1.0)] * times)

    def advise(self, found: Sequence[ShardedChunk] = (), prompt_tokens: int = 150) -> object:
        return self.adviser.advise(found or chunks(), prompt_tokens)


def test_what_is_not_worth_loading_is_not_loaded() -> None:
    planner = Planner()
    planner.compute()
    advice = planner.adviser.advise(chunks(), 150)
    assert (advice.chunks, advice.links, advice.plan) == (2, ("ssd", "ssd", None), b"p" * 16)
    counts = planner.adviser.take_counts()
    assert (counts.plans, counts.declined_tokens) == (1, 22)
    assert counts.plan_seconds == pytest.approx(0.01)
    assert planner.adviser.take_counts().plans == 0


@pytest.mark.parametrize(
    ("expected_seconds", "recompute_seconds", "seconds_max"),
    [
        (0.1, 2.0, 0.2),  # overdue
        (1.5, 2.0, 2.0),  # everything would have been computed
        (0.001, 2.0, limits.ENGINE_PLANNED_LOAD_SECONDS_MIN),
    ],
)
def test_a_load_is_given_up_when_it_is_overdue(
    expected_seconds: float, recompute_seconds: float, seconds_max: float
) -> None:
    planner = Planner()
    planner.compute()
    load = replace(LOAD, seconds=expected_seconds)
    planner.answer = reply(
        replace(load, seconds=expected_seconds / 2), load, RECOMPUTE, recompute_seconds=recompute_seconds
    )
    assert planner.advise().seconds_max == pytest.approx(seconds_max)


def test_the_question_says_what_this_engine_can_do_and_has_to_do() -> None:
    planner = Planner(STANDARD)
    planner.adviser.state = EngineState(running=3, queued_tokens=700)
    planner.advise(chunks()[1:])
    (question,) = planner.asked
    assert question.keys == tuple(chunk.keys[0].hex() for chunk in chunks()[1:])
    assert (question.first_position, question.chunk_lengths, question.prompt_tokens) == (64, (64, 22), 150)
    assert (question.ability, question.running, question.queued_tokens) == (Ability.PREFIX_CUT, 3, 700)
    assert question.stops
    allowed = {item.level for item in question.losses if item.loss <= question.loss_max}
    assert allowed == {STANDARD}


def test_what_follows_the_last_chunk_is_part_of_the_plan() -> None:
    planner = Planner()
    planner.compute()
    planner.answer = reply(LOAD, LOAD, LOAD)
    advice = planner.adviser.advise(chunks(140), 150)
    assert (planner.asked[0].chunk_lengths, planner.asked[0].prompt_tokens) == ((64, 64, 12), 150)
    assert (advice.chunks, advice.plan) == (3, b"p" * 16)


def test_until_this_engine_is_known_everything_is_loaded_over_the_links_that_were_told() -> None:
    planner = Planner()
    planner.compute(limits.ENGINE_PLAN_PREFILLS_DEFAULT - 1)
    planner.compute(100, tokens=limits.ENGINE_PLAN_PREFILL_TOKENS_MIN - 1)
    advice = planner.adviser.advise(chunks(), 150)
    assert (advice.chunks, advice.links, advice.plan, advice.seconds_max) == (3, ("ssd", "ssd", None), None, None)
    planner.compute(1)
    assert planner.adviser.advise(chunks(), 150).chunks == 2


@pytest.mark.parametrize("answer", [None, StorageUnavailable("the tests' daemon is away"), reply(LOAD)])
def test_without_an_answer_everything_is_loaded_and_nobody_is_asked_for_a_while(answer: object) -> None:
    planner = Planner()
    planner.compute()
    planner.answer = answer
    assert planner.advise() == LOAD_ALL
    planner.answer = reply(RECOMPUTE, RECOMPUTE, RECOMPUTE)
    assert planner.advise() == LOAD_ALL
    assert len(planner.asked) == 1
    planner.now += limits.ENGINE_PAUSE_SECONDS_MIN
    assert planner.adviser.advise(chunks(), 150).chunks == 3  # a daemon that was away knows nothing of this engine
    planner.compute()
    assert planner.adviser.advise(chunks(), 150).chunks == 0


def test_a_load_is_given_as_long_as_computing_takes_and_never_less_than_a_moment() -> None:
    planner = Planner()
    planner.compute()
    planner.answer = reply(LOAD, LOAD, LOAD, recompute_seconds=1e-6)
    assert planner.adviser.advise(chunks(), 150).seconds_max == limits.ENGINE_PLANNED_LOAD_SECONDS_MIN
