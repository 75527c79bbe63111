"""How long a choice takes: the model of loading beside computing that planning and its oracle share. Pure.

Each path transfers its chunks one after the other, each chunk is then decoded, and the engine computes what is not
loaded in the order of positions. A chunk is computed once everything before it is there. Loads that the engine does
not wait for in between may come in any order: from the back to the front, so that the ends can meet elsewhere.

With ``D(j)`` the time by which all that is loaded of the first ``j`` chunks is there and decoded, and ``S(j)`` the
seconds to compute what is computed from chunk ``j`` on, the time to first token is ``max over j of D(j) + S(j)``, and
``wait + S(0)``: there is always a last moment at which the engine waited for a load, and after it it only computes.
"""

import numpy as np
from numpy.typing import NDArray

from .problem import RECOMPUTE, Problem

__all__ = ["losses", "ready_at", "ttfts", "weighed"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def losses(problem: Problem, choices: Ints) -> Floats:
    """The loss of each of ``choices`` [plans, left], in nats, summed over tokens."""
    total: Floats = problem.loss[np.arange(len(problem)), choices].sum(axis=1)
    return total


def ttfts(problem: Problem, choices: Ints) -> Floats:
    """The time to first token of each of ``choices`` [plans, left]; infinite where one cannot be carried out.

    That is where it loads what is not offered, or more than a prefix where only that can be.
    """
    computing = _computing(problem, choices)
    seconds: Floats
    if problem.serial:
        seconds = np.maximum(_decoded(problem, choices)[:, -1], problem.wait_seconds) + computing.sum(axis=1)
        if not problem.prefix_only:
            return seconds
        recomputed = choices == RECOMPUTE
        cut_twice = (recomputed[:, :-1] & ~recomputed[:, 1:]).any(axis=1)
        return np.where(cut_twice, np.inf, seconds)
    if problem.executor.decoding_competes:
        arrivals = _arrivals(problem, choices)
        left = _suffix_sums(computing + problem.decode[np.arange(len(problem)), choices])
        seconds = np.maximum((arrivals + left).max(axis=1), problem.wait_seconds + left[:, 0])
        return seconds
    there = _decoded(problem, choices)
    left = _suffix_sums(computing)
    seconds = np.maximum(problem.wait_seconds + left[:, 0], there[:, -1])
    if len(problem) > 1:
        seconds = np.maximum(seconds, (there[:, :-1] + left[:, 1:]).max(axis=1))
    return seconds


def weighed(problem: Problem, choices: Ints) -> Floats:
    """What each of ``choices`` [plans, left] is to be as little as possible of: the TTFT, and what it costs others.

    That is the engine's time, at what it is worth beyond being waited for. Infinite for what takes longer than
    computing everything, but for prefixes: an engine that takes any chunk computes while it loads.
    """
    seconds = ttfts(problem, choices)
    if problem.price <= 1.0:
        return seconds
    work = _computing(problem, choices).sum(axis=1)
    if problem.executor.decoding_competes and not problem.serial:
        work = work + problem.decode[np.arange(len(problem)), choices].sum(axis=1)
    costs: Floats = seconds + (problem.price - 1.0) * work
    if problem.prefix_only:
        return costs
    everything = problem.wait_seconds + float(problem.compute.sum()) + problem.call_seconds
    return np.where(seconds <= everything * (1 + 1e-9), costs, np.inf)


def ready_at(problem: Problem, choice: Ints) -> Floats:
    """When each chunk of one choice is there, [left]."""
    choices = choice[None, :]
    computing = _computing(problem, choices)[0]
    if problem.executor.decoding_competes and not problem.serial:
        work = computing + problem.decode[np.arange(len(problem)), choice]
        return _in_turn(_arrivals(problem, choices)[0], work, problem.wait_seconds)
    there = _decoded(problem, choices)[0]
    before = np.concatenate(([-np.inf], there[:-1]))
    if problem.serial:
        before = np.full(len(problem), there[-1])
    recomputed = choice == RECOMPUTE
    done = _in_turn(np.where(recomputed, before, -np.inf), computing, problem.wait_seconds)
    return np.where(recomputed, done, there)


def _in_turn(ready: Floats, work: Floats, start: float) -> Floats:
    """When each of several pieces of work is done that are done one after the other, none before it is ready."""
    done = np.cumsum(work)
    finished: Floats = np.maximum(np.maximum.accumulate(ready - done + work), start) + done
    return finished


def _computing(problem: Problem, choices: Ints) -> Floats:
    recomputed = choices == RECOMPUTE
    computing = np.where(recomputed, problem.compute, 0.0)
    if problem.call_seconds:
        begins = recomputed.copy()
        begins[:, 1:] &= ~recomputed[:, :-1]
        computing += problem.call_seconds * begins
    return computing


def _arrivals(problem: Problem, choices: Ints) -> Floats:
    """When each chunk that is loaded has come; minus infinity for others."""
    moving = problem.transfer[np.arange(len(problem)), choices]
    loaded = choices != RECOMPUTE
    if len(problem.path_seconds) == 1:
        return np.where(loaded, np.cumsum(moving, axis=1) + problem.path_seconds[0], -np.inf)
    arrivals = np.full(choices.shape, -np.inf)
    paths = problem.paths[choices]
    for path, seconds in enumerate(problem.path_seconds):
        here = loaded & (paths == path)
        coming = np.cumsum(np.where(here, moving, 0.0), axis=1) + seconds
        arrivals = np.where(here, coming, arrivals)
    return arrivals


def _decoded(problem: Problem, choices: Ints) -> Floats:
    """By when all that is loaded of the chunks up to each is there, a decoder taking them in order."""
    decoding = problem.decode[np.arange(len(problem)), choices]
    done = np.cumsum(decoding, axis=1)
    there: Floats = np.maximum.accumulate(_arrivals(problem, choices) - done + decoding, axis=1) + done
    return there


def _suffix_sums(values: Floats) -> Floats:
    sums: Floats = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return sums
