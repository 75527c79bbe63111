"""Show and check the comparison quantisers on some KV.

    python -m quantisers [KV.npz]          # in bench/

The file holds ``keys`` and ``values`` ``[layers, kv_heads, tokens, head_dim]``; the first half of the tokens
calibrates, 256 tokens of the second are measured. Without one the KV is drawn: correlated channels, some with an
offset as real keys have. Ends with an error where a method breaks its promise: shapes kept (of five tokens, too),
nothing infinite, and less error for more bits.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from kvloom.codec import KvSample, Layout, Rope
from kvloom.codec.rope import rotate

from . import comparison_quantisers
from .base import FloatArray, Roundtrip


def drawn_kv(layers: int = 3, kv_heads: int = 2, head_dim: int = 64, tokens: int = 1024) -> tuple[Layout, FloatArray]:
    """A layout and KV ``[2, layers, kv_heads, tokens, head_dim]`` of a fixed distribution, keys rotated."""
    rng = np.random.default_rng(5)
    rope = Rope(tuple(float(x) for x in 1e4 ** (-np.arange(head_dim // 2) / (head_dim // 2))))
    layout = Layout.uniform(layers=layers, kv_heads=kv_heads, head_dim=head_dim, rope=rope)
    mix = rng.normal(size=(head_dim, head_dim)) * np.exp(-np.arange(head_dim) / 12)
    offsets = 3 * rng.normal(size=(2, layers, kv_heads, 1, head_dim)) * (rng.random(head_dim) < 0.1)
    kv = (rng.normal(size=(2, layers, kv_heads, tokens, head_dim)) @ mix.T + offsets).astype(np.float32)
    for layer in range(layers):
        kv[0, layer] = rotate(kv[0, layer], rope, np.arange(tokens))
    return layout, kv


def check(found: Roundtrip, keys: Sequence[FloatArray], values: Sequence[FloatArray]) -> float:
    """The root of the mean squared error, relative to the KV's own; raises where the round trip broke."""
    squares = size = 0.0
    for restored, original in zip((*found.keys, *found.values), (*keys, *values), strict=True):
        if restored.shape != original.shape or restored.dtype != np.float32 or not np.isfinite(restored).all():
            raise SystemExit(f"{restored.dtype} {restored.shape} came back for {original.dtype} {original.shape}")
        squares += float(np.square(restored - original, dtype=np.float64).sum())
        size += float(np.square(original, dtype=np.float64).sum())
    return float(np.sqrt(squares / size))


def main(arguments: Sequence[str]) -> None:
    """Print a row per method and level."""
    layout, kv = drawn_kv()
    if arguments:
        with np.load(arguments[0]) as file:
            kv = np.stack([file["keys"], file["values"]]).astype(np.float32)
        layout = Layout.uniform(layers=kv.shape[1], kv_heads=kv.shape[2], head_dim=kv.shape[4])
    middle = kv.shape[3] // 2
    sample = KvSample(kv[0, :, :, :middle], kv[1, :, :, :middle])
    keys, values = (list(part[:, :, middle : middle + 256]) for part in kv)
    print(f"{'method':11} {'level':20} {'bits/value':>10} {'side':>7} {'error':>7}")
    rows: dict[str, list[tuple[float, float]]] = {}
    for quantiser in comparison_quantisers([sample], layout):
        found = quantiser.roundtrip(keys, values, layout, middle)
        error = check(found, keys, values)
        few_keys, few_values = ([item[:, :5] for item in part] for part in (keys, values))
        check(quantiser.roundtrip(few_keys, few_values, layout, middle), few_keys, few_values)
        side = found.side_bits / (2 * sum(item.size for item in keys))
        print(f"{quantiser.name:11} {quantiser.level:20} {found.bits_per_value:10.3f} {side:7.3f} {error:7.4f}")
        variant = quantiser.level.partition(",")[2]
        rows.setdefault(quantiser.name + variant, []).append((found.bits_per_value, error))
    for name, points in rows.items():
        for cheap, dear in pairwise(sorted(points)):
            if dear[1] > cheap[1]:
                raise SystemExit(f"{name}: {dear[0]:.2f} bits err more than {cheap[0]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
