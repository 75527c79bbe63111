"""The fixed probability tables of the lossy levels: 64 scale classes of a Laplace distribution.

KLT coefficients of a KV channel are close to Laplace distributed once quantised coarsely, and a class per channel
costs under 0.0002 bit per value more than a table of its own. The tables are part of the format: they are computed
in exact decimal arithmetic, never in floating point, so every machine has the same ones. A test holds their digest.

Class ``c`` is a Laplace distribution whose mean magnitude is ``SCALE_LOW * 2 ** (c / 6)`` steps of the level that is
coded. A base symbol byte is ``128 + q`` for ``|q| <= 127``; byte 0 is the escape, whose value follows beside the
stream. A refinement halves the step: the cell at zero parts in three, any other in two.
"""

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from enum import IntEnum
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLASSES",
    "CLASSES_PER_GAIN",
    "CLASSES_PER_OCTAVE",
    "ESCAPE",
    "GAINS_PER_OCTAVE",
    "GAIN_MAX",
    "PROBABILITY_BITS",
    "REFINEMENTS_MAX",
    "ROUNDING",
    "SCALE_LOW",
    "SLOTS",
    "SYMBOL_MAX",
    "SYMBOL_ZERO",
    "TABLE_CLASSES",
    "TableForm",
    "TableSet",
    "base_tables",
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
CLASSES_PER_OCTAVE = 6
GAINS_PER_OCTAVE = 2
GAIN_MAX = 15
"""A token of gain ``g`` is quantised ``2 ** (g / 2)`` times as finely as the others of its chunk."""
CLASSES_PER_GAIN = CLASSES_PER_OCTAVE // GAINS_PER_OCTAVE
TABLE_CLASSES = CLASSES + GAIN_MAX * CLASSES_PER_GAIN
"""Tables of a set: the last class is repeated, so that a gain may be added to any class."""
REFINEMENTS_MAX = 3
SCALE_LOW = Decimal("0.08")
ROUNDING = Decimal("0.375")
"""What is added before rounding down: less than a half is a dead zone, which saves more bits than it costs (Sullivan
1996; 0.10-0.15 below a half measured best on SmolLM2)."""


class TableForm(IntEnum):
    """What the compiled coder may take for granted of the tables of a set (`Form` in ``jobs.h``)."""

    ANY = 0
    BASE = 1
    REFINEMENT = 2


SEARCH_ENTRIES = 32
SEARCH_FIRST = SYMBOL_ZERO - SEARCH_ENTRIES // 2
"""As in ``jobs.h``."""


@dataclass(frozen=True)
class TableSet:
    """Frequencies of some tables ``[tables, 256]`` uint16, and what the two directions of the coder look up.

    The frequencies of a table sum to 4,096, and no symbol has all of them.
    """

    frequencies: NDArray[np.uint16]
    form: TableForm = TableForm.ANY

    @classmethod
    def with_decoder(cls, frequencies: NDArray[np.uint16], decoder: NDArray[np.uint32]) -> "TableSet":
        """A set whose ``decoder`` somebody has built already."""
        tables = cls(frequencies)
        tables.__dict__["decoder"] = decoder
        return tables

    @cached_property
    def encoder(self) -> NDArray[np.uint32]:
        """Frequency of each symbol ``[tables, 256]``, with the cumulative in the upper half."""
        wide = np.ascontiguousarray(self.frequencies, dtype=np.uint32)
        cumulative = np.cumsum(wide, axis=1, dtype=np.uint32) - wide
        return np.asarray(wide | cumulative << 16, dtype=np.uint32)

    @cached_property
    def decoder(self) -> NDArray[np.uint32]:
        """Symbol, frequency and bias of each slot ``[tables, 4096]`` (see ``rans.h``)."""
        flat = self.frequencies.reshape(-1).astype(np.uint32)
        symbols = np.arange(len(flat), dtype=np.uint32) & 0xFF
        ends = np.cumsum(flat, dtype=np.uint32)
        # A slot's bias is its place in the whole set less that of its symbol's first: the upper twelve bits hold it.
        heads = (symbols | flat << 8) - (ends - flat << 20)
        slots = np.arange(len(self.frequencies) * SLOTS, dtype=np.uint32) << 20
        return np.asarray(slots + np.repeat(heads, flat), dtype=np.uint32).reshape(-1, SLOTS)

    @cached_property
    def search(self) -> NDArray[np.uint16] | None:
        """What a vector of lanes searches for its symbols ``[CLASSES, 2, SEARCH_ENTRIES]``, where ``form`` allows it.

        Of base tables the starts and the counts of the symbols around zero, the outermost two without counts: they
        stand for all beyond. Of refinements, for zeros and others of each gain, where symbols 1 and 2 start.
        """
        if self.form == TableForm.BASE:
            found = np.zeros((CLASSES, 2, SEARCH_ENTRIES), np.uint16)
            near = slice(SEARCH_FIRST, SEARCH_FIRST + SEARCH_ENTRIES)
            wide = self.frequencies[:CLASSES].astype(np.uint32)
            found[:, 0] = (np.cumsum(wide, axis=1) - wide)[:, near]
            found[:, 1, 1:-1] = self.frequencies[:CLASSES, near][:, 1:-1]
            return found
        if self.form == TableForm.REFINEMENT:
            contexts = 2 * CLASSES_PER_GAIN * np.arange(GAIN_MAX + 1)[:, None] + np.arange(2)
            tables = 2 * np.arange(CLASSES)[:, None] + contexts.reshape(-1)
            starts = np.cumsum(self.frequencies[tables, :2], axis=2, dtype=np.uint16)
            return np.ascontiguousarray(starts.transpose(0, 2, 1))
        return None

    def cost_bits(self) -> NDArray[np.float64]:
        """Ideal code length of each symbol ``[tables, 256]``, infinite where a symbol has no code."""
        with np.errstate(divide="ignore"):
            return PROBABILITY_BITS - np.log2(self.frequencies.astype(np.float64))


def table_set(frequencies: NDArray[np.uint16], form: TableForm = TableForm.ANY) -> TableSet:
    """The set of ``frequencies`` ``[tables, 256]``; :class:`ValueError` where they are not as they must be."""
    if not (frequencies.sum(axis=1, dtype=np.int64) == SLOTS).all() or int(frequencies.max(initial=0)) >= SLOTS:
        raise ValueError("frequencies must sum to 4096 over at least two symbols")
    return TableSet(frequencies, form)


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


@lru_cache(maxsize=REFINEMENTS_MAX + 1)
def base_tables(refinements: int) -> TableSet:
    """One table per class for base symbols that ``refinements`` levels refine, ``TABLE_CLASSES`` of them."""
    frequencies = np.zeros((TABLE_CLASSES, 256), dtype=np.uint16)
    with localcontext(Context(prec=50)):
        at_zero = 1 - ROUNDING / 2**refinements
        for index in range(CLASSES):
            decay = _decay(index)
            tail = _power(decay, at_zero)
            tail_low = Decimal(1) / (2 * SLOTS)
            weights = {SYMBOL_ZERO: 1 - tail}
            magnitude = 0
            while magnitude < SYMBOL_MAX and tail > tail_low:
                magnitude += 1
                cell = tail * (1 - decay) / 2
                weights[SYMBOL_ZERO + magnitude] = weights[SYMBOL_ZERO - magnitude] = cell
                tail *= decay
            weights[ESCAPE] = tail
            symbols = sorted(weights)
            frequencies[index, symbols] = normalise([max(1, int(weights[symbol] * 10**30)) for symbol in symbols])
    frequencies[CLASSES:] = frequencies[CLASSES - 1]
    return table_set(frequencies, TableForm.BASE)


@lru_cache(maxsize=REFINEMENTS_MAX)
def refinement_tables(left: int) -> TableSet:
    """Two tables per class for the symbols of a refinement that ``left`` more follow.

    ``2 * class`` where the parent is zero (0 stays zero, 1 positive, 2 negative), ``2 * class + 1`` where it is not
    (0 the half nearer to zero, 1 the other).
    """
    frequencies = np.zeros((2 * TABLE_CLASSES, 256), dtype=np.uint16)
    with localcontext(Context(prec=50)):
        shift = ROUNDING / 2**left
        for index in range(CLASSES):
            decay = _decay(index)
            inside, edge = _power(decay, 1 - shift), _power(decay, 2 - shift)
            side = (inside - edge) / 2
            for table, parts in ((2 * index, [1 - inside, side, side]), (2 * index + 1, [Decimal(1), decay])):
                frequencies[table, : len(parts)] = normalise([max(1, int(part * 10**30)) for part in parts])
    frequencies[2 * CLASSES :: 2] = frequencies[2 * CLASSES - 2]
    frequencies[2 * CLASSES + 1 :: 2] = frequencies[2 * CLASSES - 1]
    return table_set(frequencies, TableForm.REFINEMENT)


def _power(decay: Decimal, steps: Decimal) -> Decimal:
    """What is left of the density of ``decay`` per step after some steps."""
    return (decay.ln() * steps).exp()


def _decay(index: int) -> Decimal:
    """By what the density of class ``index`` falls over one step."""
    scale = SCALE_LOW * (Decimal(2).ln() * index / CLASSES_PER_OCTAVE).exp()
    return (-1 / scale).exp()
