"""Synthetic KV with what matters of the real kind: correlated channels of falling variance, offsets, RoPE on keys."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from kvloom.codec import KvDtype, KvSample, Layout, Profile, Rope, calibrate
from kvloom.codec.rope import rotate

HEADS, HEAD_DIM, LAYERS = 2, 16, 3
BLOCK_CHANNELS = 2 * 2 * HEADS * HEAD_DIM
"""Room for two layers: three are a block of two and one of one."""


@dataclass(frozen=True)
class KvSource:
    """Draws KV of one fixed distribution."""

    layout: Layout
    mix: NDArray[np.float64]
    offset: NDArray[np.float64]

    def draw(self, tokens: int, *, seed: int, first_position: int = 0) -> tuple[NDArray, NDArray]:
        rng = np.random.default_rng(seed)
        width = HEADS * HEAD_DIM
        noise = rng.laplace(size=(2, LAYERS, tokens, width))
        plain = (noise @ self.mix.T + self.offset).astype(np.float32)
        plain = plain.reshape(2, LAYERS, tokens, HEADS, HEAD_DIM).transpose(0, 1, 3, 2, 4)
        positions = np.arange(first_position, first_position + tokens)
        keys = np.stack(
            [rotate(layer, spec.rope, positions) for layer, spec in zip(plain[0], self.layout.layers, strict=True)]
        )
        dtype = self.layout.dtype.numpy
        return keys.astype(dtype), plain[1].astype(dtype)


@pytest.fixture(scope="session")
def rope() -> Rope:
    return Rope(tuple(float(x) for x in 10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))))


@pytest.fixture(scope="session")
def kv_source(rope: Rope) -> Callable[[KvDtype], KvSource]:
    def make(dtype: KvDtype = KvDtype.FLOAT32) -> KvSource:
        rng = np.random.default_rng(7)
        width = HEADS * HEAD_DIM
        mix = rng.normal(size=(width, width)) * np.exp(-np.arange(width) / 6)
        layout = Layout.uniform(layers=LAYERS, kv_heads=HEADS, head_dim=HEAD_DIM, dtype=dtype, rope=rope)
        return KvSource(layout, mix, rng.normal(size=width))

    return make


@pytest.fixture(scope="session")
def profile(kv_source: Callable[..., KvSource]) -> Profile:
    source = kv_source()
    return calibrate([KvSample(*source.draw(800, seed=1))], source.layout, block_channels=BLOCK_CHANNELS)
