"""Plans for engines, and what they report: the planner with a store, a clock, and a memory of its own plans.

Nothing is kept beyond the process: what an engine costs is learnt again in a few reports. Tenants share nothing but the
daemon's own measurements of its tiers; what a plan says of another tenant's chunk is what it says of one that is not
stored.
"""

import asyncio
import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Final

from .. import limits
from ..clients import plan_wire as wire
from ..codec.level import EXACT, LOSSY_LEVELS
from ..errors import TooManyItems
from ..kvstore.key import OwnerId
from ..kvstore.tiered.store import TieredStore
from ..tracing import span
from .answer_quality import AnswerQuality
from .caller import Caller, Scope
from .plan_offers import ChunkOffers
from .plan_questions import (
    check_name,
    check_question,
    executor_of,
    objective_of,
    progress_of,
    prompt_of,
    request_of,
    seen_of,
    shape_of,
)
from .planner.blended import BlendedPlan, make_blended_plan
from .planner.measured import MeasuredLinks
from .planner.model import CostModel, Situation
from .planner.plan import Action, Plan
from .planner.planner import DECISION_QUANTILE, STOPPING_QUANTILE, make_plan

__all__ = ["Planning"]

_PATH: Final = "daemon"
"""Tiers are behind one socket: chunks come one after the other, whichever tier they were in."""
_PLAN_ID_BYTES: Final = 16
_INLINE_CHUNKS_MAX: Final = 512
"""Requests of more chunks are planned in a worker thread."""


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
        self,
        store: TieredStore,
        links: MeasuredLinks,
        *,
        inflight_bytes: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``inflight_bytes``: what the daemon has under way, which whoever asks now comes behind."""
        self._store = store
        self._offers = ChunkOffers(store)
        self._links = links
        self._clock = clock
        self._inflight_bytes = inflight_bytes
        self._models: OrderedDict[OwnerId, CostModel] = OrderedDict()
        self._awaited: OrderedDict[tuple[OwnerId, bytes], _Made] = OrderedDict()
        self._recent: deque[_Made] = deque(maxlen=limits.PLAN_RECENT_MAX)
        self._counts = _Counts()
        self.quality = AnswerQuality()

    async def plan(self, caller: Caller, question: wire.PlanQuestion) -> wire.PlanReply:
        """Decide for each chunk; :class:`InvalidRequest`, :class:`TooManyItems` for a question that makes no sense."""
        caller.require(Scope.READ)
        check_question(question)
        prompt = await asyncio.to_thread(prompt_of, question) if question.tokens else prompt_of(question)
        with span("service.plan", tenant=caller.tenant, chunks=len(prompt.keys)):
            offered = await self._offers.of(caller.namespace, prompt.keys)
            begun = time.perf_counter()
            model = self._model(caller.namespace.owner)
            request = request_of(question, prompt, offered, model)
            now = Situation(self._clock(), question.running, question.queued_tokens, self._inflight_bytes())
            used = sorted({way.link for way in request.ways})
            estimates = model.estimates(question.engine, self._links.estimates(now.now_seconds), used, _PATH, now)
            for link, byte_seconds in seen_of(question, request).items():
                estimates = estimates.seen(link, byte_seconds)
            progress = progress_of(question, request)
            stopping = question.stops and question.ability is wire.Ability.PREFIX_CUT
            quantile = STOPPING_QUANTILE if stopping else DECISION_QUANTILE

            def decide() -> BlendedPlan | Plan:
                objective = objective_of(question)
                if question.blend is not None:
                    shape = shape_of(question.blend, side_by_side=question.side_by_side)
                    return make_blended_plan(request, estimates, objective.loss_max, shape)
                executor = executor_of(question)
                return make_plan(request, estimates, objective, executor, progress=progress, quantile=quantile)

            decided = decide() if len(request) <= _INLINE_CHUNKS_MAX else await asyncio.to_thread(decide)
            plan = decided.plan if isinstance(decided, BlendedPlan) else decided
            ratio = decided.recompute_ratio if isinstance(decided, BlendedPlan) else None
            self._counts.deciding_seconds += time.perf_counter() - begun
        prefetching = 0
        if question.prefetch:
            wanted = [prompt.keys[index] for index in plan.load_order.tolist()]
            prefetching = await self._store.prefetch(caller.namespace, wanted) if wanted else 0
            self._counts.prefetched += prefetching
        plan_id = os.urandom(_PLAN_ID_BYTES)
        self._remember(caller, plan_id, question.engine, plan, len(prompt.keys))
        return replace(_reply(plan_id, plan, len(prompt.keys)), prefetching=prefetching, recompute_ratio=ratio)

    def report(self, caller: Caller, report: wire.EngineReport) -> wire.ReportReply:
        """Learn from what an engine says that things took; what cannot be is counted and changes nothing."""
        caller.require(Scope.READ)
        check_name(report.engine)
        count = sum(map(len, (report.prefills, report.loads, report.decodes, report.outcomes, report.qualities)))
        if count > limits.PLAN_SAMPLES_MAX:
            raise TooManyItems(f"report has {count} measurements, the limit is {limits.PLAN_SAMPLES_MAX}")
        for load in report.loads:
            check_name(load.link, what="link")
        accepted = sum(self._taken_in(caller, report))
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

    def _taken_in(self, caller: Caller, report: wire.EngineReport) -> Iterator[bool]:
        """Each measurement in turn: whether it was taken in."""
        model, now, engine = self._model(caller.namespace.owner), self._clock(), report.engine
        for run in report.prefills:
            yield model.note_prefill(engine, run.tokens, run.start, run.seconds, batch=run.running, now_seconds=now)
        for load in report.loads:
            size, concurrent = load.size_bytes, load.concurrent
            yield model.note_load(engine, load.link, size, load.seconds, concurrent=concurrent, now_seconds=now)
        for decode in report.decodes:
            yield model.note_decode(engine, decode.level.name, decode.kv_bytes, decode.seconds, now_seconds=now)
        for outcome in report.outcomes:
            yield self._note_outcome(caller, outcome)
        for quality in report.qualities:
            yield self.quality.note(quality)

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


def _reply(plan_id: bytes, plan: Plan, count: int) -> wire.PlanReply:
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
        hold_seconds=plan.hold_seconds,
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
