"""A profile: what calibration learnt about one model's KV, and what both ends of a lossy stream must share.

Layers are coded in blocks of ``block_layers``. The channels of a block stand layer by layer, a layer's keys before its
values; a *part* is a range of them that is transformed together. A part's synthesis is a matrix of small integers, so
that decoding is an exact integer product: channel ``j`` is ``mean[j] + scale[j] * sum(symbol[c] * basis[c, j])``, with
the symbols' unit and the token's gain in the factor. Profiles are content-addressed: the digest of the file is in the
header of every container coded with it, so a stream is never decoded with another profile. ``docs/FORMAT.md`` has the
file.
"""

import math
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from .. import limits
from ..errors import InvalidData
from .blas import one_thread
from .channels import RoomTable
from .entropy import native_lossy
from .entropy.model import CLASSES, CLASSES_PER_OCTAVE, REFINEMENTS_MAX
from .entropy.native_segments import BlockTable, KnownPart
from .frame import FrameReader
from .layout import Layout
from .level import LOSSY_LEVELS, Level, LossyCodec
from .profile_file import read_profile, write_profile

__all__ = [
    "FINE_CLASSES",
    "Block",
    "Part",
    "Profile",
    "block_layers_within",
    "block_range",
    "block_ranges",
    "block_width",
]

_PARAMETERS = struct.Struct("<HBB")
_PART = struct.Struct("<IIBBH")
_MAGIC = b"KVLP"
_FORMAT = 2
_INVERSE_ERROR_MAX = 1e-3
FINE_CLASSES = CLASSES + REFINEMENTS_MAX * CLASSES_PER_OCTAVE
"""Scale classes of the finest level: so many that those of the coarsest are never cut off."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """Channels ``[start, start + width)`` of a block, transformed together.

    ``mean``, ``origin_mean`` (of the token at position 0, which no other resembles) and ``scale`` float32 ``[width]``;
    ``basis`` int8 ``[width, width]``, a row per coefficient, strongest first, or None where coefficients are channels;
    ``classes`` uint8 ``[width]``, the scale class that each coefficient had in the calibration text. ``adaptive``: the
    means are not the profile's, every chunk brings its own.
    """

    start: int
    mean: FloatArray
    origin_mean: FloatArray
    scale: FloatArray
    basis: NDArray[np.int8] | None
    classes: NDArray[np.uint8]
    adaptive: bool = False

    @property
    def width(self) -> int:
        """Channels."""
        return len(self.mean)

    @property
    def stop(self) -> int:
        """The channel after the last."""
        return self.start + self.width

    @cached_property
    def _analysis(self) -> FloatArray:
        """What centred channels ``[width, tokens]`` are multiplied by to give coefficients in fine steps."""
        basis = np.eye(self.width) if self.basis is None else self.basis.astype(np.float64)
        try:
            with one_thread():
                inverse = np.linalg.inv(basis)
                error = float(np.abs(inverse @ basis - np.eye(self.width)).max())
        except np.linalg.LinAlgError as failure:
            raise InvalidData("profile has a basis that cannot be inverted") from failure
        if not error < _INVERSE_ERROR_MAX:
            raise InvalidData(f"profile has a basis whose inverse is off by {error:.2g}, it is close to singular")
        return np.ascontiguousarray((inverse / self.scale.astype(np.float64)[:, None]).T, dtype=np.float32)

    @cached_property
    def packed(self) -> NDArray[np.uint8] | None:
        """The basis as the compiled core's fastest product wants it; None where there is none."""
        return None if self.basis is None else native_lossy.pack_basis(self.basis)

    def forward(self, centred: FloatArray) -> FloatArray:
        """Channels less their means ``[tokens, width]`` to coefficients in fine steps ``[width, tokens]``."""
        if self.basis is None:
            return np.ascontiguousarray((centred / self.scale).T)
        coefficients: FloatArray = np.matmul(self._analysis, centred.T)
        return coefficients

    def inverse(self, symbols: NDArray[np.int32], factors: FloatArray) -> FloatArray:
        """Symbols ``[active, tokens]`` times each token's factor ``[tokens]`` to centred channels ``[tokens, width]``.

        Coefficients past ``active`` are zero. The product is exact: whole numbers well below 2^53 in float64. This is
        the specification of ``kvl_restore`` in ``synthesis.cpp``.
        """
        if self.basis is None:
            sums = np.zeros((symbols.shape[1], self.width))
            sums[:, : len(symbols)] = symbols.T
        else:
            sums = symbols.T.astype(np.float64) @ self.basis[: len(symbols)].astype(np.float64)
        channels: FloatArray = sums.astype(np.float32) * (factors[:, None] * self.scale)
        return channels


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive layers: their parts, which cover all channels in order, and how finely a token is quantised.

    The gain of a token is ``gain_weights . channels + gain_bias`` in half octaves, rounded and kept within bounds;
    ``gain_weights`` is empty where all tokens are alike.
    """

    parts: tuple[Part, ...]
    gain_weights: FloatArray
    gain_bias: float

    @property
    def width(self) -> int:
        """Channels."""
        return self.parts[-1].stop

    @cached_property
    def table(self) -> BlockTable:
        """The parts as the compiled core wants them."""
        return BlockTable(
            [
                KnownPart(item.packed, item.classes, item.scale, item.mean, item.origin_mean, item.adaptive)
                for item in self.parts
            ]
        )


@dataclass(frozen=True, eq=False)
class Profile:
    """Blocks of all layers in order; ``refinements`` levels follow the base level.

    ``blend_gate`` is what was measured of blending on the model (:mod:`kvloom.blend.gate`); empty where nothing was.
    """

    codec: ClassVar[LossyCodec] = LossyCodec.KVLOOM
    layout: Layout
    block_layers: int
    refinements: int
    blocks: tuple[Block, ...]
    blend_gate: bytes = b""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The lossy levels that can be coded, coarse to fine."""
        return LOSSY_LEVELS[: self.refinements + 1]

    @cached_property
    def rooms(self) -> RoomTable:
        """The tensors of all blocks as the compiled core is told of them."""
        return RoomTable.of(self.layout, block_ranges(self.layout, self.block_layers))

    @property
    def multiply_adds_per_value(self) -> float:
        """Integer multiply-adds that decoding a value takes at most, all coefficients active; generic: 0.

        What a planner weighs a lighter profile by; at ``standard`` about half of the coefficients are active.
        """
        parts = [part for block in self.blocks for part in block.parts]
        return sum(part.width**2 for part in parts if part.basis is not None) / sum(part.width for part in parts)

    def scaled(self, factor: float) -> "Profile":
        """The same with all calibrated steps ``factor`` times as long; what adapts to every chunk stays as it is."""
        return replace(self, blocks=tuple(_scaled(block, factor) for block in self.blocks))

    @cached_property
    def data(self) -> bytes:
        """The profile as a file."""
        parts = [_PARAMETERS.pack(self.block_layers, self.refinements, 0)]
        for block in self.blocks:
            parts.append(struct.pack("<HHf", len(block.parts), bool(block.gain_weights.size), block.gain_bias))
            parts.append(block.gain_weights.astype("<f4").tobytes())
            for item in block.parts:
                parts.append(_PART.pack(item.start, item.width, item.basis is not None, item.adaptive, 0))
                parts += [array.astype("<f4").tobytes() for array in (item.mean, item.origin_mean, item.scale)]
                parts += [item.classes.tobytes(), b"" if item.basis is None else item.basis.tobytes()]
        return write_profile(_MAGIC, _FORMAT, self.layout, parts, blend_gate=self.blend_gate)

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3-256 of :attr:`data`: the profile's name."""
        return blake3(self.data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Profile":
        """Parse a profile file; anything else raises :class:`InvalidData`."""
        content = read_profile(data, _MAGIC, _FORMAT)
        layout, reader = content.layout, content.reader
        block_layers, refinements, zero = _PARAMETERS.unpack(reader.take(_PARAMETERS.size))
        if not 1 <= block_layers <= min(255, len(layout.layers)) or refinements > REFINEMENTS_MAX or zero:
            raise InvalidData(f"profile has blocks of {block_layers} layers and {refinements} refinements")
        widths = [block_width(layout, layers) for layers in block_ranges(layout, block_layers)]
        blocks = tuple(_read_block(reader, width) for width in widths)
        reader.expect_end()
        profile = cls(layout, block_layers, refinements, blocks, content.blend_gate)
        profile.__dict__["data"] = data  # what was parsed names the profile, whatever zstandard would write today
        return profile


def block_range(layout: Layout, first: int, block_layers: int) -> range:
    """The layers of the block that starts at ``first``."""
    return range(first, min(first + block_layers, len(layout.layers)))


def block_ranges(layout: Layout, block_layers: int) -> list[range]:
    """The layers of every block, in order."""
    return [block_range(layout, first, block_layers) for first in range(0, len(layout.layers), block_layers)]


def block_layers_within(layout: Layout, channels: int) -> int:
    """As many layers as any run of that many has at most ``channels`` channels, at least one."""
    count = len(layout.layers)
    widest = max(block_width(layout, range(layer, layer + 1)) for layer in range(count))
    return max(1, min(channels // widest, count, limits.BLOCK_LAYERS_MAX))


def block_width(layout: Layout, layers: range) -> int:
    """Channels of some layers, keys and values."""
    return sum(layout.layers[index].key_width + layout.layers[index].value_width for index in layers)


def _scaled(block: Block, factor: float) -> Block:
    shift = round(CLASSES_PER_OCTAVE * math.log2(factor))
    parts = tuple(
        part
        if part.adaptive
        else replace(
            part,
            scale=part.scale * np.float32(factor),
            classes=np.clip(part.classes.astype(np.int32) - shift, 0, FINE_CLASSES - 1).astype(np.uint8),
        )
        for part in block.parts
    )
    return replace(block, parts=parts)


def _read_block(reader: FrameReader, width: int) -> Block:
    count, has_gains, gain_bias = struct.unpack("<HHf", reader.take(8))
    if not 1 <= count <= limits.BLOCK_PARTS_MAX or has_gains > 1 or not math.isfinite(gain_bias):
        raise InvalidData(f"profile has a block of {count} parts, the limit is {limits.BLOCK_PARTS_MAX}")
    gain_weights = _read_floats(reader, width if has_gains else 0)
    parts: list[Part] = []
    for _ in range(count):
        part = _read_part(reader)
        if part.start != (parts[-1].stop if parts else 0):
            raise InvalidData(f"profile has a part at channel {part.start} that leaves a gap or overlaps")
        parts.append(part)
    if parts[-1].stop != width:
        raise InvalidData(f"profile has a block of {parts[-1].stop} channels, its layout needs {width}")
    return Block(tuple(parts), gain_weights, gain_bias)


def _read_part(reader: FrameReader) -> Part:
    start, width, has_basis, adaptive, zero = _PART.unpack(reader.take(_PART.size))
    most = limits.TRANSFORM_WIDTH_MAX if has_basis else limits.PART_CHANNELS_MAX
    if not 1 <= width <= most or has_basis > 1 or adaptive > 1 or zero:
        raise InvalidData(f"profile has a part of {width} channels, the limit is {most}")
    if has_basis and adaptive:
        raise InvalidData("profile has a part that is adaptive and has a basis, it can have one of the two")
    mean, origin_mean, scale = (_read_floats(reader, width) for _ in range(3))
    if not (scale > 0).all():
        raise InvalidData("profile holds a scale that is not positive")
    classes = np.frombuffer(reader.take(width), np.uint8)
    if int(classes.max()) >= FINE_CLASSES:
        raise InvalidData(f"profile has scale class {classes.max()}, there are {FINE_CLASSES}")
    basis = None
    if has_basis:
        basis = np.frombuffer(reader.take(width * width), np.int8).reshape(width, width)
        if int(basis.min()) == -128:
            raise InvalidData("profile has -128 in a basis, whose numbers are -127 to 127")
    return Part(start, mean, origin_mean, scale, basis, classes, bool(adaptive))


def _read_floats(reader: FrameReader, count: int) -> FloatArray:
    array = np.frombuffer(reader.take(4 * count), "<f4").astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidData("profile holds a number that is not finite")
    return array
