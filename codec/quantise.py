"""The nested uniform quantiser: a coarse symbol, and a refinement that splits its cell in three.

``standard`` is a uniform quantiser of the profile's step, ``draft`` one of three steps; because three is odd the
coarse cells are unions of fine ones, so the fine symbol is the coarse one plus a refinement and nothing is lost by
storing both. Rounding has a dead zone: a little less than half a step is rounded up, which at low rates saves more
bits than the error costs (Sullivan 1996; 0.10–0.15 measured best on SmolLM2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidTensor
from .entropy.model import ESCAPE, SYMBOL_ZERO

__all__ = ["CELLS", "NestedQuantiser", "Quantised", "dequantise"]

CELLS = 3
SYMBOL_LIMIT = 2**29


@dataclass(frozen=True, slots=True)
class Quantised:
    """``base`` int32 and ``refinement`` int8 (-1, 0, 1, positive away from zero), of one shape."""

    base: NDArray[np.int32]
    refinement: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class NestedQuantiser:
    """Quantises coefficients that are already divided by the fine step."""

    dead_zone: float

    def quantise(self, scaled: NDArray[np.float32]) -> Quantised:
        """Round ``scaled`` (coefficient / step) to a fine symbol and part it into base and refinement."""
        magnitude = np.abs(scaled)
        largest = float(magnitude.max(initial=0.0))
        if not largest < SYMBOL_LIMIT:
            raise InvalidTensor(f"a coefficient is {largest:.3g} quantiser steps, the limit is {SYMBOL_LIMIT}")
        fine = np.floor(magnitude + np.float32(0.5 - self.dead_zone)).astype(np.int32)
        base = (fine + 1) // CELLS
        refinement = (fine - CELLS * base).astype(np.int8)
        negative = np.signbit(scaled)
        # In the cell at zero a refinement has the sign of the value itself; elsewhere it points away from zero.
        refinement[negative & (base == 0)] *= -1
        base[negative] *= -1
        return Quantised(base, refinement)

    @staticmethod
    def fine_symbols(base: NDArray[np.int32], refinement: NDArray[np.int8]) -> NDArray[np.int32]:
        """The symbols of the fine quantiser: undoes what :meth:`quantise` parted."""
        return CELLS * base + np.where(base < 0, -refinement, refinement)


def dequantise(base: NDArray[np.uint8], refinement: NDArray[np.uint8] | None) -> tuple[NDArray[np.float32], int]:
    """Coefficients in fine steps ``[n]`` of coded base symbols and refinements, and how many base symbols escaped.

    An escape comes out as if its base symbol were 0; the caller knows better. This is the specification of
    ``kvl_dequantise`` in ``transform.cpp``.
    """
    escaped = base == ESCAPE
    cells = np.where(escaped, 0, base.astype(np.int32) - SYMBOL_ZERO).astype(np.int32)
    parts = np.zeros(len(base), np.int8) if refinement is None else (refinement.astype(np.int8) - np.int8(1))
    return NestedQuantiser.fine_symbols(cells, parts).astype(np.float32), int(escaped.sum())
