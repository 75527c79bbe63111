"""Frames: what the segments of the log consist of, and how they are found again.

A frame begins at a multiple of 64 bytes. All integers are little-endian.

====== ===== ============ =====================================================================================
offset bytes field        contents
====== ===== ============ =====================================================================================
0      4     magic        ``KVLF``
4      1     kind         1: a record, 2: a tombstone, the record of this storage key is deleted
5      3     reserved     0
8      8     footprint    bytes from here to the next frame, a multiple of 64
16     32    storage key  of the record
48     8     reserved     0
56     8     checksum     XXH3-64 of bytes 0 to 55 and, for a record, its header; seeded by the place of the frame
64     152   header       of the record (:mod:`.record`); a tombstone ends before it
216    …     payload      of the record, then zeros up to the footprint
====== ===== ============ =====================================================================================

The seed of a frame's checksum is a random number that stands in the name of its segment, plus the offset of the frame.
So what an earlier life of a recycled file has left behind, a frame at another place, and a payload that was made to
look like a frame are not taken for one.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from xxhash import xxh3_64_digest

from ... import limits
from ...errors import InvalidData
from ..key import StorageKey
from ..record import HEADER_BYTES, parse_record_header
from ..tier import Buffer, RecordInfo

__all__ = [
    "ALIGNMENT_BYTES",
    "HEAD_BYTES",
    "TOMBSTONE_BYTES",
    "FrameEntry",
    "FrameKind",
    "aligned",
    "encode_frame",
    "find_frames",
    "parse_frame",
]

ALIGNMENT_BYTES: Final = 64
TOMBSTONE_BYTES: Final = 64
HEAD_BYTES: Final = TOMBSTONE_BYTES + HEADER_BYTES
"""What stands before the payload of a record: the most that must be read to know a frame."""

_MAGIC: Final = b"KVLF"
_FIELDS = struct.Struct("<4sB3xQ32s8x")
_SEED_MASK: Final = 2**64 - 1
_SEARCH_BYTES: Final = 4 * 1024 * 1024


class FrameKind(IntEnum):
    """What a frame says."""

    RECORD = 1
    TOMBSTONE = 2


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """A frame at ``offset`` of its segment; ``info`` of the record, ``None`` for a tombstone."""

    kind: FrameKind
    offset: int
    footprint_bytes: int
    key: StorageKey
    info: RecordInfo | None

    @property
    def stop(self) -> int:
        """Where the next frame begins."""
        return self.offset + self.footprint_bytes


def aligned(size_bytes: int, alignment_bytes: int = ALIGNMENT_BYTES) -> int:
    """``size_bytes`` rounded up."""
    return -(-size_bytes // alignment_bytes) * alignment_bytes


def encode_frame(
    kind: FrameKind, key: StorageKey, footprint_bytes: int, record_header: bytes, *, seed: int, offset: int
) -> bytes:
    """What stands before the payload; ``record_header`` is empty for a tombstone."""
    fields = _FIELDS.pack(_MAGIC, kind, footprint_bytes, key)
    return fields + _digest(fields + record_header, seed, offset) + record_header


def parse_frame(data: Buffer, *, seed: int, offset: int, room_bytes: int) -> FrameEntry:
    """Parse what begins at ``data``; :class:`InvalidData` where it is no frame of this place or does not fit.

    ``room_bytes`` is what the segment has from ``offset`` on. The payload is not looked at.
    """
    if len(data) < TOMBSTONE_BYTES:
        raise InvalidData(f"frame has {len(data)} bytes, the smallest has {TOMBSTONE_BYTES}")
    head = bytes(data[:HEAD_BYTES])
    magic, code, footprint_bytes, key = _FIELDS.unpack_from(head)
    if magic != _MAGIC or code not in (FrameKind.RECORD, FrameKind.TOMBSTONE):
        raise InvalidData("no frame begins here")
    kind = FrameKind(code)
    covered = head[: _FIELDS.size] + (head[TOMBSTONE_BYTES:] if kind is FrameKind.RECORD else b"")
    if _digest(covered, seed, offset) != head[_FIELDS.size : TOMBSTONE_BYTES]:
        raise InvalidData("frame does not match its checksum")
    info = None
    least_bytes = TOMBSTONE_BYTES
    if kind is FrameKind.RECORD:
        if len(head) < HEAD_BYTES:
            raise InvalidData("frame is cut off")
        payload_bytes = int.from_bytes(head[TOMBSTONE_BYTES + 88 : TOMBSTONE_BYTES + 96], "little")
        info = parse_record_header(head[TOMBSTONE_BYTES:], record_bytes=HEADER_BYTES + payload_bytes).info
        least_bytes = HEAD_BYTES + payload_bytes
        if info.storage_key != key:
            raise InvalidData("frame and record are of different keys")
    if footprint_bytes % ALIGNMENT_BYTES or not least_bytes <= footprint_bytes <= room_bytes:
        raise InvalidData(f"frame claims {footprint_bytes} bytes, needs {least_bytes} and has {room_bytes}")
    return FrameEntry(kind, offset, footprint_bytes, StorageKey(key), info)


def find_frames(
    read: Callable[[int, int], bytes], size_bytes: int, seed: int, *, start: int = 0
) -> Iterator[FrameEntry]:
    """The frames of a segment in order, also those behind a damaged one; ``read(offset, length)`` may return less.

    A caller sees damage or padding that was never written as an entry that does not begin where the last one stopped.
    """
    offset = start
    while offset < size_bytes:
        try:
            entry = parse_frame(read(offset, HEAD_BYTES), seed=seed, offset=offset, room_bytes=size_bytes - offset)
        except InvalidData:
            found = _search(read, size_bytes, seed, offset + ALIGNMENT_BYTES)
            if found is None:
                return
            entry = found
        yield entry
        offset = entry.stop


def _search(read: Callable[[int, int], bytes], size_bytes: int, seed: int, start: int) -> FrameEntry | None:
    """The first frame from ``start`` (a multiple of the alignment) on."""
    magic = int.from_bytes(_MAGIC, "little")
    for position in range(start, size_bytes, _SEARCH_BYTES):
        data = read(position, _SEARCH_BYTES)
        words = np.frombuffer(data, "<u4", count=len(data) // 4)[:: ALIGNMENT_BYTES // 4]
        for index in np.flatnonzero(words == magic).tolist():
            offset = position + index * ALIGNMENT_BYTES
            try:
                return parse_frame(read(offset, HEAD_BYTES), seed=seed, offset=offset, room_bytes=size_bytes - offset)
            except InvalidData:
                continue
    return None


def _digest(data: bytes, seed: int, offset: int) -> bytes:
    return xxh3_64_digest(data, seed=(seed + offset) & _SEED_MASK)


assert limits.RECORD_BYTES_MAX + HEAD_BYTES < 2**32  # noqa: S101 - a payload's length fits where places keep it
