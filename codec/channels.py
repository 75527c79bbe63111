"""KV tensors of some layers as channels that know no position, and back.

A block's channels are its layers in order, a layer's keys before its values, heads in order. Keys (and values, where a
layer rotates them) are turned back by their positions on the way in and turned to the positions wanted on the way out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteTensor
from .entropy import native, native_lossy
from .layout import Kind, KvDtype, Layout, Rope
from .rope import cos_sin, rotate_into

__all__ = ["Angles", "KvArrays", "Room", "gather_channels", "rooms_of"]

KvArrays = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""Per layer ``[kv_heads, tokens, head_dim]``: a list, or one array ``[layers, kv_heads, tokens, head_dim]``."""
FloatArray = NDArray[np.float32]


class Angles:
    """Cosines and sines of a run of positions, computed once per distinct RoPE."""

    def __init__(self, first_position: int, tokens: int, *, backwards: bool = False) -> None:
        self._first_position, self._tokens, self._backwards = first_position, tokens, backwards
        self._cache: dict[Rope, tuple[FloatArray, FloatArray]] = {}

    def first(self, tokens: int) -> "Angles":
        """The angles of the first ``tokens`` positions."""
        return Angles(self._first_position, tokens, backwards=self._backwards)

    @cached_property
    def opposite(self) -> "Angles":
        """The angles that undo these."""
        return Angles(self._first_position, self._tokens, backwards=not self._backwards)

    def of(self, rope: Rope) -> tuple[FloatArray, FloatArray]:
        """Cosine and sine ``[tokens, pairs]``."""
        found = self._cache.get(rope)
        if found is None:
            start = self._first_position
            positions = np.arange(start, start + self._tokens, dtype=np.int64)
            found = self._cache[rope] = cos_sin(rope, -positions if self._backwards else positions)
        return found


@dataclass(frozen=True, slots=True)
class Room:
    """The keys or values of a layer, ``out`` ``[heads, tokens, dim]``: a block's channels from ``start`` on.

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
        narrow = self.out.dtype != np.float32
        turned = np.empty(part.shape, np.float32) if narrow else self.out
        if self.rope is not None and self.cos is not None and self.sin is not None:
            rotate_into(turned, part, self.rope, self.cos, self.sin)
        else:
            turned[...] = part
        if narrow:
            # Half a step past the largest number of a narrow dtype must not become infinity.
            largest = np.float32(KvDtype(self.out.dtype.name).largest)
            self.out[...] = np.clip(turned, -largest, largest)

    def taken(self) -> FloatArray:
        """The way in: ``out``, float32, rotated to channels ``[tokens, width]``."""
        heads = np.asarray(self.out, dtype=np.float32)
        if self.rope is not None and self.cos is not None and self.sin is not None:
            turned = np.empty_like(heads)
            rotate_into(turned, heads, self.rope, self.cos, self.sin)
            heads = turned
        return heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)

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


def gather_channels(keys: KvArrays, values: KvArrays, layout: Layout, layers: range, angles: Angles) -> FloatArray:
    """Channels ``[tokens, width]`` of ``layers``; :class:`NonFiniteTensor` where a number is NaN or infinite."""
    tensors: dict[tuple[int, Kind], NDArray[np.generic]] = {}
    for layer in layers:
        for kind in Kind:
            if layout.layers[layer].width_of(kind):
                tensors[layer, kind] = np.asarray((keys, values)[kind][layer], dtype=np.float32)
    rooms = rooms_of(layout, layers, angles.opposite, tensors)
    tokens = keys[layers[0]].shape[1]
    width = sum(layout.layers[layer].width_of(kind) for layer, kind in tensors)
    channels = None
    if native.AVAILABLE and all(native_lossy.can_reach(room.out) for room in rooms):
        channels = native_lossy.gather([room.job() for room in rooms], tokens, width)
    if channels is None:
        _require_finite(tensors)
        channels = np.concatenate([room.taken() for room in rooms], axis=1)
    return channels


def _require_finite(tensors: dict[tuple[int, Kind], NDArray[np.generic]]) -> None:
    for (layer, kind), heads in tensors.items():
        bad = int(heads.size - np.isfinite(heads).sum())
        if bad:
            raise NonFiniteTensor(
                f"{kind.name.lower()} of layer {layer} hold {bad} values that are NaN or infinite, "
                "the limit of a lossy level is 0 (exact takes any)"
            )
