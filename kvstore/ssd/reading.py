"""Reading one record from its segment: just the ranges asked for, verified as far as they reach."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ...codec.container import ByteRange
from ...errors import InvalidData
from ..key import StorageKey
from ..record import HEADER_BYTES, RecordHeader, check_payload_parts, parse_record_header
from ..tier import Slice
from .frame import HEAD_BYTES, TOMBSTONE_BYTES
from .segment import Place, Segment

__all__ = ["Read", "ReadAhead", "asked_bytes", "read_slice"]

Read = Callable[[int, Sequence[bytearray | memoryview], int], int]
"""Fills buffers from a descriptor at an offset; how many bytes it got."""
_PIECE_BYTES: Final = 512 * 1024


class ReadAhead(Protocol):
    """The same, and has the disk begin with what follows, up to another offset."""

    def __call__(self, descriptor: int, buffers: Sequence[bytearray | memoryview], offset: int, stop: int) -> int:
        """How many bytes it got."""


def asked_bytes(place: Place, ranges: Sequence[ByteRange] | None) -> int:
    """How much of a record ``ranges`` ask for."""
    if ranges is None:
        return place.payload_bytes
    return sum(min(item.stop, place.payload_bytes) - min(item.start, place.payload_bytes) for item in ranges)


def read_slice(
    read: Read,
    segment: Segment,
    key: StorageKey,
    place: Place,
    ranges: Sequence[ByteRange] | None,
    read_ahead: ReadAhead | None = None,
) -> Slice:
    """Read a record and verify it; :class:`InvalidData` where it does not hold, :class:`OSError`.

    A whole one is verified piece by piece, each while the processor's caches have it and, with ``read_ahead``, while
    the disk reads on.
    """
    head = bytearray(HEAD_BYTES)
    if ranges is None:
        whole = np.empty(place.payload_bytes, np.uint8)
        first = whole.data[:_PIECE_BYTES]
        stop = place.offset + HEAD_BYTES + place.payload_bytes
        read_first = read if read_ahead is None else partial(read_ahead, stop=stop)
        _fill(read_first, segment, [head, first], place.offset)
        header = _checked_header(head, key, place)
        check_payload_parts(header, chain((first,), _pieces_behind(read, segment, whole.data, place)))
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


def _pieces_behind(read: Read, segment: Segment, whole: memoryview, place: Place) -> Iterator[memoryview]:
    """Read what is behind the first piece of a payload into its place, a piece at a time."""
    for start in range(_PIECE_BYTES, len(whole), _PIECE_BYTES):
        piece = whole[start : start + _PIECE_BYTES]
        _fill(read, segment, [piece], place.offset + HEAD_BYTES + start)
        yield piece


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
