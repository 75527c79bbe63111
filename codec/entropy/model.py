"""The fixed probability tables of the lossy levels: 64 scale classes of a Laplace distribution.

KLT coefficients of a KV channel are close to Laplace distributed once quantised coarsely, and a class per channel
costs under 0.0002 bit per value more than a table of its own. The tables are part of the format: they are computed
in exact decimal arithmetic, never in floating point, so every machine has the same ones. A test holds their digest.

Class ``c`` is a Laplace distribution whose mean magnitude is ``SCALE_LOW * SCALE_RATIO ** c`` base steps. A base
symbol byte is ``128 + q`` for ``|q| <= 127``; byte 0 is the escape, whose value follows beside the stream. A
refinement splits a base cell in three; its byte is ``1 + r``, ``r`` being -1, 0 or 1 away from zero. The three parts
of a cell off zero are in the ratio that an exponential gives them whatever the cell, so two tables per class suffice:
one for the cell at zero, one for all others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLASSES",
    "ESCAPE",
    "PROBABILITY_BITS",
    "SLOTS",
    "SYMBOL_MAX",
    "SYMBOL_ZERO",
    "TableSet",
    "base_tables",
    "decoder_look_ups",
    "normalise",
    "refinement_tables",
    "table_set",
]

PROBABILITY_BITS = 12
SLOTS = 1 << PROBABILITY_BITS
CLASSES = 64
SYMBOL_ZERO = 128
SYMBOL_MAX = 127
ESCAPE = 0
REFINEMENT = 3
"""Parts into which a refinement splits a base cell."""

SCALE_LOW = Decimal("0.03")
SCALE_RATIO = Decimal("1.11")


@dataclass(frozen=True)
class TableSet:
    """Frequencies of some tables and what the two directions of the coder look up.

    ``frequencies`` ``[tables, 256]`` uint16 sum to 4,096 per table; ``encoder`` ``[tables, 256]`` uint32 is frequency
    with the cumulative in the upper half; ``decoder`` ``[tables, 4096]`` uint32 is symbol, frequency and bias (see
    ``rans.h``).
    """

    frequencies: NDArray[np.uint16]
    encoder: NDArray[np.uint32]
    decoder: NDArray[np.uint32]

    def cost_bits(self) -> NDArray[np.float64]:
        """Ideal code length of each symbol ``[tables, 256]``, infinite where a symbol has no code."""
        with np.errstate(divide="ignore"):
            return PROBABILITY_BITS - np.log2(self.frequencies.astype(np.float64))


def table_set(
    frequencies: NDArray[np.uint16],
    decoder_tables: Callable[[NDArray[np.uint16]], NDArray[np.uint32]] | None = None,
) -> TableSet:
    """Build the look-ups of ``frequencies`` ``[tables, 256]``, each row summing to 4,096 with no symbol at 4,096.

    ``decoder_tables`` may be another execution of :func:`decoder_look_ups`.
    """
    wide = np.ascontiguousarray(frequencies, dtype=np.uint32)
    if not (wide.sum(axis=1) == SLOTS).all() or int(wide.max(initial=0)) >= SLOTS:
        raise ValueError("frequencies must sum to 4096 over at least two symbols")
    cumulative = np.cumsum(wide, axis=1, dtype=np.uint32) - wide
    decoder = (decoder_tables or decoder_look_ups)(frequencies)
    return TableSet(frequencies, (wide | cumulative << 16).astype(np.uint32), decoder)


def decoder_look_ups(frequencies: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Symbol, frequency and bias of every slot ``[tables, 4096]``; the rows of ``frequencies`` must sum to 4,096."""
    flat = frequencies.reshape(-1).astype(np.uint32)
    symbols = np.arange(len(flat), dtype=np.uint32) & 0xFF
    ends = np.cumsum(flat, dtype=np.uint32)
    # Slot i of the whole set is i - start past the first slot of its symbol; twelve bits of it are what is kept.
    head = (symbols | flat << 8) - (ends - flat << 20)
    slots: NDArray[np.uint32] = np.repeat(head, flat) + (np.arange(ends[-1] if len(ends) else 0, dtype=np.uint32) << 20)
    return slots.reshape(-1, SLOTS)


def normalise(weights: list[int]) -> list[int]:
    """Scale positive integer ``weights`` to frequencies that sum to 4,096, each at least 1 and below 4,096.

    Integers only, so that it is the same everywhere: shares are rounded down, what is left goes to the largest
    remainders, ties to the lower index. Needs 2 to 256 weights.
    """
    total = sum(weights)
    room = SLOTS - len(weights)
    shares = [1 + weight * room // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(weights[i] * room % total), i))
    for index in by_remainder[: SLOTS - sum(shares)]:
        shares[index] += 1
    return shares


@lru_cache(maxsize=1)
def base_tables() -> TableSet:
    """One table per class for base symbols."""
    frequencies = np.zeros((CLASSES, 256), dtype=np.uint16)
    with localcontext(Context(prec=50)):
        for index in range(CLASSES):
            decay = _decay(index)
            half = decay.sqrt()
            zero = 1 - half
            tail_low = Decimal(1) / (2 * SLOTS)
            weights = {SYMBOL_ZERO: zero}
            magnitude, tail = 0, half
            while magnitude < SYMBOL_MAX and tail > tail_low:
                magnitude += 1
                cell = tail * (1 - decay) / 2
                weights[SYMBOL_ZERO + magnitude] = weights[SYMBOL_ZERO - magnitude] = cell
                tail *= decay
            weights[ESCAPE] = tail
            symbols = sorted(weights)
            counts = normalise([max(1, int(weights[symbol] * 10**30)) for symbol in symbols])
            frequencies[index, symbols] = counts
    return table_set(frequencies)


@lru_cache(maxsize=1)
def refinement_tables() -> TableSet:
    """Two tables per class for refinements: ``2 * class`` for the cell at zero, ``2 * class + 1`` for the others."""
    frequencies = np.zeros((2 * CLASSES, 256), dtype=np.uint16)
    with localcontext(Context(prec=50)):
        for index in range(CLASSES):
            third = (_decay(index).ln() / 3).exp()
            middle = 1 - third.sqrt()
            side = (third.sqrt() - third * third.sqrt()) / 2
            at_zero = [side, middle, side]
            off_zero = [Decimal(1), third, third * third]
            for table, parts in ((2 * index, at_zero), (2 * index + 1, off_zero)):
                frequencies[table, :REFINEMENT] = normalise([max(1, int(part * 10**30)) for part in parts])
    return table_set(frequencies)


def _decay(index: int) -> Decimal:
    """By what the density of class ``index`` falls over one base step."""
    return (-1 / (SCALE_LOW * SCALE_RATIO**index)).exp()
