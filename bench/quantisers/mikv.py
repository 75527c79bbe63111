"""MiKV: no token is dropped; the important ones get 8 bits, the rest few (Yang et al., 2024, "No Token Left Behind").

Per token and head, asymmetric. Outlier channels of the keys are balanced first: the paper multiplies keys by the root
of max|query| / max|key| of each channel and divides queries by it. Queries are not stored, so only the part of the
keys is left here. Importance is an eviction policy's in the paper (attention received); here the guess of
``base.important_tokens``.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvloom.codec import LayerLayout

from .base import HALF_BITS, Coded, FloatArray, LayerQuantiser, affine, half, important_tokens

IMPORTANT_BITS = 8


@dataclass(frozen=True, slots=True)
class MiKv(LayerQuantiser):
    """``bits`` per number of the tokens that are not among the ``important`` share."""

    name: ClassVar[str] = "mikv"
    bits: int
    important: float = 0.2

    @property
    def level(self) -> str:
        """The setting."""
        return f"{self.important:.0%} of {IMPORTANT_BITS}/{self.bits} bit"

    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys."""
        balance = half(np.sqrt(np.maximum(np.abs(keys).max(axis=1, keepdims=True), 1e-6)))
        coded = self._code(keys, keys / balance)
        # One bit per token says which are important.
        side = coded.side_bits + HALF_BITS * balance.size + keys.shape[1]
        return Coded(coded.restored * balance, coded.payload_bits, side)

    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values."""
        return self._code(keys, values)

    def _code(self, keys: FloatArray, heads: FloatArray) -> Coded:
        important = important_tokens(keys, self.important)
        restored = np.empty_like(heads)
        payload = side = 0
        for chosen, bits in ((important, IMPORTANT_BITS), (~important, self.bits)):
            coded = affine(heads[:, chosen], bits)
            restored[:, chosen] = coded.restored
            payload, side = payload + coded.payload_bits, side + coded.side_bits
        return Coded(restored, payload, side)
