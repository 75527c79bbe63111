"""The planner: a request, what things cost, and what is wanted, made into a plan; and made again on the way. Pure.

Decided is with links as slow as :data:`DECISION_QUANTILE` of what they may do, and promised what is expected of them.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...clients.cut import worth_holding
from ...clients.overdue import overdue_seconds
from .outlook import PREFIX_PRICE_MAX, Estimates
from .plan import Action, Plan, Progress, Reason
from .problem import RECOMPUTE, Problem, pose
from .request import BestWithin, Executor, Fastest, Objective, PlanRequest
from .search import cut_seconds, search
from .timeline import losses, ready_at, ttfts

__all__ = ["DECISION_QUANTILE", "REASONS", "STOPPING_QUANTILE", "make_plan", "reasons_for"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DECISION_QUANTILE = 0.8
"""Of what a link may take: a plan is late once in five, and then computes instead."""
STOPPING_QUANTILE = 0.5
"""The same for an engine that takes only a prefix and is asked again while it loads: it may stop after any chunk, and
what it loads says how fast the link is, which an engine that computes at once does not learn."""


def make_plan(
    request: PlanRequest,
    estimates: Estimates,
    objective: Objective,
    executor: Executor,
    *,
    progress: Progress | None = None,
    quantile: float = DECISION_QUANTILE,
) -> Plan:
    """Decide for every chunk; with ``progress``, again for what is left of a request under way.

    Ask again after every arrival that was not foreseen, and whenever the engine gets to a chunk that should have come.
    No plan is expected to take longer, with links as slow as the quantile, than computing everything that is left;
    where a second of the engine has a price (:attr:`.outlook.PrefillCost.price`) and only a prefix can be loaded, no
    longer than that takes at this price: what others wait for the engine counts.
    """
    loss_max = objective.loss_max * float(request.tokens.sum())
    if progress is not None:
        loss_max -= progress.lost
        if isinstance(objective, BestWithin):
            objective = replace(objective, ttft_seconds=objective.ttft_seconds - progress.elapsed_seconds)
    cautious = estimates.at(quantile)
    problem = _priced(pose(request, cautious, executor, progress), cautious.prefill.price, objective)
    choice = search(problem, objective, loss_max)
    raced = np.zeros(len(problem), dtype=np.bool_)
    ways, hold_seconds = choice, 0.0
    if not problem.serial and len(problem):
        hopeful = estimates.at(1 - quantile)
        if hopeful != cautious:
            fast = _priced(pose(request, hopeful, executor, progress), hopeful.prefill.price, objective)
            ways, raced = _raced(fast, choice, loss_max)
            if progress is None and isinstance(objective, Fastest):
                hold_seconds = _hold_seconds(fast, choice, ways, request)
    mean = estimates.mean()
    expected = problem if mean == cautious else pose(request, mean, executor, progress)
    plan = _written(request, problem, expected, choice, ways, raced, objective.loss_max)
    return replace(plan, hold_seconds=hold_seconds) if hold_seconds else plan


def _priced(problem: Problem, price: float, objective: Objective) -> Problem:
    """``problem`` with what a second of the engine weighs; an objective for one request is that request's alone."""
    if isinstance(objective, BestWithin):
        return problem
    return replace(problem, price=max(1.0, min(price, PREFIX_PRICE_MAX) if problem.prefix_only else price))


def _raced(problem: Problem, choice: Ints, loss_max: float) -> tuple[Ints, NDArray[np.bool_]]:
    """Of the first run, what would be loaded if links were as fast as they may be; and every chunk's way then."""
    count = len(problem)
    nothing = choice, np.zeros(count, dtype=np.bool_)
    loaded = np.flatnonzero(choice != RECOMPUTE)
    cut = int(loaded[0]) if len(loaded) else count
    rows = np.arange(count)
    transfer, lost = problem.transfer[:cut, :-1], problem.loss[:cut, :-1]
    if not cut or not transfer.shape[1]:
        return nothing
    room = loss_max - float(losses(problem, choice[None, :])[0])
    if len(loaded):
        way = int(choice[cut])
        fits = np.isfinite(transfer[:, way]) & (np.cumsum(lost[::-1, way])[::-1] <= room + 1e-12)
        candidates = np.where(fits, way, RECOMPUTE)
    else:
        allowed = np.where(lost * count <= room + 1e-12, transfer, np.inf)
        candidates = np.where(np.isfinite(allowed.min(axis=1)), allowed.argmin(axis=1), RECOMPUTE)
    ways = np.where(rows < cut, np.concatenate((candidates, np.full(count - cut, RECOMPUTE))), choice)
    meeting = int(cut_seconds(problem, ways)[: cut + 1].argmin())
    raced = (rows >= meeting) & (rows < cut) & (ways != RECOMPUTE)
    return np.where(raced, ways, choice), raced


def _hold_seconds(problem: Problem, choice: Ints, ways: Ints, request: PlanRequest) -> float:
    """How long to wait for the first load of ``ways``, raced chunks among them, on the links of ``problem``."""
    computed = choice == RECOMPUTE
    first = int((~computed).argmax()) if not computed.all() else len(problem)
    if problem.executor.step_tokens:
        fits = np.cumsum(request.tokens[problem.chunks[:first]]) <= problem.executor.step_tokens
        first = max(int(fits.sum()), 1) if first else 0
    wanted = ways != RECOMPUTE
    if not wanted[:first].any():
        return 0.0
    loaded = np.flatnonzero(wanted & ~computed) if (wanted & ~computed).any() else np.flatnonzero(wanted)
    runs = np.flatnonzero(np.diff(loaded) > 1)
    at = int(loaded[runs[0]] if len(runs) else loaded[-1])  # from the back to the front of the first run
    there = float(problem.path_seconds[problem.paths[ways[at]]] + problem.transfer[at, ways[at]])
    begun = np.where(np.arange(len(problem)) < first, RECOMPUTE, ways)
    begun_seconds, seconds = (float(cut_seconds(problem, each).min()) for each in (begun, ways))
    return worth_holding(begun_seconds, seconds, overdue_seconds(there))


def _written(
    request: PlanRequest,
    problem: Problem,
    expected: Problem,
    choice: Ints,
    left_ways: Ints,
    raced: NDArray[np.bool_],
    loss_max: float,
) -> Plan:
    count = len(request)
    actions = np.full(count, Action.LOAD, dtype=np.int8)
    ways = np.full(count, -1, dtype=np.int16)
    seconds = np.zeros(count)
    codes = np.full(count, REASONS.index(Reason.DONE))
    chunks = problem.chunks
    recomputed = choice == RECOMPUTE
    actions[chunks] = np.where(raced, Action.RACE, np.where(recomputed, Action.RECOMPUTE, Action.LOAD))
    ways[chunks] = left_ways
    took, cautious, everything = 0.0, 0.0, 0.0
    if len(problem):
        seconds[chunks] = ready_at(expected, choice)
        both = np.stack((choice, np.full(len(problem), RECOMPUTE)))
        took, everything = (float(value) for value in ttfts(expected, both))
        cautious = float(ttfts(problem, choice[None, :])[0])
    codes[chunks] = reasons_for(problem, choice, raced, loss_max, request)
    coming = ~recomputed | raced
    run = np.cumsum(~coming)
    order = np.arange(len(problem)) if problem.prefix_only else np.lexsort((-np.arange(len(problem)), run, raced))
    loaded = np.flatnonzero(~recomputed)
    lost = float(losses(problem, choice[None, :])[0]) if len(problem) else 0.0
    return Plan(
        request=request,
        actions=actions,
        ways=ways,
        seconds=seconds,
        reasons=tuple(map(REASONS.__getitem__, codes.tolist())),
        load_order=chunks[order[coming[order]]],
        meeting=int(chunks[loaded[0]]) if len(loaded) else count,
        ttft_seconds=took,
        cautious_seconds=cautious,
        recompute_seconds=everything,
        loss=lost / float(request.tokens.sum()),
    )


REASONS = tuple(Reason)


def reasons_for(
    problem: Problem, choice: Ints, raced: NDArray[np.bool_], loss_max: float, request: PlanRequest
) -> Ints:
    """Why each was decided so, as places in :data:`REASONS`."""
    offered = np.isfinite(problem.transfer[:, :-1])
    absent = np.asarray(~offered.any(axis=1))
    cases: list[tuple[NDArray[np.bool_], Reason]] = [
        (absent, Reason.NOT_OFFERED),
        (raced, Reason.UNCERTAIN),
        (choice != RECOMPUTE, Reason.LOAD_FASTER),
    ]
    if np.isfinite(loss_max):
        least = np.where(offered, problem.loss[:, :-1], np.inf).min(axis=1, initial=np.inf)
        cases.append((least > loss_max * request.tokens[problem.chunks], Reason.QUALITY_FLOOR))
    if problem.prefix_only:
        cases.append((np.logical_or.accumulate(absent), Reason.AFTER_CUT))
    codes: Ints = np.full(len(problem), REASONS.index(Reason.COMPUTE_FASTER), dtype=np.int64)
    for holds, reason in reversed(cases):
        codes[holds] = REASONS.index(reason)
    return codes
