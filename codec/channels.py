"""KV tensors of some layers as channels that know no position, and back.

A block's channels are its layers in order, a layer's keys before its values, heads in order. Keys (and values, where a
layer rotates them) are turned back by their positions on the way in and turned to the positions wanted on the way out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteTensor
from .layout import Kind, KvDtype, Layout, Rope
from .rope import cos_sin, rotate_into

__all__ = ["Angles", "KvArrays", "gather_channels", "scatter_channels"]

KvArrays = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""Per layer ``[kv_heads, tokens, head_dim]``: a list, or one array ``[layers, kv_heads, tokens, head_dim]``."""
FloatArray = NDArray[np.float32]
_LARGEST = {
    KvDtype.FLOAT16: np.float32(65_504),
    KvDtype.FLOAT8_E4M3FN: np.float32(448),
    KvDtype.FLOAT8_E5M2: np.float32(57_344),
}
"""The largest number of each dtype that has less room than float32."""


class Angles:
    """Cosines and sines of a run of positions, computed once per distinct RoPE."""

    def __init__(self, first_position: int, tokens: int) -> None:
        self._positions = np.arange(first_position, first_position + tokens, dtype=np.int64)
        self._cache: dict[Rope, tuple[FloatArray, FloatArray]] = {}

    def first(self, tokens: int) -> "Angles":
        """The angles of the first ``tokens`` positions."""
        return Angles(int(self._positions[0]), tokens)

    def of(self, rope: Rope) -> tuple[FloatArray, FloatArray]:
        """Cosine and sine ``[tokens, pairs]``."""
        found = self._cache.get(rope)
        if found is None:
            found = self._cache[rope] = cos_sin(rope, self._positions)
        return found


def gather_channels(keys: KvArrays, values: KvArrays, layout: Layout, layers: range, angles: Angles) -> FloatArray:
    """Channels ``[tokens, width]`` of ``layers``; :class:`NonFiniteTensor` where a number is NaN or infinite."""
    columns: list[FloatArray] = []
    tokens = keys[layers[0]].shape[1]
    for layer in layers:
        spec = layout.layers[layer]
        for kind in Kind:
            if not spec.width_of(kind):
                continue
            heads = np.asarray((keys, values)[kind][layer], dtype=np.float32)
            if not np.isfinite(heads).all():
                bad = int(heads.size - np.isfinite(heads).sum())
                raise NonFiniteTensor(
                    f"{kind.name.lower()} of layer {layer} hold {bad} values that are NaN or infinite, "
                    "the limit of a lossy level is 0 (exact takes any)"
                )
            rope = spec.rope_of(kind)
            if rope is not None:
                cos, sin = angles.of(rope)
                plain = np.empty_like(heads)
                rotate_into(plain, heads, rope, cos, -sin)
                heads = plain
            columns.append(heads.transpose(1, 0, 2).reshape(tokens, spec.width_of(kind)))
    return np.concatenate(columns, axis=1)


def scatter_channels(
    channels: FloatArray,
    layout: Layout,
    layers: range,
    angles: Angles,
    outputs: dict[tuple[int, Kind], NDArray[np.generic]],
) -> None:
    """Write channels ``[tokens, width]`` of ``layers`` to those of their ``outputs`` that are wanted."""
    largest = _LARGEST.get(layout.dtype)
    at = 0
    for layer in layers:
        spec = layout.layers[layer]
        for kind in Kind:
            width = spec.width_of(kind)
            out = outputs.get((layer, kind))
            if out is not None and width:
                part = channels[:, at : at + width].reshape(len(channels), spec.kv_heads, spec.head_dim_of(kind))
                heads, rope = part.transpose(1, 0, 2), spec.rope_of(kind)
                # Half a step past the largest number of a narrow dtype must not become infinity.
                turned = out if largest is None else np.empty(heads.shape, np.float32)
                if rope is not None:
                    rotate_into(turned, heads, rope, *angles.of(rope))
                else:
                    turned[...] = heads
                if largest is not None:
                    out[...] = np.clip(turned, -largest, largest)
            at += width
