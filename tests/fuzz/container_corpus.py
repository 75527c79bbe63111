"""Small sound containers of every kind of layout, element type, codec and level, for the fuzzer to damage."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from kvloom import codec
from kvloom.codec import EXACT, LOSSY_LEVELS, KvDtype, LayerLayout, Layout, Level, Profile, Rope
from kvloom.codec.cachegen import CacheGenProfile, calibrate_cachegen
from kvloom.codec.layout import AttentionKind
from kvloom.errors import InvalidTensor

__all__ = ["Seed", "corpus"]

Arrays = list[np.ndarray]
TOKENS = (33, 1, 9, 70)
"""Lengths in turn: below, at and past what a tile and a vector of the compiled core hold."""


@dataclass(frozen=True)
class Seed:
    """A sound container and what decodes it."""

    blob: bytes
    profile: Profile | CacheGenProfile | None

    @property
    def learnt(self) -> bool:
        """Whether its profile is a file: neither of the generic one nor of none."""
        return self.profile is not None and self.profile.digest == blake3(self.profile.data).digest()


def _layouts() -> list[tuple[LayerLayout, ...]]:
    rope = Rope((1.0, 0.1, 0.01, 0.001))
    mixed = (LayerLayout(1, 8, rope), LayerLayout(2, 8, rope), LayerLayout(1, 12, rope, value_head_dim=4))
    neighbours = LayerLayout(2, 8, Rope((1.0, 0.3), interleaved=True, first_dim=2), AttentionKind.SLIDING, 16)
    latent = LayerLayout(1, 12, Rope((1.0, 0.1, 0.01), first_dim=6), value_head_dim=0)
    split_latent = LayerLayout(1, 8, None, value_head_dim=4, value_rope=Rope((1.0, 0.2)))
    wide = LayerLayout(1, 40, Rope(tuple(0.8**n for n in range(20))))
    return [mixed, (neighbours,) * 2, (latent,) * 2, (split_latent, split_latent), (LayerLayout(3, 7),) * 2, (wide,)]


def corpus() -> list[Seed]:
    """Every layout in every element type: exact alone, and lossy levels by each sort of profile; wild KV."""
    rng = np.random.default_rng(1)
    seeds: list[Seed] = []
    for layers in _layouts():
        for dtype in KvDtype:
            layout = Layout(dtype, layers)
            tokens = TOKENS[len(seeds) % len(TOKENS)]
            position = (0, 100_000)[len(seeds) // 2 % 2]
            keys, values = _drawn(layout, tokens, rng)
            seeds.append(Seed(codec.encode(keys, values, layout=layout, first_position=position), None))
            for profile, levels in _codings(layout, rng):
                if levels[-1] != EXACT and len(seeds) % 3 == 0:
                    keys[-1].reshape(-1)[-1] = 400.0  # an escape, in every element type
                blob = codec.encode(
                    keys, values, layout=layout, profile=profile, levels=levels, first_position=position
                )
                seeds.append(Seed(blob, profile))
                if dtype is KvDtype.FLOAT32:
                    seeds.append(Seed(_wild(layout, profile, rng), profile))
    return seeds


def _wild(layout: Layout, profile: Profile | CacheGenProfile, rng: np.random.Generator) -> bytes:
    """KV of every magnitude, as large as the codec takes it: escapes to their limit, gains and classes of all sizes."""
    for octaves in range(40, 0, -2):
        keys, values = _drawn(layout, 33, rng)
        for item in (*keys, *values):
            item *= np.exp2(rng.uniform(-octaves, octaves, item.shape)).astype(np.float32)
        try:
            return codec.encode(keys, values, layout=layout, profile=profile)
        except InvalidTensor:
            continue
    raise AssertionError("no wild KV was taken")


def _codings(layout: Layout, rng: np.random.Generator) -> Iterator[tuple[Profile | CacheGenProfile, list[Level]]]:
    keys, values = _drawn(layout, 33, rng)
    sample = codec.KvSample(keys, values, 0)
    with_gradient = codec.KvSample(keys, values, 0, (codec.KvGradient(keys, values),))
    yield codec.generic_profile(layout), list(LOSSY_LEVELS[: 1 + len(layout.dtype) % 4])
    yield codec.calibrate([with_gradient], layout, block_channels=64), [*LOSSY_LEVELS[:4]]
    yield codec.calibrate([sample], layout, refinements=1), [*LOSSY_LEVELS[:2], EXACT]
    if layout.layers[0].value_head_dim:
        learnt = calibrate_cachegen([sample], layout)
        yield learnt, [LOSSY_LEVELS[0]]
        yield learnt, [*learnt.levels, EXACT]


def _drawn(layout: Layout, tokens: int, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """KV of a layout ``[kv_heads, tokens, head_dim]`` per layer, with the heavy tails of the real thing."""
    return tuple(  # type: ignore[return-value]
        [
            rng.laplace(size=(item.kv_heads, tokens, (item.head_dim, item.value_head_dim)[kind])).astype(
                layout.dtype.numpy
            )
            for item in layout.layers
        ]
        for kind in (0, 1)
    )
