"""The pipeline and the planner of a real daemon: what is loaded, what is computed, and that nobody waits long."""

import asyncio
import signal
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from tiny_rag import DOCUMENTS, LOAD_ALL, ByteTokenizer, tiny_model

from kvloom.clients.plan_wire import (
    ChunkAction,
    ChunkDecision,
    EngineReport,
    LoadSample,
    PlanReply,
    PrefillSample,
    Reason,
)
from kvloom.clients.rag import AsyncRagService, Document, PlanSettings, RagPipeline, RagService, Strategy
from kvloom.codec.level import EXACT

CHOSEN = DOCUMENTS[:3]
LATE = 60.0
COMPUTED = ChunkDecision(ChunkAction.RECOMPUTE, Reason.COMPUTE_FASTER, 1.0)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--memory", "32MiB", "--ssd", "64MiB")


@pytest.fixture
def client(daemon):
    return daemon.client()


@pytest.fixture
def make(model, client):
    """A function that makes pipelines, which are closed afterwards; of 100 tokens a chunk."""
    made = []

    def make(**more):
        made.append(RagPipeline(model, ByteTokenizer(), client, **{"chunk_tokens": 100, **more}))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def full(make):
    """The answer without a cache; its exact KV is stored."""
    return make(planning=LOAD_ALL).generate("same?", CHOSEN, strategy=Strategy.RECOMPUTE, tokens_max=8, remember=True)


@pytest.fixture
def slow_engine(client):
    """An engine that the daemon knows to be slow at computing, of a name of its own."""
    prefills = tuple(PrefillSample(100 * n, 0, 1.0 * n) for n in range(1, 11))
    assert client.report(EngineReport("slow", prefills=prefills)) == 10
    return PlanSettings(engine="slow", seconds_max=LATE)


def test_a_slow_engine_loads_and_says_what_came_of_it(make, full, slow_engine, client):
    pipeline = make(planning=slow_engine)
    preview = pipeline.preview("same?", CHOSEN, strategy=Strategy.PREFIX)
    assert preview.loaded + preview.raced + preview.recomputed == -(-full.prompt_tokens // 100)
    assert preview.loaded
    assert preview.expected_seconds < preview.recompute_seconds == pytest.approx(full.prompt_tokens / 100, rel=0.1)
    answer = pipeline.generate("same?", CHOSEN, strategy=Strategy.PREFIX, tokens_max=8)
    assert answer.token_ids == full.token_ids
    assert np.abs(answer.logits - full.logits).max() < 1e-4
    assert answer.load.loaded
    assert answer.plan.loaded == preview.loaded
    pipeline.close()
    planner = client.stats().planner
    assert (planner.plans, planner.outcomes) == (2, 1)
    assert planner.recent[0].real_seconds == pytest.approx(answer.ttft_seconds)
    assert planner.samples > 10 + 1 + len(answer.load.loaded), "a prefill, and what loading and decoding took"


def test_over_a_slow_link_everything_is_computed(make, full, slow_engine, client):
    loads = tuple(LoadSample("memory", size, size * 1.0) for size in range(1000, 1300, 10))
    client.report(EngineReport("slow", loads=loads))
    answer = make(planning=slow_engine).generate("same?", CHOSEN, strategy=Strategy.PREFIX, tokens_max=8)
    assert answer.token_ids == full.token_ids
    assert (answer.plan.loaded, answer.load.loaded, answer.load.bytes_read) == (0, (), 0)


def planned(client, monkeypatch, loaded, *, raced=(), seconds=LATE):
    """Have the planner say which chunks to load, the last one first."""

    def plan(question, *, seconds_max):
        count = len(question.keys)
        load = ChunkDecision(ChunkAction.LOAD, Reason.LOAD_FASTER, seconds, "memory", EXACT, 1000)
        race = replace(load, action=ChunkAction.RACE)
        decisions = tuple(race if n in raced else load if n in loaded else COMPUTED for n in range(count))
        order = tuple(sorted({*loaded, *raced}, reverse=True))
        return PlanReply(b"p" * 16, decisions, order, 0, seconds, seconds, seconds, 0.0)

    monkeypatch.setattr(client, "plan", plan)


@pytest.mark.parametrize("loaded", [(0,), (1, 3), (2, 3, 4), (0, 2, 5), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_any_chunks_may_be_loaded_and_the_others_are_computed_between_them(make, full, client, monkeypatch, loaded):
    assert full.prompt_tokens > 600
    planned(client, monkeypatch, [n for n in loaded if n < -(-full.prompt_tokens // 100)])
    answer = make().generate("same?", CHOSEN, strategy=Strategy.PREFIX, tokens_max=8)
    assert answer.token_ids == full.token_ids
    assert np.abs(answer.logits - full.logits).max() < 1e-4
    assert not answer.load.missed
    assert {place.start // 100 for place in answer.load.loaded} <= set(loaded)


@pytest.mark.parametrize("how", ["raced", "late"])
def test_what_does_not_come_is_computed_and_what_comes_after_all_changes_nothing(make, full, client, monkeypatch, how):
    get, may_come = client.get, threading.Event()

    def held(key, **options):
        assert may_come.wait(LATE)
        return get(key, **options)

    monkeypatch.setattr(client, "get", held)
    chunks = {"loaded": (), "raced": (1, 2)} if how == "raced" else {"loaded": (1, 2), "seconds": 0.0}
    planned(client, monkeypatch, **chunks)
    pipeline = make()
    answer = pipeline.generate("same?", CHOSEN, strategy=Strategy.PREFIX, tokens_max=8)
    may_come.set()
    assert answer.token_ids == full.token_ids
    assert [place.start for place in answer.load.missed] == [100, 200]
    monkeypatch.setattr(client, "get", get)
    planned(client, monkeypatch, (1, 2))
    assert pipeline.generate("same?", CHOSEN, strategy=Strategy.PREFIX, tokens_max=8).token_ids == full.token_ids


def test_documents_are_loaded_for_a_slow_engine_and_computed_for_a_fast_one(make, slow_engine, client):
    pipeline = make(planning=slow_engine)
    make(planning=LOAD_ALL).ingest(DOCUMENTS)
    chosen = [DOCUMENTS[4], DOCUMENTS[1], DOCUMENTS[3]]
    blended = pipeline.generate("what follows?", chosen, tokens_max=1)
    assert not blended.load.missed
    assert blended.plan.recompute_ratio == pytest.approx(pipeline.rule.ratio), "nothing is hidden by loading yet"
    assert (blended.plan.loaded, blended.plan.recomputed) == (len(blended.load.loaded), 0)
    prefills = tuple(PrefillSample(100 * n, 0, 1e-7 * n) for n in range(1, 11))
    assert client.report(EngineReport("fast", prefills=prefills)) == 10
    fast = make(planning=replace(slow_engine, engine="fast"))
    full = fast.generate("what follows?", chosen, tokens_max=1)
    assert not full.load.loaded
    assert full.plan.recompute_ratio == 1.0
    expected = pipeline.generate("what follows?", chosen, strategy=Strategy.RECOMPUTE, tokens_max=1)
    assert np.abs(full.logits - expected.logits).max() < 1e-3


def test_a_daemon_that_does_not_answer_changes_no_answer(make, full, daemon):
    pipeline = make()
    pipeline.generate("same?", CHOSEN, strategy=Strategy.RECOMPUTE, tokens_max=1)  # now it knows what computing takes
    daemon.signal(signal.SIGSTOP)
    try:
        answer = pipeline.generate("same?", CHOSEN, strategy=Strategy.PREFIX, tokens_max=8)
        assert pipeline.preview("same?", CHOSEN, strategy=Strategy.PREFIX) is None
    finally:
        daemon.signal(signal.SIGCONT)
    assert answer.token_ids == full.token_ids
    assert answer.plan is None
    assert not answer.load.loaded


def test_a_daemon_started_anew_learns_again_what_computing_takes(make, full, daemon, slow_engine, client):
    pipeline = make(planning=slow_engine)
    pipeline._loader._adviser.note_prefill(100, 0, 1.0)  # as if this engine had computed so slowly
    daemon.stop()
    daemon.start()
    pipeline.use_client(daemon.client())
    preview = pipeline.preview("same?", CHOSEN, strategy=Strategy.PREFIX)
    assert 1.0 < preview.recompute_seconds < 10.0, "0.07 s is what a daemon assumes that was told nothing"


def test_a_plan_before_the_request_brings_its_chunks_into_memory(model, start_daemon, slow_engine):
    daemon = start_daemon("--memory", "2MiB", "--ssd", "64MiB", name="small")
    client = daemon.client()
    prefills = tuple(PrefillSample(100 * n, 0, 1.0 * n) for n in range(1, 11))
    client.report(EngineReport("slow", prefills=prefills))
    options = {"chunk_tokens": 100, "level": EXACT}
    others = [Document(f"Of {n} nothing is known but that it is a number. " * 12) for n in range(20)]
    with closing(RagPipeline(model, ByteTokenizer(), client, planning=LOAD_ALL, **options)) as another:
        another.ingest([*CHOSEN, *others])  # how fast this machine computes is none of the slow engine's business
    pipeline = RagPipeline(model, ByteTokenizer(), client, planning=slow_engine, **options)
    keys = [key for document in CHOSEN for key in pipeline.document_keys(document)]

    def in_memory():
        return [key for key in keys if "memory" in client.info(key).chunk.tiers]

    assert len(in_memory()) < len(keys), "others came after them"
    preview = pipeline.preview("what follows?", CHOSEN, prefetch=True)
    assert preview.loaded == len(keys)
    assert preview.prefetching
    ends = time.monotonic() + LATE
    while len(in_memory()) < len(keys) and time.monotonic() < ends:
        threading.Event().wait(0.02)
    assert len(in_memory()) == len(keys)
    assert client.stats().planner.prefetched == preview.prefetching
    pipeline.close()


async def test_a_service_and_an_event_loop_say_the_same(make, client, full, slow_engine):
    service = RagService(make(planning=slow_engine), client)
    awaited = AsyncRagService(service)
    preview, answered = await asyncio.gather(
        awaited.preview("same?", CHOSEN, strategy=Strategy.PREFIX),
        awaited.answer("same?", CHOSEN, strategy=Strategy.PREFIX, tokens_max=8),
    )
    assert preview.loaded == answered.metrics.plan.loaded
    assert answered.answer.token_ids == full.token_ids
    assert service.preview("what follows?", CHOSEN).recomputed, "nobody has ingested them"
    await awaited.close()
