"""Plans over a real store: what is offered, what is learnt, and what one tenant gets to know of another."""

import os
from dataclasses import replace

import pytest

from kvloom import errors, limits
from kvloom.clients.plan_wire import (
    Ability,
    BlendQuestion,
    ChunkAction,
    DecodeSample,
    EngineReport,
    LevelLoss,
    LoadSample,
    LoadUnderWay,
    PlanGoal,
    PlanOutcome,
    PlanQuestion,
    PrefillSample,
    Reason,
)
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, STANDARD
from kvloom.daemon.caller import ALL_SCOPES, Caller, Scope
from kvloom.daemon.planner.measured import MeasuredLinks
from kvloom.daemon.planning import Planning
from kvloom.kvstore.key import ModelIdentity, chunk_refs
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore

MIB = 1024**2
ME = Caller(derive_namespace(bytes(32), "default"), ALL_SCOPES)
OTHER = Caller(derive_namespace(bytes(32), "other"), ALL_SCOPES)
IDENTITY = ModelIdentity(b"f" * 32, b"l" * 32)


@pytest.fixture
async def store(tmp_path):
    store = TieredStore([MemoryTier(8 * MIB), SsdTier.open(tmp_path / "chunks", 16 * MIB)], clock_ms=lambda: 1000)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def planning(store):
    return Planning(store, MeasuredLinks(), clock=lambda: 100.0)


@pytest.fixture
def keys():
    return [os.urandom(32) for _ in range(4)]


async def put(store, key, container, caller=ME, ack=Ack.MEMORY):
    await store.put(caller.namespace, key, container, ack=ack)


def asking(keys, **more):
    return PlanQuestion("engine", keys=tuple(key.hex() for key in keys), **more)


def slow_prefill(seconds_per_token=0.01):
    """An engine that is slower than any tier."""
    samples = [PrefillSample(256 * step, 0, 256 * step * seconds_per_token) for step in range(1, 9)]
    return EngineReport("engine", prefills=tuple(samples))


def slow_loads(seconds_per_byte=1.0):
    return EngineReport(
        "engine", loads=tuple(LoadSample("memory", size, size * seconds_per_byte) for size in range(900, 1000, 10))
    )


async def test_what_is_stored_is_loaded_and_what_is_not_is_computed(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    for key in (keys[0], keys[2]):
        await put(store, key, container_bytes((EXACT,), content_key=key))
    reply = await planning.plan(ME, asking(keys))
    assert [item.action for item in reply.decisions] == [
        ChunkAction.LOAD, ChunkAction.RECOMPUTE, ChunkAction.LOAD, ChunkAction.RECOMPUTE,
    ]  # fmt: skip
    assert [item.reason for item in reply.decisions][1] is Reason.NOT_OFFERED
    assert (reply.decisions[0].link, reply.decisions[0].level) == ("memory", EXACT)
    assert sorted(reply.load_order) == [0, 2]
    assert reply.ttft_seconds <= reply.recompute_seconds
    assert reply.loss == 0.0


async def test_an_engine_with_a_prefix_cut_loads_only_a_prefix(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    for key in (keys[0], keys[2]):
        await put(store, key, container_bytes((EXACT,), content_key=key))
    reply = await planning.plan(ME, asking(keys, ability=Ability.PREFIX_CUT))
    assert [item.reason for item in reply.decisions] == [
        Reason.LOAD_FASTER, Reason.NOT_OFFERED, Reason.AFTER_CUT, Reason.NOT_OFFERED,
    ]  # fmt: skip


async def test_reports_of_slow_loads_make_it_compute(planning, store, keys, container_bytes):
    for key in keys:
        await put(store, key, container_bytes((EXACT,), content_key=key))
    planning.report(ME, slow_prefill())
    assert (await planning.plan(ME, asking(keys))).load_order
    assert planning.report(ME, slow_loads()).accepted == 10
    reply = await planning.plan(ME, asking(keys))
    assert not reply.load_order
    assert {item.reason for item in reply.decisions} == {Reason.COMPUTE_FASTER}


async def test_what_one_tenant_stored_or_reported_is_nothing_to_another(planning, store, keys, container_bytes):
    absent = await planning.plan(OTHER, asking(keys))
    planning.report(ME, slow_prefill())
    for key in keys:
        await put(store, key, container_bytes((EXACT,), content_key=key))
    mine = await planning.plan(ME, asking(keys))
    theirs = await planning.plan(OTHER, asking(keys))
    assert mine.load_order
    assert replace(theirs, plan=b"") == replace(absent, plan=b"")
    assert planning.report(OTHER, EngineReport("engine", outcomes=(PlanOutcome(mine.plan, 1.0),))).ignored == 1
    assert planning.report(ME, EngineReport("engine", outcomes=(PlanOutcome(mine.plan, 1.0),))).accepted == 1


async def test_levels_are_chosen_by_what_they_may_lose(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    planning.report(ME, slow_loads(1e-5))
    key = keys[0]
    await put(store, key, container_bytes((DRAFT, ECONOMY, EXACT), content_key=key, segment_bytes=3000))
    loose = await planning.plan(ME, asking([key], loss_max=10.0))
    strict = await planning.plan(ME, asking([key], loss_max=0.0))
    assert loose.decisions[0].level == DRAFT
    assert strict.decisions[0].level in (EXACT, None)
    told = await planning.plan(ME, asking([key], loss_max=0.05, losses=(LevelLoss(DRAFT, 0.01),)))
    assert told.decisions[0].level == DRAFT
    within = await planning.plan(ME, asking([key], goal=PlanGoal.BEST_WITHIN, ttft_seconds=60.0, loss_max=10.0))
    assert within.loss == 0.0


async def test_tokens_are_cut_and_keyed_as_they_are_when_put(planning, store, container_bytes):
    planning.report(ME, slow_prefill())
    tokens = tuple(range(100))
    refs = chunk_refs(IDENTITY, tokens, chunk_tokens=32)
    for ref in refs:
        await put(store, ref.key, container_bytes((EXACT,), content_key=ref.key))
    reply = await planning.plan(ME, PlanQuestion("engine", identity=IDENTITY, tokens=tokens, chunk_tokens=32))
    assert len(reply.decisions) == len(refs) == 4
    assert sorted(reply.load_order) == [0, 1, 2, 3]
    had = await planning.plan(
        ME, PlanQuestion("engine", identity=IDENTITY, tokens=tokens, chunk_tokens=32, first_position=64)
    )
    assert len(had.decisions) == 2


async def test_a_plan_is_made_again_for_what_is_left(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    for key in keys:
        await put(store, key, container_bytes((EXACT,), content_key=key))
    again = await planning.plan(ME, asking(keys, done=(2, 3), elapsed_seconds=0.5))
    assert [item.reason for item in again.decisions[2:]] == [Reason.DONE, Reason.DONE]
    assert not {2, 3} & set(again.load_order)


async def test_a_blended_request_recomputes_what_loading_hides(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    for key in keys[1:]:
        await put(store, key, container_bytes((EXACT,), content_key=key))
    blend = BlendQuestion(layers=32)
    quick = await planning.plan(ME, asking(keys, blend=blend))
    assert quick.recompute_ratio == pytest.approx(0.15)
    assert [item.action for item in quick.decisions] == [ChunkAction.RECOMPUTE, *[ChunkAction.LOAD] * 3]
    assert quick.ttft_seconds < quick.recompute_seconds
    size_bytes = sum(item.size_bytes for item in quick.decisions)
    planning.report(ME, slow_loads(6.0 / size_bytes))  # all that is loaded takes 6 s, computing it 7.7, the first 2.6
    slower = await planning.plan(ME, asking(keys, blend=blend))
    assert 0.15 < slower.recompute_ratio < 1.0
    planning.report(ME, slow_loads(60.0 / size_bytes))
    planning.report(ME, slow_loads(60.0 / size_bytes))
    slowest = await planning.plan(ME, asking(keys, blend=blend))
    assert (slowest.recompute_ratio, slowest.load_order) == (1.0, ())


async def test_a_plan_can_warm_its_chunks(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    key = keys[0]
    await put(store, key, container_bytes((EXACT,), content_key=key), ack=Ack.DISK)
    for tier in store._roles.volatile:
        async for info in tier.scan():
            await tier.delete(info.storage_key)
    cold = await planning.plan(ME, asking([key]))
    assert (cold.decisions[0].link, cold.prefetching) == ("ssd", 0)
    assert (await planning.plan(ME, asking([key], prefetch=True))).prefetching == 1


async def test_what_came_of_plans_is_counted_and_shown(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    await put(store, keys[0], container_bytes((EXACT,), content_key=keys[0]))
    reply = await planning.plan(ME, asking(keys[:2]))
    late = reply.recompute_seconds + 1.0
    planning.report(ME, EngineReport("engine", outcomes=(PlanOutcome(reply.plan, late),)))
    assert planning.report(ME, EngineReport("engine", outcomes=(PlanOutcome(reply.plan, late),))).ignored == 1
    stats = planning.stats()
    assert (stats.plans, stats.outcomes, stats.slower) == (1, 1, 1)
    assert stats.regret_seconds == pytest.approx(late - reply.ttft_seconds)
    assert {(item.action, item.reason, item.chunks) for item in stats.decisions} == {
        (ChunkAction.LOAD, Reason.LOAD_FASTER, 1),
        (ChunkAction.RECOMPUTE, Reason.NOT_OFFERED, 1),
    }
    (recent,) = stats.recent
    assert (recent.chunks, recent.loaded, recent.recomputed, recent.real_seconds) == (2, 1, 1, late)


async def test_absurd_reports_are_counted_and_change_nothing(planning, keys):
    before = await planning.plan(ME, asking(keys))
    absurd = EngineReport(
        "engine",
        prefills=tuple(PrefillSample(tokens, start, seconds) for tokens, start, seconds in (
            (0, 0, 1.0), (-5, 0, 1.0), (5, -1, 1.0), (5, 0, 0.0), (5, 0, float("nan")), (5, 0, float("inf")),
            (10**18, 0, 1.0),
        )),
        loads=(LoadSample("memory", 5, -1.0), LoadSample("memory", 0, 1.0), LoadSample("memory", 5, 1.0, 0.0)),
        decodes=(DecodeSample(STANDARD, 0, 1.0),),
        outcomes=(PlanOutcome(before.plan, float("nan")), PlanOutcome(b"unknown", 1.0)),
    )  # fmt: skip
    assert planning.report(ME, absurd).accepted == 0
    assert replace(await planning.plan(ME, asking(keys)), plan=b"") == replace(before, plan=b"")
    assert planning.stats().ignored == 13


async def test_a_load_under_way_says_how_fast_its_link_is(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    size = len(container_bytes((EXACT,)))
    planning.report(ME, slow_loads(1e-9))
    for key in keys:
        await put(store, key, container_bytes((EXACT,), content_key=key))
    before = await planning.plan(ME, asking(keys))
    assert {item.action for item in before.decisions} == {ChunkAction.LOAD}

    async def anew(seconds, received):
        under_way = (LoadUnderWay(3, EXACT, seconds, received),)
        return await planning.plan(ME, asking(keys, under_way=under_way, elapsed_seconds=seconds))

    coming, slow, unknown = await anew(0.001, size - 1), await anew(1.0, 1), await anew(1.0, 0)
    assert coming.decisions[3].action is ChunkAction.LOAD
    assert coming.ttft_seconds < unknown.ttft_seconds < slow.ttft_seconds, "of which nobody knows, as long again"


async def test_a_prefix_that_can_be_given_up_is_decided_by_the_median(planning, store, keys, container_bytes):
    """Over a link of which half of the loads take too long, whoever can stop tries it, and whoever cannot computes."""
    planning.report(ME, slow_prefill(0.001))
    size = len(container_bytes((EXACT,)))
    loads = tuple(
        LoadSample("memory", size + at, (0.1 if at % 3 else 0.6) * (1 + at / 1e4)) for at in range(30)
    )  # 256 tokens are 256 ms
    planning.report(ME, EngineReport("engine", loads=loads))
    for key in keys:
        await put(store, key, container_bytes((EXACT,), content_key=key))
    for stops, action in ((True, ChunkAction.LOAD), (False, ChunkAction.RECOMPUTE)):
        asked = asking(keys, chunk_tokens=256, ability=Ability.PREFIX_CUT, stops=stops)
        plan = await planning.plan(ME, asked)
        assert {item.action for item in plan.decisions} == {action}, stops


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": ""}, {"engine": "a b"}, {"engine": "x" * 200}, {"chunk_tokens": 0}, {"first_position": -1},
        {"first_position": 2**31}, {"loss_max": float("nan")}, {"loss_max": -1.0}, {"goal": PlanGoal.BEST_WITHIN},
        {"ttft_seconds": -1.0}, {"done": (4,)}, {"done": (-1,)}, {"keys": None}, {"tokens": (1,)},
        {"prompt_tokens": 3}, {"blend": BlendQuestion(0)}, {"blend": BlendQuestion(4, 5)},
        {"losses": (LevelLoss(DRAFT, float("inf")),)}, {"queued_tokens": -1},
        {"under_way": (LoadUnderWay(4, EXACT, 1.0),)}, {"under_way": (LoadUnderWay(-1, EXACT, 1.0),)},
        {"under_way": (LoadUnderWay(0, EXACT, float("nan")),)}, {"under_way": (LoadUnderWay(0, EXACT, 1.0, -1),)},
        {"under_way": (LoadUnderWay(0, EXACT, 1.0, 1 << 41),)},
    ],
    ids=repr,
)  # fmt: skip
async def test_a_question_that_makes_no_sense_is_refused(planning, keys, wrong):
    with pytest.raises(errors.InvalidRequest):
        await planning.plan(ME, replace(asking(keys), **wrong))


async def test_counts_are_bounded(planning, keys, monkeypatch):
    with pytest.raises(errors.TooManyItems):
        await planning.plan(ME, asking([]))
    monkeypatch.setattr(limits, "PLAN_CHUNKS_MAX", 3)
    with pytest.raises(errors.TooManyItems):
        await planning.plan(ME, asking(keys))
    monkeypatch.setattr(limits, "PLAN_SAMPLES_MAX", 7)
    with pytest.raises(errors.TooManyItems):
        planning.report(ME, slow_prefill())
    monkeypatch.setattr(limits, "PLAN_TENANTS_MAX", 2)
    for name in ("a", "b", "c"):
        await planning.plan(Caller(derive_namespace(bytes(32), name), ALL_SCOPES), asking(keys[:1]))
    assert len(planning._models) == 2


async def test_reading_is_needed(planning, keys):
    writer = Caller(ME.namespace, frozenset({Scope.WRITE}))
    with pytest.raises(errors.Forbidden):
        await planning.plan(writer, asking(keys))
    with pytest.raises(errors.Forbidden):
        planning.report(writer, slow_prefill())


async def test_chunks_of_different_lengths_stand_one_after_the_other(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    await put(store, keys[0], container_bytes((EXACT,), content_key=keys[0]))
    lengths = (256, 7, 19, 30)
    reply = await planning.plan(ME, asking(keys, chunk_lengths=lengths, first_position=40, prompt_tokens=400))
    even = await planning.plan(ME, asking(keys, first_position=40))
    assert [item.action for item in reply.decisions][1:] == [ChunkAction.RECOMPUTE] * 3
    assert reply.recompute_seconds == pytest.approx(3.6, rel=0.02), "the prompt's 360 tokens after the first 40"
    assert even.recompute_seconds == pytest.approx(10.25, rel=0.02)
    assert reply.ttft_seconds < reply.recompute_seconds


@pytest.mark.parametrize(
    ("lengths", "said"),
    [((1, 2), "2 chunk_lengths for 4 keys"), ((1, 2, 0, 4), "has 0, must be"), ((1, 2, 10**9, 4), "has 1000000000")],
)
async def test_lengths_that_cannot_be_are_refused(planning, keys, lengths, said):
    with pytest.raises(errors.InvalidRequest, match=said):
        await planning.plan(ME, asking(keys, chunk_lengths=lengths))


async def test_the_floor_may_be_a_level(planning, store, keys, container_bytes):
    planning.report(ME, slow_prefill())
    planning.report(ME, slow_loads(1e-5))
    await put(store, keys[0], container_bytes((DRAFT, ECONOMY), content_key=keys[0], segment_bytes=3000))
    found = {}
    for floor in (DRAFT, ECONOMY, STANDARD, EXACT):
        found[floor] = (await planning.plan(ME, asking(keys[:1], floor=floor))).decisions[0]
    assert (found[DRAFT].level, found[ECONOMY].level) == (DRAFT, ECONOMY)
    assert {found[level].reason for level in (STANDARD, EXACT)} == {Reason.QUALITY_FLOOR}
