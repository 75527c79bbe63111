"""A profile: what calibration learnt about one model's KV, and what both ends of a lossy stream must share.

For every layer and kind: the mean of each channel, an orthonormal basis (KLT, principal components of the un-rotated,
centred channels in blocks of at most 1,024), and the quantiser step. Profiles are content-addressed: the digest of
the file is in the header of every container coded with it, so a stream is never decoded with another profile.

File: ``KVLP``, format u16, zero u16, layout length u32, then one zstandard frame holding the layout's canonical bytes,
dead zone f64, sink tokens u32, and per layer, keys before values: step f32, means f32 ``[width]``, basis f16
``[blocks, block_width, block_width]`` whose rows are the basis vectors, strongest first. All little-endian.
"""

import math
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import zstandard
from blake3 import blake3
from numpy.typing import NDArray

from .. import limits
from ..errors import InvalidData, UnsupportedModel
from .container import Kind
from .entropy import native
from .layout import LayerLayout, Layout

__all__ = ["Profile", "Transform", "block_width"]

_HEAD = struct.Struct("<4sHHI")
_PARAMETERS = struct.Struct("<dI")
_MAGIC = b"KVLP"
_FORMAT = 1
_ZSTD_LEVEL = 3

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Transform:
    """Centre and rotate the channels of one layer's keys or values, in units of the quantiser step.

    ``mean`` float32 ``[width]``, ``basis`` float32 ``[blocks, block_width, block_width]`` (rows are basis vectors),
    ``step`` the fine quantiser step. Forward and inverse undo each other up to rounding.
    """

    mean: FloatArray
    basis: FloatArray
    step: float

    @cached_property
    def _analysis(self) -> FloatArray:
        return np.ascontiguousarray(self.basis / np.float32(self.step))

    @cached_property
    def _synthesis(self) -> FloatArray:
        return np.ascontiguousarray(self.basis * np.float32(self.step))

    def forward(self, channels: FloatArray) -> FloatArray:
        """Channels ``[tokens, width]`` to coefficients in steps ``[width, tokens]``."""
        blocks, width, _ = self.basis.shape
        parts = (channels - self.mean).reshape(len(channels), blocks, width).transpose(1, 2, 0)
        coefficients: FloatArray = np.matmul(self._analysis, parts).reshape(blocks * width, len(channels))
        return coefficients

    def inverse_job(self, coefficients: FloatArray) -> native.InverseJob:
        """What the compiled core needs to do :meth:`inverse`."""
        return native.InverseJob(coefficients, self._synthesis, self.mean)

    def inverse(self, coefficients: FloatArray) -> FloatArray:
        """Coefficients in steps ``[width, tokens]`` to channels ``[tokens, width]``."""
        blocks, width, _ = self.basis.shape
        tokens = coefficients.shape[1]
        parts = coefficients.reshape(blocks, width, tokens).transpose(0, 2, 1)
        channels: FloatArray = np.matmul(parts, self._synthesis).transpose(1, 0, 2).reshape(tokens, blocks * width)
        channels += self.mean
        return channels


@dataclass(frozen=True)
class Profile:
    """Transforms of all layers, keys before values, with the rules that go with them."""

    layout: Layout
    transforms: tuple[Transform, ...]
    dead_zone: float
    sink_tokens: int

    def transform(self, layer: int, kind: Kind) -> Transform:
        """The transform of one layer's keys or values."""
        return self.transforms[2 * layer + kind]

    @cached_property
    def data(self) -> bytes:
        """The profile as a file."""
        layout = self.layout.to_bytes()
        parts = [layout, _PARAMETERS.pack(self.dead_zone, self.sink_tokens)]
        for item in self.transforms:
            parts.append(np.float32(item.step).tobytes())
            parts.append(item.mean.astype("<f4").tobytes())
            parts.append(item.basis.astype("<f2").tobytes())
        frame = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(b"".join(parts))
        return _HEAD.pack(_MAGIC, _FORMAT, 0, len(layout)) + frame

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3-256 of :attr:`data`: the profile's name."""
        return blake3(self.data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Profile":
        """Parse a profile file; anything else raises :class:`InvalidData`."""
        if len(data) < _HEAD.size or len(data) > limits.PROFILE_BYTES_MAX:
            raise InvalidData(f"profile has {len(data)} bytes, must have {_HEAD.size} to {limits.PROFILE_BYTES_MAX}")
        magic, form, flags, layout_bytes = _HEAD.unpack_from(data)
        if magic != _MAGIC or form != _FORMAT or flags != 0:
            raise InvalidData(f"profile starts with {magic!r}, format {form}; expected {_MAGIC!r}, format {_FORMAT}")
        if layout_bytes > limits.LAYOUT_BYTES_MAX:
            raise InvalidData(f"profile declares {layout_bytes} layout bytes, the limit is {limits.LAYOUT_BYTES_MAX}")
        content = _decompress(data[_HEAD.size :])
        if len(content) < layout_bytes + _PARAMETERS.size:
            raise InvalidData(f"profile holds {len(content)} bytes, its header needs {layout_bytes + _PARAMETERS.size}")
        layout = Layout.from_bytes(content[:layout_bytes])
        dead_zone, sink_tokens = _PARAMETERS.unpack_from(content, layout_bytes)
        if not 0 <= dead_zone < 0.5 or sink_tokens > limits.SINK_TOKENS_MAX:
            raise InvalidData(f"profile has dead zone {dead_zone} and {sink_tokens} sink tokens")
        transforms: list[Transform] = []
        offset = layout_bytes + _PARAMETERS.size
        expected = offset + sum(_transform_bytes(layer, kind) for layer in layout.layers for kind in Kind)
        if len(content) != expected:
            raise InvalidData(f"profile holds {len(content)} bytes, its layout needs {expected}")
        for layer in layout.layers:
            for kind in Kind:
                transforms.append(_read_transform(content, offset, layer, kind))
                offset += _transform_bytes(layer, kind)
        profile = cls(layout, tuple(transforms), dead_zone, sink_tokens)
        profile.__dict__["data"] = data  # what was parsed names the profile, whatever zstandard would write today
        return profile


def block_width(layer: LayerLayout, kind: Kind) -> int:
    """Channels of one transform block: whole heads, as many as divide the layer evenly within the limit."""
    head_dim = layer.head_dim_of(kind)
    for heads in range(layer.kv_heads, 0, -1):
        if layer.kv_heads % heads == 0 and heads * head_dim <= limits.TRANSFORM_WIDTH_MAX:
            return heads * head_dim
    raise UnsupportedModel(f"head dim is {head_dim}, a transform block has at most {limits.TRANSFORM_WIDTH_MAX}")


def _transform_bytes(layer: LayerLayout, kind: Kind) -> int:
    return 4 + 4 * layer.width_of(kind) + 2 * layer.width_of(kind) * block_width(layer, kind)


def _read_transform(content: bytes, offset: int, layer: LayerLayout, kind: Kind) -> Transform:
    width, block = layer.width_of(kind), block_width(layer, kind)
    step = float(np.frombuffer(content, "<f4", 1, offset)[0])
    mean = np.frombuffer(content, "<f4", width, offset + 4).astype(np.float32)
    basis = np.frombuffer(content, "<f2", width * block, offset + 4 + 4 * width).astype(np.float32)
    if not (step > 0 and math.isfinite(step) and np.isfinite(mean).all() and np.isfinite(basis).all()):
        raise InvalidData("profile holds a number that is not finite, or a step that is not positive")
    return Transform(mean, basis.reshape(width // block if block else 0, block, block), step)


def _decompress(frame: bytes) -> bytes:
    try:
        declared = zstandard.frame_content_size(frame)
        if not 0 <= declared <= limits.PROFILE_BYTES_MAX:
            raise InvalidData(f"profile declares {declared} bytes, the limit is {limits.PROFILE_BYTES_MAX}")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=declared)
    except zstandard.ZstdError as error:
        raise InvalidData(f"profile does not decompress: {error}") from error
