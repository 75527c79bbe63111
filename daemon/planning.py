"""Plans for engines, and what they report: the planner with a store, a clock, and a memory of its own plans.

Nothing is kept beyond the process: what an engine costs is learnt again in a few reports. Tenants share nothing but the
daemon's own measurements of its tiers; what a plan says of another tenant's chunk is what it says of one that is not
stored.
"""

import asyncio
import os
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

import numpy as np

from .. import limits
from ..clients import plan_wire as wire
from ..clients.wire import parse_keys
from ..codec.level import EXACT, LOSSY_LEVELS, STANDARD, Level
from ..errors import InvalidRequest, TooManyItems
from ..kvstore.key import ContentKey, OwnerId, chunk_refs
from ..kvstore.tiered.store import TieredStore
from ..tracing import span
from .caller import Caller, Scope
from .plan_offers import ChunkOffers, Offered
from .planner.measured import MeasuredLinks
from .planner.model import CostModel, Situation
from .planner.plan import Action, Plan, Progress
from .planner.planner import make_plan
from .planner.request import BestWithin, Executor, Fastest, Objective, PlanRequest, Way

__all__ = ["LEVEL_LOSSES", "Planning"]

LEVEL_LOSSES: Final = dict(zip(LOSSY_LEVELS, (0.0988, 0.0268, 0.0055, 0.0014), strict=True)) | {EXACT: 0.0}
"""Nats per token, of prose on SmolLM2-135M with its profile (docs/CODEC.md); a question may bring the model's own."""
_PATH: Final = "daemon"
"""Tiers are behind one socket: chunks come one after the other, whichever tier they were in."""
_ENGINE: Final = re.compile(r"[!-~]+")
_LOSS_MAX: Final = 1000.0
_PLAN_ID_BYTES: Final = 16
_INLINE_CHUNKS_MAX: Final = 512
"""Requests of more chunks are planned in a worker thread."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The chunks that are asked about, in order, and where they stand."""

    keys: list[ContentKey]
    starts: list[int]
    tokens: list[int]
    end: int
    """Of the prompt."""


@dataclass(slots=True, eq=False)
class _Made:
    """A plan that was made, and what came of it."""

    made_seconds: float
    namespace: str
    engine: str
    counts: Counter[Action]
    reason: wire.Reason
    expected_seconds: float
    recompute_seconds: float
    loss: float
    real_seconds: float | None = None


@dataclass(slots=True)
class _Counts:
    plans: int = 0
    deciding_seconds: float = 0.0
    prefetched: int = 0
    samples: int = 0
    ignored: int = 0
    outcomes: int = 0
    slower: int = 0
    regret_seconds: float = 0.0
    decisions: Counter[tuple[Action, wire.Reason]] = field(default_factory=Counter)


class Planning:
    """Belongs to one event loop; all methods are safe to cancel. ``clock`` counts seconds from any moment on."""

    def __init__(
        self, store: TieredStore, links: MeasuredLinks, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._offers = ChunkOffers(store)
        self._links = links
        self._clock = clock
        self._models: OrderedDict[OwnerId, CostModel] = OrderedDict()
        self._awaited: OrderedDict[tuple[OwnerId, bytes], _Made] = OrderedDict()
        self._recent: deque[_Made] = deque(maxlen=limits.PLAN_RECENT_MAX)
        self._counts = _Counts()

    async def plan(self, caller: Caller, question: wire.PlanQuestion, *, ahead_bytes: int = 0) -> wire.PlanReply:
        """Decide for each chunk. ``ahead_bytes``: what the daemon has under way for others.

        Raises :class:`InvalidRequest` and :class:`TooManyItems` for a question that makes no sense.
        """
        caller.require(Scope.READ)
        _check(question)
        prompt = await _prompt_of(question)
        with span("service.plan", tenant=caller.tenant, chunks=len(prompt.keys)):
            offered = await self._offers.of(caller.namespace, prompt.keys)
            begun = time.perf_counter()
            model = self._model(caller.namespace.owner)
            request = _request(question, prompt, offered, model)
            now = Situation(self._clock(), question.running, question.queued_tokens, ahead_bytes)
            used = sorted({way.link for way in request.ways})
            estimates = model.estimates(question.engine, self._links.estimates(now.now_seconds), used, _PATH, now)
            progress = _progress(question, prompt)

            def decide() -> Plan:
                return make_plan(request, estimates, _objective(question), _executor(question), progress=progress)

            plan = decide() if len(request) <= _INLINE_CHUNKS_MAX else await asyncio.to_thread(decide)
            self._counts.deciding_seconds += time.perf_counter() - begun
        prefetching = 0
        if question.prefetch:
            wanted = [prompt.keys[index] for index in plan.load_order.tolist()]
            prefetching = await self._store.prefetch(caller.namespace, wanted) if wanted else 0
            self._counts.prefetched += prefetching
        plan_id = os.urandom(_PLAN_ID_BYTES)
        self._remember(caller, plan_id, question.engine, plan, len(prompt.keys))
        return _reply(plan_id, plan, len(prompt.keys), prefetching)

    def report(self, caller: Caller, report: wire.EngineReport) -> wire.ReportReply:
        """Learn from what an engine says that things took; what cannot be is counted and changes nothing."""
        caller.require(Scope.READ)
        _check_engine(report.engine)
        count = len(report.prefills) + len(report.loads) + len(report.decodes) + len(report.outcomes)
        if count > limits.PLAN_SAMPLES_MAX:
            raise TooManyItems(f"report has {count} measurements, the limit is {limits.PLAN_SAMPLES_MAX}")
        model, now, engine = self._model(caller.namespace.owner), self._clock(), report.engine
        for load in report.loads:
            _check_engine(load.link, what="link")
        taken = [
            model.note_prefill(engine, item.tokens, item.start, item.seconds, batch=item.running, now_seconds=now)
            for item in report.prefills
        ]
        taken += [
            model.note_load(
                engine, item.link, item.size_bytes, item.seconds, concurrent=item.concurrent, now_seconds=now
            )
            for item in report.loads
        ]
        taken += [
            model.note_decode(engine, item.level.name, item.kv_bytes, item.seconds, now_seconds=now)
            for item in report.decodes
        ]
        taken += [self._note_outcome(caller, item) for item in report.outcomes]
        accepted = sum(taken)
        self._counts.samples += accepted
        self._counts.ignored += count - accepted
        return wire.ReportReply(accepted, count - accepted)

    def stats(self) -> wire.PlannerStats:
        """What was decided and what came of it; the latest plans first."""
        now, counts = self._clock(), self._counts
        return wire.PlannerStats(
            plans=counts.plans,
            deciding_seconds=counts.deciding_seconds,
            prefetched=counts.prefetched,
            samples=counts.samples,
            ignored=counts.ignored,
            outcomes=counts.outcomes,
            slower=counts.slower,
            regret_seconds=counts.regret_seconds,
            decisions=tuple(
                wire.DecisionCount(_ACTIONS[action], reason, chunks)
                for (action, reason), chunks in sorted(counts.decisions.items())
            ),
            links=self._links.reports(now),
            recent=tuple(_shown(made, now) for made in reversed(self._recent)),
        )

    def _note_outcome(self, caller: Caller, outcome: wire.PlanOutcome) -> bool:
        seconds = outcome.ttft_seconds
        if not (isfinite(seconds) and seconds >= 0.0):
            return False
        made = self._awaited.pop((caller.namespace.owner, outcome.plan), None)
        if made is None:
            return False
        made.real_seconds = seconds
        self._counts.outcomes += 1
        self._counts.slower += seconds > made.recompute_seconds
        self._counts.regret_seconds += max(0.0, seconds - min(made.expected_seconds, made.recompute_seconds))
        return True

    def _remember(self, caller: Caller, plan_id: bytes, engine: str, plan: Plan, count: int) -> None:
        actions = [Action(action) for action in plan.actions[:count].tolist()]
        reasons = plan.reasons[:count]
        made = _Made(
            self._clock(),
            caller.tenant,
            engine,
            Counter(actions),
            Counter(reasons).most_common(1)[0][0],
            plan.ttft_seconds,
            plan.recompute_seconds,
            plan.loss,
        )
        self._counts.plans += 1
        self._counts.decisions.update(zip(actions, reasons, strict=True))
        self._recent.append(made)
        self._awaited[caller.namespace.owner, plan_id] = made
        if len(self._awaited) > limits.PLAN_AWAITED_MAX:
            self._awaited.popitem(last=False)

    def _model(self, owner: OwnerId) -> CostModel:
        model = self._models.get(owner)
        if model is None:
            model = self._models[owner] = CostModel()
            if len(self._models) > limits.PLAN_TENANTS_MAX:
                self._models.popitem(last=False)
        self._models.move_to_end(owner)
        return model


_ACTIONS: Final = {
    Action.RECOMPUTE: wire.ChunkAction.RECOMPUTE,
    Action.LOAD: wire.ChunkAction.LOAD,
    Action.RACE: wire.ChunkAction.RACE,
}


def _check_engine(name: str, *, what: str = "engine") -> None:
    if len(name) > limits.ENGINE_NAME_CHARACTERS_MAX or not _ENGINE.fullmatch(name):
        most = limits.ENGINE_NAME_CHARACTERS_MAX
        raise InvalidRequest(f"{what} {name[:40]!r} is not a name of 1 to {most} printable ASCII characters, no space")


def _check(question: wire.PlanQuestion) -> None:
    _check_engine(question.engine)
    ranges = {
        "chunk_tokens": (question.chunk_tokens, 1, limits.CHUNK_TOKENS_MAX),
        "first_position": (question.first_position, 0, limits.POSITION_MAX),
        "step_tokens": (question.step_tokens, 0, limits.POSITION_MAX),
        "running": (question.running, 0, limits.POSITION_MAX),
        "queued_tokens": (question.queued_tokens, 0, limits.POSITION_MAX),
        "elapsed_seconds": (question.elapsed_seconds, 0.0, limits.LEASE_SECONDS_MAX),
        "loss_max": (question.loss_max or 0.0, 0.0, _LOSS_MAX),
        "ttft_seconds": (question.ttft_seconds or 0.0, 0.0, limits.LEASE_SECONDS_MAX),
    }
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise InvalidRequest(f"{name} is {value}, must be {least} to {most}")
    if question.goal is wire.PlanGoal.BEST_WITHIN and question.ttft_seconds is None:
        raise InvalidRequest("goal best_within needs ttft_seconds")
    for item in question.losses:
        if not 0.0 <= item.loss <= _LOSS_MAX:
            raise InvalidRequest(f"loss of level {item.level} is {item.loss}, must be 0 to {_LOSS_MAX}")


async def _prompt_of(question: wire.PlanQuestion) -> _Prompt:
    first, size = question.first_position, question.chunk_tokens
    if question.keys is not None and question.tokens is None and question.identity is None:
        keys = parse_keys(question.keys)
        starts = [first + size * index for index in range(len(keys))]
        ends = [start + size for start in starts]
        end = question.prompt_tokens if question.prompt_tokens is not None else first + size * len(keys)
        if keys and not starts[-1] < end <= limits.POSITION_MAX:
            raise InvalidRequest(
                f"{len(keys)} chunks of {size} tokens from {first} on do not begin within a prompt of {end} tokens"
            )
        ends[-1:] = [min(end, ends[-1])] if keys else []
    elif question.keys is None and question.tokens is not None and question.identity is not None:
        refs = await asyncio.to_thread(chunk_refs, question.identity, question.tokens, chunk_tokens=size)
        refs = [ref for ref in refs if ref.stop > first]
        keys, starts = [ref.key for ref in refs], [max(first, ref.start) for ref in refs]
        ends, end = [ref.stop for ref in refs], len(question.tokens)
    else:
        raise InvalidRequest("a plan is asked for with either keys, or identity and tokens")
    if not 1 <= len(keys) <= limits.PLAN_CHUNKS_MAX:
        raise TooManyItems(f"{len(keys)} chunks to plan, the limits are 1 and {limits.PLAN_CHUNKS_MAX}")
    wrong = next((index for index in question.done if not 0 <= index < len(keys)), None)
    if wrong is not None:
        raise InvalidRequest(f"done names chunk {wrong} of {len(keys)}")
    return _Prompt(keys, starts, [stop - start for start, stop in zip(starts, ends, strict=True)], end)


def _request(
    question: wire.PlanQuestion, prompt: _Prompt, offered: list[Offered | None], model: CostModel
) -> PlanRequest:
    """The question as what the planner takes, with a last chunk that is always computed: the end of the prompt."""
    losses: dict[Level, float] = LEVEL_LOSSES | {item.level: item.loss for item in question.losses}
    columns: dict[tuple[str, Level], int] = {}
    for offer in offered:
        for level, _ in offer.level_bytes if offer is not None else ():
            columns.setdefault((offer.link, level), len(columns)) if offer is not None else None
    shape = (len(offered) + 1, len(columns))
    size_bytes, decode, loss = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
    decoding = {level: model.decode_byte_seconds(question.engine, level.name) for _, level in columns}
    for row, offer in enumerate(offered):
        if offer is None:
            continue
        for level, length in offer.level_bytes:
            column = columns[offer.link, level]
            size_bytes[row, column] = length
            decode[row, column] = offer.kv_bytes * decoding[level]
            loss[row, column] = losses[level]
    end = prompt.starts[-1] + prompt.tokens[-1]
    request = PlanRequest(
        np.array([*prompt.tokens, max(1, prompt.end - end)], dtype=np.int64),
        np.array([*prompt.starts, end], dtype=np.int64),
        tuple(Way(link, level.name) for link, level in columns),
        size_bytes,
        decode,
        loss,
    )
    request.verify()
    return request


def _objective(question: wire.PlanQuestion) -> Objective:
    losses = {item.level: item.loss for item in question.losses}
    loss_max = question.loss_max
    if loss_max is None:
        loss_max = losses.get(STANDARD, LEVEL_LOSSES[STANDARD])
    if question.goal is wire.PlanGoal.BEST_WITHIN and question.ttft_seconds is not None:
        return BestWithin(question.ttft_seconds, loss_max)
    return Fastest(loss_max)


def _executor(question: wire.PlanQuestion) -> Executor:
    return Executor(question.ability, question.side_by_side, question.decoding_competes, question.step_tokens)


def _progress(question: wire.PlanQuestion, prompt: _Prompt) -> Progress | None:
    if not question.done and not question.elapsed_seconds:
        return None
    count = len(prompt.keys) + 1
    done = np.zeros(count, dtype=np.bool_)
    done[list(question.done)] = True
    return Progress(done, np.zeros(count), np.full(count, -1, dtype=np.int16), elapsed_seconds=question.elapsed_seconds)


def _reply(plan_id: bytes, plan: Plan, count: int, prefetching: int) -> wire.PlanReply:
    request = plan.request
    levels = {level.name: level for level in (*LOSSY_LEVELS, EXACT)}
    decisions = []
    for index in range(count):
        way = int(plan.ways[index])
        action = _ACTIONS[Action(int(plan.actions[index]))]
        seconds, reason = float(plan.seconds[index]), plan.reasons[index]
        if way < 0:
            decisions.append(wire.ChunkDecision(action, reason, seconds))
            continue
        offer = request.ways[way]
        size_bytes = int(request.size_bytes[index, way])
        decisions.append(wire.ChunkDecision(action, reason, seconds, offer.link, levels[offer.level], size_bytes))
    return wire.PlanReply(
        plan=plan_id,
        decisions=tuple(decisions),
        load_order=tuple(plan.load_order.tolist()),
        meeting=min(plan.meeting, count),
        ttft_seconds=plan.ttft_seconds,
        cautious_seconds=plan.cautious_seconds,
        recompute_seconds=plan.recompute_seconds,
        loss=plan.loss,
        prefetching=prefetching,
    )


def _shown(made: _Made, now_seconds: float) -> wire.RecentPlan:
    return wire.RecentPlan(
        age_seconds=now_seconds - made.made_seconds,
        namespace=made.namespace,
        engine=made.engine,
        chunks=made.counts.total(),
        loaded=made.counts[Action.LOAD],
        raced=made.counts[Action.RACE],
        recomputed=made.counts[Action.RECOMPUTE],
        reason=made.reason,
        expected_seconds=made.expected_seconds,
        recompute_seconds=made.recompute_seconds,
        loss=made.loss,
        real_seconds=made.real_seconds,
    )
