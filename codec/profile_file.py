"""The file that a profile of either codec is: a head that says which, and a zstandard frame that starts with a layout.

Head: magic 4 bytes, format u16, flags u16, layout bytes u32, little-endian. After the layout's canonical bytes in the
frame comes, where flag 1 is set, what was measured of blending (u32 bytes, then these, which the codec does not read:
:mod:`kvloom.blend.gate`). The rest is the codec's own.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import zstandard

from .. import limits
from ..errors import InvalidData
from .frame import FrameReader, unpack_frame
from .layout import Layout

__all__ = ["ProfileContent", "read_profile", "write_profile"]

_HEAD = struct.Struct("<4sHHI")
_GATE = struct.Struct("<I")
_HAS_GATE = 1
_ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class ProfileContent:
    """What a profile's file holds: its layout, what blending left there, and a reader that stands behind both."""

    layout: Layout
    blend_gate: bytes
    reader: FrameReader


def write_profile(magic: bytes, form: int, layout: Layout, parts: Iterable[bytes], *, blend_gate: bytes = b"") -> bytes:
    """The file of a profile of ``layout`` with the codec's own ``parts``; no trace of an empty ``blend_gate``.

    Raises :class:`InvalidData` for one that no reader would take.
    """
    described = layout.to_bytes()
    gate = _GATE.pack(_checked(len(blend_gate))) + blend_gate if blend_gate else b""
    frame = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(
        b"".join([described, gate, *parts])
    )
    return _HEAD.pack(magic, form, _HAS_GATE if gate else 0, len(described)) + frame


def read_profile(data: bytes, magic: bytes, form: int) -> ProfileContent:
    """Open a profile's file; :class:`InvalidData` where it is none of this ``magic`` and ``form``, or too long."""
    if not _HEAD.size <= len(data) <= limits.PROFILE_BYTES_MAX:
        raise InvalidData(f"profile has {len(data)} bytes, must have {_HEAD.size} to {limits.PROFILE_BYTES_MAX}")
    found, found_form, flags, layout_bytes = _HEAD.unpack_from(data)
    if found != magic or found_form != form or flags not in (0, _HAS_GATE):
        raise InvalidData(f"profile starts with {found!r}, format {found_form}; expected {magic!r}, format {form}")
    if layout_bytes > limits.LAYOUT_BYTES_MAX:
        raise InvalidData(f"profile declares {layout_bytes} layout bytes, the limit is {limits.LAYOUT_BYTES_MAX}")
    content = unpack_frame(data[_HEAD.size :], bytes_max=limits.PROFILE_BYTES_MAX, what="profile")
    reader = FrameReader(content, what="profile")
    layout, gate = Layout.from_bytes(reader.take(layout_bytes)), b""
    if flags:
        gate = reader.take(_checked(*_GATE.unpack(reader.take(_GATE.size))))
    return ProfileContent(layout, gate, reader)


def _checked(gate_bytes: int) -> int:
    most = limits.BLEND_GATE_BYTES_MAX
    if not 1 <= gate_bytes <= most:
        raise InvalidData(f"profile declares {gate_bytes} bytes of a blend gate, must be 1 to {most}")
    return gate_bytes
