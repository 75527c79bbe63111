"""Where to cut when there is one way to get each chunk: all lengths of the first run in one pass. Pure.

The same as :func:`.search.cut_seconds`, on plain numbers: short requests are many, and arrays of their size are slow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

__all__ = ["CUT_CHUNKS_MAX", "Cut", "Stretch", "best_cut", "least_seconds"]

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
    """What a second of the engine weighs against one that is only waited for. Where chunks come while others are
    computed, waiting costs no more than it takes, and nothing is to be weighed."""


def best_cut(stretch: Stretch) -> Cut:
    """The fastest; of cuts as fast as computing everything, that one."""
    return _prefix_cut(stretch) if stretch.prefix_only else _front_cut(stretch)


def least_seconds(stretch: Stretch, cut: Cut) -> float:
    """What no plan undercuts that computes any chunks and loads the others.

    The engine's time and the path's, weighed against each other as at ``cut``, sum up to no more than the time to the
    first token (Lagrange; :mod:`.bounded`). Behind the last chunk that somebody has, the engine is on its own.
    """
    compute, transfer, decode = stretch.compute, stretch.transfer, stretch.decode
    end = len(transfer)
    while end and transfer[end - 1] == inf:
        end -= 1
    alone = sum(compute[end:])
    if not end:
        return stretch.wait_seconds + alone
    at = min(cut.length, end - 1)
    while transfer[at] == inf:
        at += 1
    weight = transfer[at] / max(transfer[at] + compute[at], 1e-300)
    total = 0.0
    for computing, moving, decoding in zip(compute[:end], transfer[:end], decode[:end], strict=True):
        loading = (1.0 - weight) * moving + (weight * decoding if stretch.decoding_competes else 0.0)
        total += min(weight * computing, loading)
    loads = total + weight * stretch.wait_seconds + (1.0 - weight) * stretch.path_seconds + alone
    return min(loads, cut.everything_seconds)


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
    return Cut(best, seconds, everything)


def _front_cut(stretch: Stretch) -> Cut:
    """The first chunks are computed while the others, from the last on, are loaded; what nobody has is computed."""
    competes, call, path = stretch.decoding_competes, stretch.call_seconds, stretch.path_seconds
    front = stretch.wait_seconds + sum(stretch.compute) + call
    everything = front
    best, seconds = len(stretch.compute), front
    work = coming = decoding = 0.0
    """From the chunk at hand on: what the engine does, when the last that it waits for has come, and is decoded."""
    waits = hole = False
    for at in range(len(stretch.compute) - 1, -1, -1):
        compute, transfer, decode = stretch.compute[at], stretch.transfer[at], stretch.decode[at]
        front -= compute
        if transfer == inf:
            work += compute if hole else compute + call
            hole = True
            continue
        if competes:
            work += decode
            coming = transfer + max(work, coming)
        else:
            coming = transfer + max(work + decode, coming)
            decoding = decode + max(work, decoding)
        waits, hole = True, False
        begun = front + work if at else front - call + work
        took = max(begun, path + coming, path + decoding)
        if took < seconds:
            best, seconds = at, took
    return Cut(best if waits else len(stretch.compute), seconds, everything)
