"""CacheGen, the real bytes of ``kvloom.codec.cachegen``: anchors, deltas, range coding with learnt distributions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvloom.codec import Layout
from kvloom.codec.cachegen import CacheGenProfile, decode_cachegen, encode_cachegen
from kvloom.codec.cachegen_quantise import anchors_of

from .base import HALF_BITS, FloatArray, Quantiser, Roundtrip

_HEAD_BITS = 32


@dataclass(frozen=True)
class CacheGen(Quantiser):
    """One of the profile's levels, 0 the coarsest."""

    name: ClassVar[str] = "cachegen"
    profile: CacheGenProfile
    index: int

    @property
    def level(self) -> str:
        """The setting."""
        return f"bins x{self.profile.bin_scales[self.index]:.2g}"

    def roundtrip(
        self, keys: Sequence[FloatArray], values: Sequence[FloatArray], layout: Layout, first_position: int
    ) -> Roundtrip:
        """Through the real bytes of all layers."""
        tokens = keys[0].shape[1]
        payloads = encode_cachegen(list(keys), list(values), layout=layout, profile=self.profile, level=self.index)
        decoded = decode_cachegen(payloads, layout=layout, profile=self.profile, level=self.index, tokens=tokens)
        side = len(payloads) * (_HEAD_BITS + HALF_BITS * anchors_of(tokens))
        restored = [[np.asarray(item, np.float32) for item in kind] for kind in decoded]
        return Roundtrip(restored[0], restored[1], 8 * sum(map(len, payloads)) - side, side)
