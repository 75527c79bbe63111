"""Frames of the gRPC interface by hand: a message of some fields, and bytes that are neither copied in nor out of it.

``data`` is field 3 of every frame that carries bytes. A protobuf library would copy them into the message and again
into its serialised form; here they are joined with the other fields once, and read as a view of what came. What is
written is what any protobuf library writes and reads.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .. import limits
from ..errors import InvalidRequest

__all__ = ["RawFrame", "encode_frame", "split_frames"]

Buffer = bytes | bytearray | memoryview
_DATA_FIELD: Final = 3
_DATA_TAG: Final = bytes((_DATA_FIELD << 3 | 2,))
_VARINT_BYTES_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A frame as it came: the fields but ``data``, serialised, and ``data``, a view of what came."""

    fields: bytes
    data: memoryview

    @classmethod
    def decode(cls, frame: bytes) -> "RawFrame":
        """Take a frame apart; :class:`InvalidRequest` for bytes that are no message."""
        view = memoryview(frame)
        fields: list[memoryview] = []
        data = view[:0]
        position = 0
        while position < len(view):
            start = position
            tag, position = _varint(view, position)
            position, content = _skip(view, position, tag & 7)
            if tag >> 3 == _DATA_FIELD and tag & 7 == 2:
                data = content
            else:
                fields.append(view[start:position])
        return cls(b"".join(fields), data)


def encode_frame(fields: bytes, parts: Sequence[Buffer]) -> bytes:
    """A frame of the serialised ``fields`` and of ``data``, which is ``parts`` one behind the other: one copy."""
    size = sum(len(part) for part in parts)
    return b"".join((fields, _DATA_TAG, _encode_varint(size), *parts)) if size else fields


def split_frames(parts: Iterable[Buffer], frame_bytes: int = limits.STREAM_FRAME_BYTES) -> Iterator[list[memoryview]]:
    """Cut and gather ``parts`` into frames of ``frame_bytes`` each, the last one shorter, without copying."""
    frame: list[memoryview] = []
    room = frame_bytes
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            taken = view[:room]
            frame.append(taken)
            view = view[len(taken) :]
            room -= len(taken)
            if not room:
                yield frame
                frame, room = [], frame_bytes
    if frame:
        yield frame


def _skip(view: memoryview, position: int, kind: int) -> tuple[int, memoryview]:
    """Where the field whose content begins at ``position`` ends, and its bytes."""
    if kind == 0:
        _, end = _varint(view, position)
    elif kind == 1:
        end = position + 8
    elif kind == 2:
        length, position = _varint(view, position)
        end = position + length
    elif kind == 5:
        end = position + 4
    else:
        raise InvalidRequest(f"message has a field of wire type {kind}")
    if end > len(view):
        raise InvalidRequest(f"message of {len(view)} bytes has a field that ends at {end}")
    return end, view[position:end]


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(position, min(len(view), position + _VARINT_BYTES_MAX)):
        byte = view[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise InvalidRequest(f"message of {len(view)} bytes is cut off or is no message")


def _encode_varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
