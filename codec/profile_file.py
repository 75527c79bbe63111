"""The file that a profile of either codec is: a head that says which, and a zstandard frame that starts with a layout.

Head: magic 4 bytes, format u16, zero u16, layout bytes u32, little-endian. What follows the layout's canonical bytes in
the frame is the codec's own.
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
_ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class ProfileContent:
    """What a profile's file holds: its layout, and a reader that stands behind it."""

    layout: Layout
    reader: FrameReader


def write_profile(magic: bytes, form: int, layout: Layout, parts: Iterable[bytes]) -> bytes:
    """The file of a profile of ``layout`` with the codec's own ``parts``."""
    described = layout.to_bytes()
    frame = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(b"".join([described, *parts]))
    return _HEAD.pack(magic, form, 0, len(described)) + frame


def read_profile(data: bytes, magic: bytes, form: int) -> ProfileContent:
    """Open a profile's file; :class:`InvalidData` where it is none of this ``magic`` and ``form``, or too long."""
    if not _HEAD.size <= len(data) <= limits.PROFILE_BYTES_MAX:
        raise InvalidData(f"profile has {len(data)} bytes, must have {_HEAD.size} to {limits.PROFILE_BYTES_MAX}")
    found, found_form, flags, layout_bytes = _HEAD.unpack_from(data)
    if found != magic or found_form != form or flags != 0:
        raise InvalidData(f"profile starts with {found!r}, format {found_form}; expected {magic!r}, format {form}")
    if layout_bytes > limits.LAYOUT_BYTES_MAX:
        raise InvalidData(f"profile declares {layout_bytes} layout bytes, the limit is {limits.LAYOUT_BYTES_MAX}")
    content = unpack_frame(data[_HEAD.size :], bytes_max=limits.PROFILE_BYTES_MAX, what="profile")
    reader = FrameReader(content, what="profile")
    return ProfileContent(Layout.from_bytes(reader.take(layout_bytes)), reader)
