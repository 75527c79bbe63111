"""TurboQuant: random rotation, then one fixed scalar quantiser for every coordinate (Zandieh et al., ICLR 2026).

The variant for squared error. A head's vector is divided by its norm (kept, float16) and rotated by one random
orthonormal matrix; each coordinate then has the density (1 - x²)^((d - 3) / 2) whatever the vector was, and the
quantiser that is best for it (Lloyd, Max) needs no data. Nothing but the norm is stored besides the symbols.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from kvloom.codec import LayerLayout

from .base import HALF_BITS, Coded, FloatArray, LayerQuantiser, half

_GRID = 200_001
_ROUNDS = 400
_SEED = 20250428


@dataclass(frozen=True, slots=True)
class TurboQuant(LayerQuantiser):
    """``bits`` per coordinate."""

    name: ClassVar[str] = "turboquant"
    bits: int

    @property
    def level(self) -> str:
        """The setting."""
        return f"{self.bits} bit"

    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys."""
        return self._code(keys)

    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values."""
        return self._code(values)

    def _code(self, heads: FloatArray) -> Coded:
        head_dim = heads.shape[2]
        turn, book = rotation(head_dim), codebook(head_dim, self.bits)
        norms = half(np.linalg.norm(heads, axis=2, keepdims=True))
        turned = heads @ turn.T / np.where(norms > 0, norms, 1)
        nearest = book[np.searchsorted((book[1:] + book[:-1]) / 2, turned)]
        return Coded(nearest @ turn * norms, self.bits * heads.size, HALF_BITS * norms.size)


@lru_cache(maxsize=8)
def rotation(size: int) -> FloatArray:
    """A random orthonormal matrix ``[size, size]``, always the same."""
    matrix, triangle = np.linalg.qr(np.random.default_rng(_SEED).normal(size=(size, size)))
    turn: FloatArray = (matrix * np.sign(np.diag(triangle))).astype(np.float32)
    return turn


@lru_cache(maxsize=32)
def codebook(size: int, bits: int) -> FloatArray:
    """The Lloyd-Max points ``[2**bits]`` of one coordinate of a random unit vector of ``size`` coordinates."""
    grid = np.linspace(-1, 1, _GRID)
    weight = np.maximum(1 - grid**2, 0) ** ((size - 3) / 2)
    mass, moment = (np.concatenate([[0.0], np.cumsum(part)]) for part in (weight, weight * grid))
    shares = (np.arange(2**bits) + 0.5) / 2**bits
    points = np.interp(shares, mass[1:] / mass[-1], grid)
    for _ in range(_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(grid, (points[1:] + points[:-1]) / 2), [_GRID]])
        points = np.diff(moment[edges]) / np.diff(mass[edges])
    found: FloatArray = points.astype(np.float32)
    return found
