"""Rotate keys to or from their positions, so that stored keys know no position.

Keys are un-rotated before they are coded (one set of statistics then fits every position) and rotated again on the
way out, to the position they had or to the one a blended prompt gives them (CacheBlend, §4.1). Angles are formed in
float64 and the rotation is done in float32: at position 8,192 that keeps a round trip under 1e-6 relative.
"""

import numpy as np
from numpy.typing import NDArray

from .layout import Rope

__all__ = ["cos_sin", "rotate", "rotate_into"]

FloatArray = NDArray[np.float32]


def cos_sin(rope: Rope, positions: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Cosine and sine ``[tokens, pairs]`` float32 of the angles that ``positions`` (may be negative) stand for."""
    frequencies = np.asarray(rope.inverse_frequencies, dtype=np.float64)
    angles = positions.astype(np.float64)[:, None] * frequencies[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(keys: FloatArray, rope: Rope, positions: NDArray[np.int64]) -> FloatArray:
    """Rotate ``keys`` ``[heads, tokens, head_dim]`` by ``positions`` ``[tokens]``; a new array is returned.

    Negative positions undo a rotation; a difference of positions moves keys from one place to another.
    """
    cos, sin = cos_sin(rope, positions)
    rotated = np.empty_like(keys, dtype=np.float32)
    rotate_into(rotated, keys, rope, cos, sin)
    return rotated


def rotate_into(out: NDArray[np.generic], keys: FloatArray, rope: Rope, cos: FloatArray, sin: FloatArray) -> None:
    """As :func:`rotate` with the angles given, into ``out`` of any float dtype, which must not overlap ``keys``."""
    first, second = rope.pair_slices
    real, imaginary = keys[..., first], keys[..., second]
    out[..., first] = real * cos - imaginary * sin
    out[..., second] = imaginary * cos + real * sin
    out[..., : rope.first_dim] = keys[..., : rope.first_dim]
    out[..., rope.end_dim :] = keys[..., rope.end_dim :]
