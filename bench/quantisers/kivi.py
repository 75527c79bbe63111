"""KIVI: keys per channel, values per token, asymmetric, in groups of 32 (Liu et al., ICML 2024).

Keys of a channel share a scale over 32 tokens, because keys have outlier channels; values share one over 32 channels
of a token. While decoding, KIVI keeps the last tokens in float16 (its residual, 128 in the paper): that is a window of
the engine, not of a store, so it is a setting here and 0 by default; with it, a whole context is one round trip, not a
chunk. Tokens that fill no group of keys stay float16, too.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvloom.codec import LayerLayout

from .base import HALF_BITS, Coded, FloatArray, LayerQuantiser, affine_over_channels, affine_over_tokens, half

GROUP = 32


@dataclass(frozen=True, slots=True)
class Kivi(LayerQuantiser):
    """``bits`` per number; ``residual_tokens`` as in the paper's window (a multiple of 32), or 0."""

    name: ClassVar[str] = "kivi"
    bits: int
    residual_tokens: int = 0

    @property
    def level(self) -> str:
        """The setting."""
        return f"{self.bits} bit" + (f", residual {self.residual_tokens}" if self.residual_tokens else "")

    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys."""
        # Keys are quantised when a whole residual of them is full, values one by one as they leave it.
        tokens = keys.shape[1]
        whole = tokens - tokens % (self.residual_tokens or GROUP)
        return _join(affine_over_tokens(keys[:, :whole], self.bits, GROUP), keys[:, whole:])

    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values."""
        left = max(0, values.shape[1] - self.residual_tokens)
        return _join(affine_over_channels(values[:, :left], self.bits, GROUP), values[:, left:])


def _join(quantised: Coded, residual: FloatArray) -> Coded:
    restored = np.concatenate([quantised.restored, half(residual)], axis=1)
    return Coded(restored, quantised.payload_bits + HALF_BITS * residual.size, quantised.side_bits)
