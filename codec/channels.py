"""KV tensors of some layers as channels that know no position, and back.

A block's channels are its layers in order, a layer's keys before its values, heads in order. Keys (and values, where a
layer rotates them) are turned back by their positions on the way in and turned to the positions wanted on the way out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteTensor
from .entropy import native_lossy
from .layout import Kind, Layout, Rope
from .rope import cos_sin, rotate_into

__all__ = ["Angles", "KvArrays", "Room", "gather_channels", "rooms_of"]

KvArrays = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""Per layer ``[kv_heads, tokens, head_dim]``: a list, or one array ``[layers, kv_heads, tokens, head_dim]``."""
FloatArray = NDArray[np.float32]


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


@dataclass(frozen=True, slots=True)
class Room:
    """Where the keys or values of a layer go: ``out`` ``[heads, tokens, dim]``, from channel ``start`` of a block on.

    Rotated by ``cos`` and ``sin`` ``[tokens, pairs]`` where there is a ``rope``.
    """

    out: NDArray[np.generic]
    start: int
    rope: Rope | None = None
    cos: FloatArray | None = None
    sin: FloatArray | None = None

    def fill(self, channels: FloatArray) -> None:
        """Write what there is for it among a block's channels ``[tokens, width]``."""
        heads, tokens, dim = self.out.shape
        part = channels[:, self.start : self.start + heads * dim].reshape(tokens, heads, dim).transpose(1, 0, 2)
        if self.rope is not None and self.cos is not None and self.sin is not None:
            rotate_into(self.out, part, self.rope, self.cos, self.sin)
        else:
            self.out[...] = part

    def job(self) -> native_lossy.TensorJob:
        """The same asked of the compiled core."""
        if self.rope is None:
            return native_lossy.TensorJob(self.out, self.start)
        return native_lossy.TensorJob(
            self.out, self.start, self.cos, self.sin, self.rope.first_dim, self.rope.interleaved
        )


def rooms_of(
    layout: Layout, layers: range, angles: Angles, outputs: dict[tuple[int, Kind], NDArray[np.generic]]
) -> list[Room]:
    """The rooms of those tensors of ``layers``, a block, that are among ``outputs``."""
    rooms: list[Room] = []
    at = 0
    for layer in layers:
        spec = layout.layers[layer]
        for kind in Kind:
            width = spec.width_of(kind)
            out = outputs.get((layer, kind))
            if out is not None and width:
                rope = spec.rope_of(kind)
                cos, sin = angles.of(rope) if rope is not None else (None, None)
                rooms.append(Room(out, at, rope, cos, sin))
            at += width
    return rooms
