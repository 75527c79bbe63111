"""Where to cut when there is one way to get each chunk: all lengths of the first run in one pass. Pure.

On plain numbers: short requests are many, and arrays of their size are slow. Executors decide anew with it on the way,
and so does the simulated one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

__all__ = ["CUT_CHUNKS_MAX", "Cut", "Stretch", "best_cut", "hold_seconds", "least_seconds", "worth_holding"]

CUT_CHUNKS_MAX = 64
"""Chunks past which arrays are faster."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The best length of the first run: computed from the front, or loaded where only a prefix can be."""

    length: int
    seconds: float
    """until the first token"""
    everything_seconds: float
    """if all is computed"""
    weighed: float
    """``seconds``, and what the engine's part of them is worth beyond being waited for: this is as little as can be"""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Chunks that follow each other; times in seconds."""

    compute: Sequence[float]
    """[chunks]"""
    transfer: Sequence[float]
    """[chunks], infinite where nobody has it"""
    decode: Sequence[float]
    """[chunks]"""
    path_seconds: float
    """before the first byte comes"""
    wait_seconds: float
    """before the engine begins"""
    call_seconds: float
    """of each run that is computed"""
    prefix_only: bool
    decoding_competes: bool
    engine_price: float = 1.0
    """What a second of the engine weighs against one that is only waited for."""


def best_cut(stretch: Stretch) -> Cut:
    """The fastest; of cuts as fast as computing everything, that one."""
    return _prefix_cut(stretch) if stretch.prefix_only else _front_cut(stretch)


def least_seconds(stretch: Stretch, cut: Cut) -> float:
    """What no plan's weighed seconds undercut that computes any chunks and loads the others.

    The engine's time and the path's, weighed against each other as at ``cut``, sum up to no more than the time to the
    first token (Lagrange). Behind the last chunk that somebody has, the engine is on its own.
    """
    compute, transfer, decode = stretch.compute, stretch.transfer, stretch.decode
    end = len(transfer)
    while end and transfer[end - 1] == inf:
        end -= 1
    extra = stretch.engine_price - 1.0
    alone = stretch.engine_price * sum(compute[end:])
    if not end:
        return stretch.wait_seconds + alone
    at = min(cut.length, end - 1)
    while transfer[at] == inf:
        at += 1
    weight = transfer[at] / max(transfer[at] + compute[at], 1e-300)
    total = 0.0
    for computing, moving, decoding in zip(compute[:end], transfer[:end], decode[:end], strict=True):
        loading = (1.0 - weight) * moving + ((weight + extra) * decoding if stretch.decoding_competes else 0.0)
        total += min((weight + extra) * computing, loading)
    loads = total + weight * stretch.wait_seconds + (1.0 - weight) * stretch.path_seconds + alone
    return min(loads, cut.everything_seconds + extra * (cut.everything_seconds - stretch.wait_seconds))


def hold_seconds(hopeful: Stretch, seconds: float, first: int, there_seconds: float) -> float:
    """How long the engine had better wait for the first load before it computes anything; 0 where it had not.

    ``hopeful``: what is to be done over a link as fast as it may be, and ``seconds`` what its best cut takes;
    ``first``: chunks of the engine's first step, which it does not stop once it has begun; ``there_seconds``: when the
    first load would be there at the latest.
    """
    if seconds + there_seconds >= hopeful.wait_seconds + sum(hopeful.compute) + hopeful.call_seconds:
        return 0.0  # computing everything, which needs no load, loses no more than that
    transfer = [inf] * first + list(hopeful.transfer[first:])
    return worth_holding(best_cut(replace(hopeful, transfer=transfer)).seconds, seconds, there_seconds)


def worth_holding(begun_seconds: float, seconds: float, there_seconds: float) -> float:
    """``there_seconds`` where that is less than what beginning at once would lose on a fast link; else 0.

    ``begun_seconds``, ``seconds``: until the first token on such a link, if the engine has begun, and if it has not. On
    a slow one what is waited is lost; either is as likely as the other, for all that is known.
    """
    return there_seconds if begun_seconds - seconds > there_seconds else 0.0


def _prefix_cut(stretch: Stretch) -> Cut:
    """The first chunks are loaded, and when they are there the rest is computed."""
    wait, price, call = stretch.wait_seconds, stretch.engine_price, stretch.call_seconds
    left = sum(stretch.compute) + call
    everything = wait + left
    best, seconds, lowest = 0, everything, wait + price * left
    came, decoded = stretch.path_seconds, 0.0
    last = len(stretch.compute) - 1
    for at, (compute, transfer, decode) in enumerate(
        zip(stretch.compute, stretch.transfer, stretch.decode, strict=True)
    ):
        if transfer == inf:
            break
        came += transfer
        decoded = max(decoded, came) + decode
        left -= compute
        if at == last:
            left = 0.0
        begins = max(decoded, wait)
        if begins + price * left < lowest:
            best, seconds, lowest = at + 1, begins + left, begins + price * left
    return Cut(best, seconds, everything, lowest)


def _front_cut(stretch: Stretch) -> Cut:
    """The first chunks are computed while the others, from the last on, are loaded; what nobody has is computed."""
    competes, call, path = stretch.decoding_competes, stretch.call_seconds, stretch.path_seconds
    wait, extra = stretch.wait_seconds, stretch.engine_price - 1.0
    front = wait + sum(stretch.compute) + call
    everything = front
    best, seconds, lowest = len(stretch.compute), front, front + extra * (front - wait)
    work = coming = decoding = 0.0
    """From the chunk at hand on: what the engine does, when the last that it waits for has come, and is decoded."""
    waits = hole = False
    computes, transfers, decodes = stretch.compute, stretch.transfer, stretch.decode
    for at in range(len(computes) - 1, -1, -1):
        compute, transfer = computes[at], transfers[at]
        front -= compute
        if transfer == inf:
            work += compute if hole else compute + call
            hole = True
            continue
        if competes:
            work += decodes[at]
            coming = transfer + (work if work > coming else coming)
        else:
            decoding = decodes[at] + (work if work > decoding else decoding)
            coming = transfer + (decoding if decoding > coming else coming)
        waits, hole = True, False
        begun = front + work if at else front - call + work
        there = path + (coming if coming > decoding else decoding)
        took = begun if begun > there else there
        weighed = took + extra * (begun - wait)
        if weighed < lowest and took <= everything:
            best, seconds, lowest = at, took, weighed
    return Cut(best if waits else len(stretch.compute), seconds, everything, lowest)
