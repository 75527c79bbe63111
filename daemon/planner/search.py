"""The search for a plan: candidates of the shape that good plans have, then small changes while they help. Pure.

A good plan computes a run from the front, what nobody has, and what is cheaper to compute than to load; it loads the
rest, at the levels that lose the least for the time they take. With the ways fixed, the time for every length of that
first run is one pass over the chunks (:func:`cut_seconds`); levels and length are found in turn. Of requests of few
chunks, where a single one matters, changes of one chunk are tried, and then all that could be better (:mod:`.bounded`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients.cut import CUT_CHUNKS_MAX, Stretch, best_cut, least_seconds
from .bounded import GAP, Target, completed, within_reach
from .problem import RECOMPUTE, Problem
from .request import BestWithin, Fastest, Objective
from .timeline import losses, ttfts, weighed

__all__ = ["cut_seconds", "search"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_EXACT_CHUNKS_MAX = 12
"""Chunks up to which a plan is improved until none is clearly better."""
_SMALL_CHUNKS_MAX = 64
"""Chunks up to which every change of one chunk is tried."""
_ROUNDS_MAX = 24
_TURNS_MAX = 4
_UNEVEN_MIN = 1.1
_UNEVEN_LONG_MIN = 1.5
"""How much more an earlier chunk is worth to load than a later one for sets that are no run to be tried."""
_RATIOS = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
"""Candidates compute what takes less than this many times as long to compute as to load."""


@dataclass(frozen=True, slots=True)
class _Goal:
    """An objective for what is left to do, with losses in nats summed over tokens."""

    loss_max: float
    ttft_seconds: float | None

    def best_of(self, problem: Problem, choices: Ints) -> int:
        """The best of several; of those as good as each other the first."""
        seconds, lost = weighed(problem, choices), losses(problem, choices)
        seconds = np.where(lost <= self.loss_max * (1 + 1e-9) + 1e-12, seconds, np.inf)
        if self.ttft_seconds is None:
            return int(np.lexsort((lost, seconds))[0])
        late = seconds > self.ttft_seconds
        return int(np.lexsort((seconds, np.where(late, seconds, lost), late))[0])

    def beating(self, problem: Problem, choice: Ints) -> Target:
        """What a plan takes at most that is clearly better than this one."""
        seconds, lost = float(ttfts(problem, choice[None, :])[0]), float(losses(problem, choice[None, :])[0])
        if self.ttft_seconds is not None and seconds <= self.ttft_seconds:
            return Target(self.ttft_seconds, lost * (1 - GAP))
        return Target(seconds * (1 - GAP), self.loss_max)


@dataclass(frozen=True, slots=True, eq=False)
class _Ladder:
    """For each chunk its fastest way, and the steps from there to ways that lose less, the most worthwhile first."""

    base: Ints
    chunk: Ints
    way: Ints
    seconds: Floats
    gain: Floats


def search(problem: Problem, objective: Objective, loss_max: float) -> Ints:
    """A choice for each chunk that is left, [left], whose loss is at most ``loss_max`` nats, summed over tokens.

    Where even nothing lost is too much, everything is computed.
    """
    goal = _Goal(max(loss_max, 0.0), objective.ttft_seconds if isinstance(objective, BestWithin) else None)
    count, ways = len(problem), problem.transfer.shape[1] - 1
    everything_computed = np.full(count, RECOMPUTE, dtype=np.int64)
    if not count or not np.isfinite(problem.transfer[:, :ways]).any():
        return everything_computed
    if count <= CUT_CHUNKS_MAX and isinstance(objective, Fastest):
        cut = _sure_cut(problem, goal)
        if cut is not None:
            return cut
    candidates = np.array([everything_computed, *_candidates(problem, goal)])
    if count > _SMALL_CHUNKS_MAX:
        return np.asarray(candidates[goal.best_of(problem, candidates)], dtype=np.int64)
    best = _polished(problem, goal, candidates[goal.best_of(problem, candidates)])
    if count > _EXACT_CHUNKS_MAX or problem.price > 1.0:
        return best
    target = goal.beating(problem, best)
    weighting = within_reach(problem, target)
    if weighting is None:
        return best
    better = np.concatenate((best[None, :], completed(problem, target, weighting)))
    return np.asarray(better[goal.best_of(problem, better)], dtype=np.int64)


def _sure_cut(problem: Problem, goal: _Goal) -> Ints | None:
    """The best cut of a request with one way worth taking for each chunk, where nothing can be clearly better.

    One way is worth taking where it is the fastest to come and to decode, and nothing else is asked for. ``None`` where
    that is not so, or where a search may find better.
    """
    if len(problem.path_seconds) > 1 or (problem.serial and not problem.prefix_only):
        return None
    transfer, decode = problem.transfer[:, :-1], problem.decode[:, :-1]
    way = int(transfer.min(axis=0).argmin())
    offered = np.isfinite(transfer)
    fastest = (transfer[:, way] <= transfer.min(axis=1)) & (
        decode[:, way] <= np.where(offered, decode, np.inf).min(axis=1)
    )
    if not np.all(fastest | ~offered.any(axis=1)):
        return None
    competes = problem.executor.decoding_competes and not problem.serial
    stretch = Stretch(
        problem.compute.tolist(),
        transfer[:, way].tolist(),
        decode[:, way].tolist(),
        float(problem.path_seconds[0]),
        problem.wait_seconds,
        problem.call_seconds,
        problem.prefix_only,
        competes,
        problem.price,
    )
    cut = best_cut(stretch)
    grid = np.arange(len(problem))
    loaded = offered[:, way] & ((grid < cut.length) if problem.prefix_only else (grid >= cut.length))
    choice = np.where(loaded, way, RECOMPUTE)
    if float(losses(problem, choice[None, :])[0]) > goal.loss_max:
        return None
    if not problem.prefix_only and cut.weighed > (1 + GAP) * least_seconds(stretch, cut):
        return None
    return choice


def _load_seconds(problem: Problem) -> Floats:
    """What a load takes of the scarcest thing that it needs, [left, ways]."""
    transfer, decode = problem.transfer[:, :-1], problem.decode[:, :-1]
    if problem.executor.decoding_competes and not problem.serial:
        return transfer + decode
    return np.maximum(transfer, decode)


def _homes(problem: Problem, seconds: Floats) -> Floats:
    """``seconds`` with only one path left for each chunk: from the back on, the one that would be done first."""
    paths = problem.paths[:-1]
    if len(problem.path_seconds) == 1:
        return seconds
    fastest = np.stack(
        [seconds[:, paths == path].min(axis=1, initial=np.inf) for path in range(len(problem.path_seconds))], axis=1
    )
    busy = problem.path_seconds.tolist()
    homes = np.empty(len(problem), dtype=np.int64)
    backwards = range(len(problem) - 1, -1, -1)
    rows = fastest.tolist()
    for index in range(len(problem)) if problem.prefix_only else backwards:
        finish = [at + row for at, row in zip(busy, rows[index], strict=True)]
        home = finish.index(min(finish))
        homes[index] = home
        if finish[home] != np.inf:
            busy[home] = finish[home]
    return np.where(paths[None, :] == homes[:, None], seconds, np.inf)


def _ladder(problem: Problem, seconds: Floats, *, steps: bool) -> _Ladder:
    base = seconds.argmin(axis=1)
    none = np.empty(0)
    if not steps or seconds.shape[1] == 1:
        return _Ladder(base, none.astype(np.int64), none.astype(np.int64), none, none)
    order = np.argsort(seconds, axis=1, kind="stable")
    rows = np.arange(len(problem))[:, None]
    took, lost = seconds[rows, order], problem.loss[rows, order]
    least = np.minimum.accumulate(lost, axis=1)
    better = np.isfinite(took[:, 1:]) & (lost[:, 1:] < least[:, :-1])
    kept = np.pad(better, ((0, 0), (1, 0)), constant_values=True) & np.isfinite(took)
    taken = np.maximum.accumulate(np.where(kept, took, 0.0), axis=1)
    gain = np.where(better, least[:, :-1] - lost[:, 1:], 0.0)
    extra = np.where(better, taken[:, 1:] - taken[:, :-1], 0.0)
    worth = np.where(better, gain / np.maximum(extra, 1e-15), np.inf)
    worth = np.minimum.accumulate(worth, axis=1)
    where = np.flatnonzero(better.ravel())
    sequence = where[np.argsort(-worth.ravel()[where], kind="stable")]
    width = better.shape[1]
    return _Ladder(
        base, sequence // width, order[:, 1:].ravel()[sequence], extra.ravel()[sequence], gain.ravel()[sequence]
    )


def _candidates(problem: Problem, goal: _Goal) -> list[Ints]:
    seconds = _homes(problem, _load_seconds(problem))
    levels = bool(problem.loss.any()) and (np.isfinite(goal.loss_max) or goal.ttft_seconds is not None)
    ladder = _ladder(problem, seconds, steps=levels)
    fastest = seconds.min(axis=1)
    absent = ~np.isfinite(fastest)
    found: list[Ints] = []
    if problem.prefix_only:
        first_absent = int(absent.argmax()) if absent.any() else len(problem)
        absent = np.arange(len(problem)) >= first_absent
        masks = [absent]
    else:
        ratio = np.where(absent, 0.0, problem.compute / np.where(absent, 1.0, np.maximum(fastest, 1e-15)))
        masks = [absent]
        offered = ratio[~absent]
        # Where what is later is worth no less to load than what is earlier, a run from the front is all there is.
        uneven = float((np.maximum.accumulate(offered) / np.maximum(offered, 1e-15)).max(initial=1.0))
        if uneven > (_UNEVEN_MIN if len(problem) <= _SMALL_CHUNKS_MAX else _UNEVEN_LONG_MIN):
            masks.extend(absent | (ratio < bound) for bound in _RATIOS)
    masks = list({mask.tobytes(): mask for mask in masks}.values())
    if len(masks) > 1 and len(problem) > _SMALL_CHUNKS_MAX:
        begun = [np.array(_in_turns(problem, goal, ladder, mask, turns=1)) for mask in masks]
        found.extend(candidate for candidates in begun for candidate in candidates)
        ends = np.array([candidates[goal.best_of(problem, candidates)] for candidates in begun])
        masks = [masks[goal.best_of(problem, ends)]]
    for mask in masks:
        found.extend(_in_turns(problem, goal, ladder, mask))
    return found


def _in_turns(problem: Problem, goal: _Goal, ladder: _Ladder, computed: Mask, *, turns: int = _TURNS_MAX) -> list[Ints]:
    """Levels for a length of the first run, the best length for these levels, and so on, from both ends."""
    count = len(problem)
    found: list[Ints] = []
    tried: set[int] = set()
    grid = np.arange(count)
    starts = (0, count // 2) if not problem.prefix_only else (count, count // 2, count // 4)
    several = len(ladder.chunk) and turns > 1 and (count <= _SMALL_CHUNKS_MAX or problem.prefix_only)
    for start in starts if several else starts[:1]:
        cut = start
        for _ in range(turns):
            if cut in tried:
                break
            tried.add(cut)
            recomputed = computed | (grid >= cut if problem.prefix_only else grid < cut)
            choice = _levelled(problem, goal, ladder, recomputed)
            if choice is not None:
                found.append(choice)
            ways = np.where(computed, RECOMPUTE, ladder.base if choice is None else choice)
            ways = np.where((ways == RECOMPUTE) & ~computed, ladder.base, ways)
            cut = int(cut_seconds(problem, ways).argmin())
            recomputed = computed | (grid >= cut if problem.prefix_only else grid < cut)
            found.append(np.where(recomputed, RECOMPUTE, ways))
    return found


def _levelled(problem: Problem, goal: _Goal, ladder: _Ladder, recomputed: Mask) -> Ints | None:
    """The ways for what is not recomputed; ``None`` where none of them lose as little as they must."""
    choice = np.where(recomputed, RECOMPUTE, ladder.base)
    if not len(ladder.chunk):
        return choice
    usable = ~recomputed[ladder.chunk]
    lost = float(problem.loss[np.arange(len(problem)), choice].sum())
    gained = np.cumsum(np.where(usable, ladder.gain, 0.0))
    needed = lost - goal.loss_max
    taken = 0
    if needed > 1e-12:
        taken = int(np.searchsorted(gained, needed - 1e-12)) + 1
        if taken > len(gained):
            return None
    if goal.ttft_seconds is not None:
        room = goal.ttft_seconds - float(ttfts(problem, choice[None, :])[0])
        spent = np.cumsum(np.where(usable, ladder.seconds, 0.0))
        taken = max(taken, int(np.searchsorted(spent, room, side="right")))
    picked = np.flatnonzero(usable[:taken])
    choice[ladder.chunk[picked]] = ladder.way[picked]
    return choice


def cut_seconds(problem: Problem, ways: Ints) -> Floats:
    """With ``ways`` for all that is not computed anyway: the time for every length of the first run, [left + 1].

    Where the engine's time has a price, as :func:`.timeline.weighed`.
    """
    rows = np.arange(len(problem))
    moving, decoding = problem.transfer[rows, ways], problem.decode[rows, ways]
    holes = np.where(ways == RECOMPUTE, problem.compute, 0.0)
    computing = np.concatenate(([0.0], np.cumsum(problem.compute)))
    competes = problem.executor.decoding_competes and not problem.serial
    work = holes + decoding if competes else holes
    later = np.concatenate((np.cumsum(work[::-1])[::-1], [0.0]))
    if problem.prefix_only:
        there = np.full(len(problem) + 1, problem.wait_seconds)
        for lane in _lanes(problem, ways, moving, decoding):
            there = np.maximum(there, lane)
        there += problem.price * (computing[-1] - computing)
        there[int((ways == RECOMPUTE).argmax()) + 1 if (ways == RECOMPUTE).any() else len(there) :] = np.inf
        return there
    longest = problem.wait_seconds + computing + later
    for lane in _lanes(problem, ways, moving, decoding):
        if problem.serial:
            longest = np.maximum(longest, lane[-1] - lane + lane[0] + computing + later)
        else:
            waits = np.maximum.accumulate((lane + later)[::-1])[::-1]
            longest = np.maximum(longest, waits - lane + lane[0])
    if problem.price > 1.0:
        everything = problem.wait_seconds + float(computing[-1])
        costs = longest + (problem.price - 1.0) * (computing + later)
        return np.where(longest <= everything * (1 + 1e-9), costs, np.inf)
    return longest


def _lanes(problem: Problem, ways: Ints, moving: Floats, decoding: Floats) -> list[Floats]:
    """For every path, and for the decoder, until when it is busy with the first so many chunks, [left + 1]."""
    lanes = []
    paths = problem.paths[ways]
    for path, seconds in enumerate(problem.path_seconds):
        here = (ways != RECOMPUTE) & (paths == path)
        if here.any():
            lanes.append(np.concatenate(([seconds], seconds + np.cumsum(np.where(here, moving, 0.0)))))
    if decoding.any() and not (problem.executor.decoding_competes and not problem.serial):
        first = float(problem.path_seconds.min())
        lanes.append(np.concatenate(([first], first + np.cumsum(decoding))))
    return lanes


def _polished(problem: Problem, goal: _Goal, choice: Ints) -> Ints:
    """``choice`` after changes of one chunk, for as long as they make it better."""
    chunks, options = np.nonzero(np.isfinite(problem.transfer))
    options = np.where(options == problem.transfer.shape[1] - 1, RECOMPUTE, options)
    rows = np.arange(1, len(chunks) + 1)
    for _ in range(_ROUNDS_MAX):
        changed = np.tile(choice, (len(chunks) + 1, 1))
        changed[rows, chunks] = options
        best = goal.best_of(problem, changed)
        if best == 0:
            break
        choice = changed[best]
    return choice
