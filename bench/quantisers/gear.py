"""GEAR: a uniform quantiser, its error as a low-rank matrix per head, and outliers kept apart (Kang et al., 2024).

The 2 % outliers are taken per channel of the keys and per token of the values (half of them at either end), the rest is
quantised the same way round in groups of 64, and what is lost is approximated by a matrix of rank 4 for heads of 128
channels (here in proportion), in float16. The paper finds it by power iteration; the SVD here is what that tends to.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvloom.codec import LayerLayout

from .base import (
    HALF_BITS,
    OUTLIER_BITS,
    BoolArray,
    Coded,
    FloatArray,
    LayerQuantiser,
    affine_over_channels,
    affine_over_tokens,
    half,
    tails,
)

GROUP = 64
OUTLIERS = 0.02
RANK_PER_CHANNEL = 4 / 128


@dataclass(frozen=True, slots=True)
class Gear(LayerQuantiser):
    """``bits`` per number of the uniform part."""

    name: ClassVar[str] = "gear"
    bits: int

    @property
    def level(self) -> str:
        """The setting."""
        return f"{self.bits} bit"

    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys."""
        outlier = tails(keys.swapaxes(1, 2), OUTLIERS).swapaxes(1, 2)
        filled = _without(keys, outlier, axis=1)
        whole = keys.shape[1] - keys.shape[1] % GROUP
        parts = [
            affine_over_tokens(part, self.bits, size)
            for part, size in ((filled[:, :whole], GROUP), (filled[:, whole:], keys.shape[1] - whole))
            if part.shape[1]
        ]
        uniform = Coded(
            np.concatenate([part.restored for part in parts], axis=1),
            sum(part.payload_bits for part in parts),
            sum(part.side_bits for part in parts),
        )
        return _repair(keys, uniform, outlier)

    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values."""
        outlier = tails(values, OUTLIERS)
        return _repair(values, affine_over_channels(_without(values, outlier, axis=2), self.bits, GROUP), outlier)


def _without(heads: FloatArray, outlier: BoolArray, axis: int) -> FloatArray:
    """``heads`` with the mean of the others of its vector in the place of each outlier."""
    mean = heads.mean(axis=axis, keepdims=True, where=~outlier)
    return np.where(outlier, mean, heads)


def _repair(heads: FloatArray, uniform: Coded, outlier: BoolArray) -> Coded:
    """Add the low-rank part of the error and put the outliers back."""
    kv_heads, tokens, head_dim = heads.shape
    rank = max(1, round(RANK_PER_CHANNEL * head_dim))
    error = np.where(outlier, 0, heads - uniform.restored)
    left, strengths, right = np.linalg.svd(error, full_matrices=False)
    rank = min(rank, strengths.shape[1])
    low_rank = np.matmul(half(left[..., :rank] * strengths[:, None, :rank]), half(right[:, :rank]))
    restored = np.where(outlier, half(heads), uniform.restored + low_rank)
    side = HALF_BITS * kv_heads * rank * (tokens + head_dim) + OUTLIER_BITS * int(outlier.sum())
    return Coded(restored, uniform.payload_bits, uniform.side_bits + side)
