"""Short requests, exactly enough: what can still become clearly better than the plan at hand is followed. Pure.

For any weights of the engine's time, of each path's, and of loss, the weighted sum of what each chunk takes at least
bounds the time of every plan from below (Lagrange). What cannot get below the plan at hand by :data:`GAP` is dropped;
most often that is everything at once, and the plan at hand is good enough.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .problem import RECOMPUTE, Problem

__all__ = ["GAP", "Target", "Weighting", "completed", "within_reach"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GAP = 0.02
"""A plan at hand that no other betters by this share is not improved."""
_PARTIAL_MAX = 192
"""Partial plans that are followed at once."""
_MERGE = 0.002
"""Partial plans that differ by less than this share of the target are followed as one."""
_WEIGHTINGS_MAX = 6
_LOSS_MIN = 1e-9
"""Nats that are worth a weight."""
_CUTS_MAX = 5


@dataclass(frozen=True, slots=True)
class Target:
    """What a better plan takes at most."""

    seconds: float
    loss: float


@dataclass(frozen=True, slots=True, eq=False)
class Weighting:
    """Weights under which the lower bound is near the truth, the best first, and what the rest of the chunks add.

    Up to its ``cut`` a weighting weighs the engine's time against that of the paths; from there on the engine's alone,
    which goes on only when all before the cut is there.
    """

    compute: Floats
    """[weightings]"""
    paths: Floats
    """[weightings, paths]"""
    loss: Floats
    """[weightings]"""
    cut: Ints
    """[weightings]"""
    rest: Floats
    """[weightings, left + 1], the least weighted sum of the chunks from each on"""
    ahead: Floats
    """[weightings], what a plan that loads anything waits on its paths before the first byte"""

    def budget(self, target: Target) -> Floats:
        """What the weighted sum of a plan that reaches ``target`` is at most."""
        allowed = self.loss * target.loss if np.isfinite(target.loss) else np.zeros(len(self.loss))
        return np.asarray(target.seconds + allowed)

    def taken(self, picked: Ints) -> "Weighting":
        """Some of them."""
        return Weighting(
            self.compute[picked],
            self.paths[picked],
            self.loss[picked],
            self.cut[picked],
            self.rest[picked],
            self.ahead[picked],
        )


def within_reach(problem: Problem, target: Target) -> Weighting | None:
    """Weights to search with, or ``None`` where no plan that loads anything can reach ``target``."""
    count, paths = len(problem), len(problem.path_seconds)
    splits = np.vstack([np.eye(paths), np.full((1, paths), 1 / paths)]) if paths > 1 else np.ones((1, 1))
    shares = np.ones(1) if problem.serial else np.linspace(0.0, 1.0, 9)
    finite = np.isfinite(problem.transfer[:, :-1])
    prices = np.zeros(1)
    dearest = problem.loss.max()
    if dearest > _LOSS_MIN and np.isfinite(target.loss):
        slowest = problem.transfer[:, :-1][finite].max(initial=0.0) + problem.compute.max()
        prices = np.concatenate(([0.0], slowest / dearest * 2.0 ** np.arange(-6, 5)))
    grid = np.meshgrid(shares, np.arange(len(splits)), prices, _cuts(problem, finite), indexing="ij")
    share, price = (np.asarray(axis.ravel(), dtype=np.float64) for axis in (grid[0], grid[2]))
    split, cut = (np.asarray(axis.ravel(), dtype=np.int64) for axis in (grid[1], grid[3]))
    on_path = np.asarray(splits[split] * (1.0 if problem.serial else (1 - share)[:, None]), dtype=np.float64)
    before = np.arange(count) < cut[:, None]
    engine = np.where(before, share[:, None], 1.0)
    cheapest = engine * problem.compute
    competes = problem.executor.decoding_competes and not problem.serial
    for way in range(problem.transfer.shape[1] - 1):
        moving = np.where(finite[:, way], problem.transfer[:, way], np.inf)
        takes = np.where(before, on_path[:, problem.paths[way], None], 0.0) * np.where(finite[:, way], moving, 0.0)
        if competes:
            takes = takes + engine * problem.decode[:, way]
        takes = takes + price[:, None] * problem.loss[:, way]
        cheapest = np.minimum(cheapest, np.where(finite[:, way], takes, np.inf))
    rest = np.concatenate((np.cumsum(cheapest[:, ::-1], axis=1)[:, ::-1], np.zeros((len(share), 1))), axis=1)
    ahead: Floats = np.where(cut > 0, (on_path * problem.path_seconds).min(axis=1), 0.0)
    weighting = Weighting(share, on_path, price, cut, rest, ahead)
    waits = np.where(cut > 0, share, 1.0) * problem.wait_seconds * (not problem.serial)
    room = weighting.budget(target) - waits - ahead - rest[:, 0]
    order = np.argsort(room)[:_WEIGHTINGS_MAX]
    return None if room[order[0]] < 0 else weighting.taken(order)


def _cuts(problem: Problem, finite: NDArray[np.bool_]) -> Ints:
    """Where the engine may have to wait for all that is before: at runs of chunks that nobody has."""
    if problem.serial:
        return np.array([len(problem)])
    absent = np.asarray(~finite.any(axis=1))
    begins = np.flatnonzero(absent & ~np.concatenate(([False], absent[:-1])))
    picked = begins[np.unique(np.linspace(0, len(begins) - 1, min(len(begins), _CUTS_MAX)).astype(np.int64))]
    return np.concatenate((picked, [len(problem)]))


@dataclass(frozen=True, slots=True, eq=False)
class _Partial:
    """Plans of the first few chunks."""

    choices: Ints
    """[plans, chunks so far]"""
    paths: Floats
    """[plans, paths], until when each path is busy, less what it waits at first"""
    there: Floats
    """[plans], when all that is loaded is there"""
    engine: Floats
    """[plans], until when the engine is busy; without the loads it waits for where it waits for all of them"""
    loss: Floats

    def taken(self, picked: Ints) -> "_Partial":
        return _Partial(
            self.choices[picked], self.paths[picked], self.there[picked], self.engine[picked], self.loss[picked]
        )


def completed(problem: Problem, target: Target, weighting: Weighting) -> Ints:
    """The plans that reach ``target``, [plans, left]; those as good as each other are one. There may be none."""
    engine_start = 0.0 if problem.serial else problem.wait_seconds
    partial = _Partial(
        np.empty((1, 0), dtype=np.int64),
        np.zeros((1, len(problem.path_seconds))),
        np.full(1, -np.inf),
        np.full(1, engine_start),
        np.zeros(1),
    )
    for chunk in range(len(problem)):
        partial = _extended(problem, partial, chunk)
        whole = partial.engine + np.maximum(partial.there, problem.wait_seconds) if problem.serial else None
        ends = np.maximum(partial.engine, partial.there) if whole is None else whole
        before = chunk + 1 <= weighting.cut
        spent = (
            np.where(before, weighting.compute, 1.0)[:, None] * partial.engine
            + np.where(before[:, None], weighting.paths, 0.0) @ partial.paths.T
            + weighting.loss[:, None] * partial.loss
        )
        ahead = np.where(before, weighting.ahead, 0.0)
        slack = (weighting.budget(target) - ahead - weighting.rest[:, chunk + 1])[:, None] - spent
        kept = np.flatnonzero(
            (slack.min(axis=0) >= -1e-12) & (ends <= target.seconds) & (partial.loss <= target.loss + 1e-12)
        )
        partial = _thinned(partial.taken(kept), target, slack.min(axis=0)[kept])
        if not len(partial.loss):
            break
    count = len(problem)
    return partial.choices if partial.choices.shape[1] == count else np.empty((0, count), dtype=np.int64)


def _extended(problem: Problem, partial: _Partial, chunk: int) -> _Partial:
    """Each partial plan with each choice for the next chunk."""
    before = partial.choices[:, -1] if chunk else np.zeros(len(partial.loss), dtype=np.int64)
    computing_before = before == RECOMPUTE
    computing = problem.compute[chunk] + problem.call_seconds * ~computing_before
    begun = partial.engine if problem.serial else np.maximum(partial.engine, partial.there)
    extended = [
        _Partial(
            np.column_stack((partial.choices, np.full(len(begun), RECOMPUTE))),
            partial.paths,
            partial.there,
            begun + computing,
            partial.loss,
        )
    ]
    source = partial.taken(np.flatnonzero(~computing_before)) if problem.prefix_only else partial
    for way in np.flatnonzero(np.isfinite(problem.transfer[chunk, :-1])):
        path = problem.paths[way]
        paths = source.paths.copy()
        paths[:, path] += problem.transfer[chunk, way]
        arrived = paths[:, path] + problem.path_seconds[path]
        decode = problem.decode[chunk, way]
        engine = source.engine
        if problem.executor.decoding_competes and not problem.serial:
            engine = np.maximum(engine, arrived) + decode
            there = source.there
        else:
            there = np.maximum(source.there, arrived) + decode
        choices = np.column_stack((source.choices, np.full(len(engine), way)))
        extended.append(_Partial(choices, paths, there, engine, source.loss + problem.loss[chunk, way]))
    return _Partial(
        np.concatenate([item.choices for item in extended]),
        np.concatenate([item.paths for item in extended]),
        np.concatenate([item.there for item in extended]),
        np.concatenate([item.engine for item in extended]),
        np.concatenate([item.loss for item in extended]),
    )


def _thinned(partial: _Partial, target: Target, slack: Floats) -> _Partial:
    """Those partial plans that differ, and of too many those with the most slack."""
    if len(slack) < 2:
        return partial
    step = target.seconds * _MERGE
    loss_step = max(target.loss, 1e-300) * _MERGE if np.isfinite(target.loss) else np.inf
    state = np.column_stack(
        (
            partial.choices[:, -1] == RECOMPUTE,
            np.round(np.maximum(partial.engine, partial.there) / step),
            np.round(np.maximum(partial.there, 0.0) / step),
            np.round(partial.paths / step),
            np.round(partial.loss / loss_step),
        )
    )
    order = np.lexsort((-slack, *state.T))
    same = np.all(state[order][1:] == state[order][:-1], axis=1)
    first = order[np.concatenate(([True], ~same))]
    if len(first) > _PARTIAL_MAX:
        first = first[np.argsort(-slack[first], kind="stable")[:_PARTIAL_MAX]]
    return partial.taken(first)
