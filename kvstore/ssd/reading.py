"""Reading one record from its segment: just the ranges asked for, verified as far as they reach."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...codec.container import ByteRange
from ...errors import InvalidData
from ..key import StorageKey
from ..record import HEADER_BYTES, RecordHeader, check_payload, parse_record_header
from ..tier import Slice
from .frame import HEAD_BYTES, TOMBSTONE_BYTES
from .segment import Place, Segment

__all__ = ["Read", "asked_bytes", "read_slice"]

Read = Callable[[int, Sequence[bytearray | memoryview], int], int]
"""Fills buffers from a descriptor at an offset; how many bytes it got."""


def asked_bytes(place: Place, ranges: Sequence[ByteRange] | None) -> int:
    """How much of a record ``ranges`` ask for."""
    if ranges is None:
        return place.payload_bytes
    return sum(min(item.stop, place.payload_bytes) - min(item.start, place.payload_bytes) for item in ranges)


def read_slice(
    read: Read, segment: Segment, key: StorageKey, place: Place, ranges: Sequence[ByteRange] | None
) -> Slice:
    """Read a record and verify it; :class:`InvalidData` where it does not hold, :class:`OSError`."""
    head = bytearray(HEAD_BYTES)
    if ranges is None:
        whole = np.empty(place.payload_bytes, np.uint8)
        _fill(read, segment, [head, whole.data], place.offset)
        header = _checked_header(head, key, place)
        check_payload(header, whole.data)
        return Slice(header.info, (_frozen(whole),))
    _fill(read, segment, [head], place.offset)
    header = _checked_header(head, key, place)
    parts = []
    for item in ranges:
        start = min(item.start, place.payload_bytes)
        part = np.empty(max(0, min(item.stop, place.payload_bytes) - start), np.uint8)
        _fill(read, segment, [part.data], place.offset + HEAD_BYTES + start)
        parts.append(_frozen(part))
    return Slice(header.info, tuple(parts))


def _fill(read: Read, segment: Segment, buffers: Sequence[bytearray | memoryview], offset: int) -> None:
    if read(segment.descriptor, buffers, offset) != sum(len(buffer) for buffer in buffers):
        raise InvalidData("record is cut off")


def _checked_header(head: bytearray, key: StorageKey, place: Place) -> RecordHeader:
    header = parse_record_header(head[TOMBSTONE_BYTES:], record_bytes=HEADER_BYTES + place.payload_bytes)
    if header.info.storage_key != key:
        raise InvalidData("record is of another chunk than the catalogue says")
    return header


def _frozen(array: NDArray[np.uint8]) -> memoryview:
    array.flags.writeable = False
    return array.data
