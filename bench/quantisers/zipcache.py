"""ZipCache: salient tokens at 4 bits, others at 2; values per token after scaling channels (He et al., NeurIPS 2024).

Keys are quantised per channel, values per token over all channels once each channel is divided by the root of its
largest magnitude ("channel-separable"), so that a token needs one offset and one step and no groups. The two kinds of
tokens have parameters of their own; one bit per token and layer says which it is. Saliency is the normalised attention
score in the paper; here the guess of ``base.important_tokens``. 60 % salient is the authors' own setting.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvloom.codec import LayerLayout

from .base import HALF_BITS, Coded, FloatArray, LayerQuantiser, affine, channels_of, half, heads_of, important_tokens

SALIENT_BITS, OTHER_BITS = 4, 2


@dataclass(frozen=True, slots=True)
class ZipCache(LayerQuantiser):
    """``salient`` is the share of tokens at 4 bits."""

    name: ClassVar[str] = "zipcache"
    salient: float = 0.6

    @property
    def level(self) -> str:
        """The setting."""
        return f"{self.salient:.0%} of 4/2 bit"

    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys."""
        channels = channels_of(keys)
        restored = np.empty_like(channels)
        payload, side = 0, len(channels)  # the bit that says which tokens are salient
        for chosen, bits in self._parts(keys):
            coded = affine(channels[chosen].T, bits)
            restored[chosen] = coded.restored.T
            payload, side = payload + coded.payload_bits, side + coded.side_bits
        return Coded(heads_of(restored, keys), payload, side)

    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values."""
        channels = channels_of(values)
        restored = np.empty_like(channels)
        payload = side = 0
        for chosen, bits in self._parts(keys):
            scales = half(np.sqrt(np.maximum(np.abs(channels[chosen]).max(axis=0), 1e-6)))
            coded = affine(channels[chosen] / scales, bits)
            restored[chosen] = coded.restored * scales
            payload, side = payload + coded.payload_bits, side + coded.side_bits + HALF_BITS * scales.size
        return Coded(heads_of(restored, values), payload, side)

    def _parts(self, keys: FloatArray) -> list[tuple[np.ndarray, int]]:
        salient = important_tokens(keys, self.salient)
        return [(part, bits) for part, bits in ((salient, SALIENT_BITS), (~salient, OTHER_BITS)) if part.any()]
