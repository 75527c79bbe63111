"""KV tensors of some layers as channels that know no position, and back.

A block's channels are its layers in order, a layer's keys before its values, heads in order. Keys (and values, where a
layer rotates them) are turned back by their positions on the way in and turned to the positions wanted on the way out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteTensor
from .entropy import native, native_lossy
from .layout import Kind, KvDtype, Layout, Rope
from .rope import cos_sin, rotate_into

__all__ = ["Angles", "KvArrays", "Room", "RoomTable", "empty_tensors", "gather_channels", "rooms_of"]

_KEPT_ANGLES_MAX = 32
_KEPT_ANGLE_NUMBERS_MAX = 1 << 16
"""Angles of more numbers are computed anew for every chunk: 8 MiB are kept at most."""
_LINE_BYTES = 64
"""Tensors start where a line of the cache does: what is written in whole lines is written twice as fast."""

KvArrays = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""Per layer ``[kv_heads, tokens, head_dim]``: a list, or one array ``[layers, kv_heads, tokens, head_dim]``."""
FloatArray = NDArray[np.float32]


def empty_tensors(layout: Layout, layers: range, tokens: int) -> tuple[KvArrays, KvArrays]:
    """Room for keys and values of ``layers``: one array of each where they are alike, else one per layer.

    All share one piece of memory, which goes when none of them is held any more: allocators keep a piece that comes
    back as it went.
    """
    dtype = layout.dtype.numpy
    specs = [layout.layers[index] for index in layers]
    shapes = [[(spec.kv_heads, tokens, spec.head_dim_of(kind)) for spec in specs] for kind in Kind]
    alike = [len(set(own)) == 1 for own in shapes]
    wanted = [[(len(specs), *own[0])] if same else own for own, same in zip(shapes, alike, strict=True)]
    sizes = [[-(-math.prod(shape) * dtype.itemsize // _LINE_BYTES) * _LINE_BYTES for shape in own] for own in wanted]
    room = np.empty(sum(map(sum, sizes)) + _LINE_BYTES, np.uint8)
    start = -native.address_of(room) % _LINE_BYTES
    found: list[list[NDArray[np.generic]]] = [[], []]
    for tensors, own, lengths in zip(found, wanted, sizes, strict=True):
        for shape, length in zip(own, lengths, strict=True):
            tensors.append(np.ndarray(shape, dtype, room, start))
            start += length
    keys, values = (tensors[0] if same else tensors for tensors, same in zip(found, alike, strict=True))
    return keys, values


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
            kept = self._tokens * rope.rotary_dim <= _KEPT_ANGLE_NUMBERS_MAX
            compute = _kept_angles if kept else _angles
            found = self._cache[rope] = compute(rope, self._first_position, self._tokens, self._backwards)
        return found


def _angles(rope: Rope, first_position: int, tokens: int, backwards: bool) -> tuple[FloatArray, FloatArray]:
    positions = np.arange(first_position, first_position + tokens, dtype=np.int64)
    cosines, sines = cos_sin(rope, -positions if backwards else positions)
    cosines.flags.writeable = sines.flags.writeable = False
    return cosines, sines


# Chunks that are read again and again stand at the same places: a sine takes longer than decoding a number.
_kept_angles = lru_cache(maxsize=_KEPT_ANGLES_MAX)(_angles)


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


@dataclass(frozen=True)
class RoomTable:
    """The tensors of a layout's blocks as the compiled core is told of them, but for where they and their angles lie.

    ``rows`` of :data:`.native_lossy.TENSOR`, block after block; those of block ``n`` are ``stops[n]`` to
    ``stops[n + 1]``. ``layers`` and ``kinds`` say whose keys or values each is, ``ropes`` which of them turn by which.
    """

    rows: NDArray[np.void]
    stops: NDArray[np.int64]
    layers: NDArray[np.int64]
    kinds: NDArray[np.int64]
    ropes: tuple[tuple[Rope, NDArray[np.int64]], ...]

    @classmethod
    def of(cls, layout: Layout, blocks: Sequence[range]) -> "RoomTable":
        """Of all tensors of ``blocks``, the layers of each."""
        rows: list[tuple[int, ...]] = []
        whose: list[tuple[int, Kind]] = []
        turned: dict[Rope, list[int]] = {}
        stops = [0]
        for layers in blocks:
            at = 0
            for layer in layers:
                spec = layout.layers[layer]
                for kind in Kind:
                    rope, width = spec.rope_of(kind), spec.width_of(kind)
                    if not width:
                        continue
                    if rope is not None:
                        turned.setdefault(rope, []).append(len(rows))
                    rotation = (rope.rotary_dim // 2, rope.first_dim, int(rope.interleaved)) if rope else (0, 0, 0)
                    rows.append((0, 0, 0, 0, 0, at, spec.kv_heads, spec.head_dim_of(kind), *rotation, 0, 0))
                    whose.append((layer, kind))
                    at += width
            stops.append(len(rows))
        places = np.array(whose, np.int64).reshape(-1, 2)
        ropes = tuple((rope, np.array(found)) for rope, found in turned.items())
        return cls(native_lossy.tensor_rows(rows), np.array(stops), places[:, 0], places[:, 1], ropes)

    def fill(
        self, blocks: range, keys: KvArrays, values: KvArrays, first_layer: int, angles: Angles
    ) -> list[NDArray[np.void]]:
        """The tensors of each of ``blocks``, ``keys`` and ``values`` being of layers from ``first_layer`` on.

        They must be as the layout says and such as the core can write to; they and ``angles`` must outlive the call
        that the rows are meant for.
        """
        first, last = self.stops[blocks.start], self.stops[blocks.stop]
        rows = self.rows[first:last].copy()
        layers, kinds = self.layers[first:last] - first_layer, self.kinds[first:last]
        for kind, arrays in zip(Kind, (keys, values), strict=True):
            own = np.flatnonzero(kinds == kind)
            native_lossy.place(rows, own, arrays, layers[own])
        for rope, which in self.ropes:
            own = which[(which >= first) & (which < last)] - first
            if own.size:
                cosines, sines = angles.of(rope)
                rows["cosines"][own], rows["sines"][own] = native.address_of(cosines), native.address_of(sines)
        stops = (self.stops[blocks.start : blocks.stop + 1] - first).tolist()
        return [rows[start:stop] for start, stop in pairwise(stops)]


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
