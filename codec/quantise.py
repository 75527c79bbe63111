"""The embedded quantiser: one symbol per coefficient whose leading bits are the coarser levels.

The finest symbol is ``sign(x) * floor(|x| + ROUNDING)``, ``x`` in fine steps; each coarser level drops its lowest bit,
so a level's cells are unions of the next one's and nothing is lost by storing all of them (the dead-zone quantiser of
JPEG 2000, Taubman and Marcellin 2002, section 3.2.7). The cell at zero is nearly twice as wide as the others at the
coarse levels, which is where a rate–distortion optimiser would put it at low rates anyway.

Reconstruction is in integers, in units of a quarter of the level's step (of the whole step at the finest): the
transform that follows multiplies integers and is exact in every implementation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidTensor
from .entropy import native, native_lossy
from .entropy.model import ESCAPE, GAIN_MAX, GAINS_PER_OCTAVE, ROUNDING, SYMBOL_MAX, SYMBOL_ZERO

__all__ = [
    "ESCAPE_MAX",
    "FINE_MAX",
    "Symbols",
    "gain_factors",
    "join",
    "largest_gains",
    "quantise",
    "reconstruct",
    "split",
    "symbols_of",
    "unit",
]

FINE_MAX = 2**30
"""A finest symbol is below this."""
ESCAPE_MAX = 2**27
"""An escaped number is below this, so that refining it stays below :data:`FINE_MAX`."""
_COMFORTABLE = 2**15
_QUARTERS = 4

IntArray = NDArray[np.int32]


def gain_factors(gains: NDArray[np.uint8]) -> NDArray[np.float32]:
    """By what the coefficients of tokens with these gains are multiplied before quantisation ``[tokens]``."""
    factors: NDArray[np.float32] = np.exp2(gains.astype(np.float32) / np.float32(GAINS_PER_OCTAVE))
    return factors


def largest_gains(coefficients: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The largest gain of each token that keeps its symbols comfortable, of coefficients ``[channels, tokens]``."""
    peak = np.maximum(np.abs(coefficients).max(axis=0, initial=0.0), 1e-9)
    room = GAINS_PER_OCTAVE * np.log2(_COMFORTABLE / peak)
    gains: NDArray[np.uint8] = np.clip(np.floor(room), 0, GAIN_MAX).astype(np.uint8)
    return gains


def quantise(coefficients: NDArray[np.float32], gains: NDArray[np.uint8]) -> IntArray:
    """Finest symbols int32 of coefficients ``[channels, tokens]`` in fine steps; :class:`InvalidTensor` past 2^30."""
    scaled = coefficients * gain_factors(gains)
    magnitude = np.abs(scaled)
    largest = float(magnitude.max(initial=0.0))
    if not largest < FINE_MAX - 1:
        raise InvalidTensor(f"a coefficient is {largest:.3g} quantiser steps, the limit is {FINE_MAX}")
    fine = np.floor(magnitude + np.float32(ROUNDING)).astype(np.int32)
    symbols: IntArray = np.where(scaled < 0, -fine, fine)
    return symbols


@dataclass(frozen=True, slots=True)
class Symbols:
    """The quantised coefficients of a part: ``levels`` uint8 ``[width, tokens]`` each, coarse to fine, as coded.

    A base symbol of a magnitude over :data:`SYMBOL_MAX` is :data:`ESCAPE`; ``base_of`` has its number. ``peaks`` int32
    ``[width]`` are the largest magnitudes of each coefficient's finest symbols.
    """

    levels: tuple[NDArray[np.uint8], ...]
    peaks: IntArray
    coefficients: NDArray[np.float32]
    gains: NDArray[np.uint8]

    def base_of(self, rows: NDArray[np.intp]) -> IntArray:
        """The base symbols ``[len(rows), tokens]`` as numbers."""
        fine = quantise(self.coefficients[rows], self.gains)
        base = np.abs(fine) >> (len(self.levels) - 1)
        numbers: IntArray = np.where(fine < 0, -base, base)
        return numbers


def symbols_of(
    coefficients: Sequence[NDArray[np.float32]], gains: NDArray[np.uint8], refinements: int
) -> list[Symbols]:
    """Quantise and split the coefficients ``[width, tokens]`` of each part; errors as :func:`quantise`."""
    if native.AVAILABLE:
        made = native_lossy.quantise(coefficients, gain_factors(gains), refinements)
        if made is not None:
            return [
                Symbols(levels, peaks, item, gains) for (levels, peaks), item in zip(made, coefficients, strict=True)
            ]
    found: list[Symbols] = []
    for item in coefficients:
        fine = quantise(item, gains)
        found.append(Symbols(split(fine, refinements), np.abs(fine).max(axis=1, initial=0), item, gains))
    return found


def split(fine: IntArray, refinements: int) -> tuple[NDArray[np.uint8], ...]:
    """The symbols of each level from coarse to fine as they are coded, of finest symbols.

    A base symbol over :data:`SYMBOL_MAX` is :data:`ESCAPE`; those of a refinement are as ``refinement_tables`` says.
    """
    magnitude = np.abs(fine)
    base = magnitude >> refinements
    coded = np.where(fine < 0, -base, base) + SYMBOL_ZERO
    levels = [np.where(base > SYMBOL_MAX, ESCAPE, coded).astype(np.uint8)]
    for left in reversed(range(refinements)):
        child = magnitude >> left
        first = np.where(child == 0, 0, np.where(fine < 0, 2, 1))
        levels.append(np.where(child >> 1 == 0, first, child & 1).astype(np.uint8))
    return tuple(levels)


def join(coarse: IntArray, refinement: NDArray[np.uint8]) -> IntArray:
    """The symbols one level finer: undoes one step of :func:`split`."""
    opened = np.where(refinement == 2, np.int32(-1), refinement.astype(np.int32))
    doubled = 2 * coarse + np.where(coarse < 0, -refinement.astype(np.int32), refinement.astype(np.int32))
    joined: IntArray = np.where(coarse == 0, opened, doubled)
    return joined


def unit(left: int) -> float:
    """Fine steps of one unit of :func:`reconstruct` at a level that ``left`` refinements would follow."""
    return 1.0 if left == 0 else 2.0**left / _QUARTERS


def reconstruct(symbols: IntArray, left: int) -> IntArray:
    """What symbols of a level stand for, in its :func:`unit`.

    A cell off zero stands for the point a quarter above its lower end: the density falls within a cell.
    """
    if left == 0:
        return symbols
    return _QUARTERS * symbols + np.sign(symbols)
