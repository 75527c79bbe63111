"""One segment of the log: a file of frames, and the small file beside it that lists them once it is full.

``{sequence}-{seed}.log`` – frames from offset 0 on. Segments are read back in the order of their sequence numbers; the
seed is random and goes into the checksum of every frame. Both stand in the name as 16 hexadecimal digits.
``{sequence}-{seed}.list`` – the frames of a segment that is no longer written to, so that opening need not look for
them: 152 bytes each, behind a header of 32 bytes. It can be lost or damaged: then the segment is searched.
"""

import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest

from ..attributes import ATTRIBUTES_BYTES, pack_attributes, unpack_attributes
from ..key import ContentKey, StorageKey
from ..tier import OwnerId, RecordInfo
from .disk import Disk
from .frame import ALIGNMENT_BYTES, FrameEntry, FrameKind, find_frames

__all__ = [
    "LISTED_BYTES",
    "LIST_HEAD_BYTES",
    "ListedColumns",
    "Place",
    "Segment",
    "decode_columns",
    "decode_list",
    "encode_list",
    "give_back",
    "new_seed",
    "parse_name",
    "segment_entries",
    "segment_name",
]

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.log")
_LIST_MAGIC: Final = b"KVLI"
_LIST_FORMAT: Final = 2
_LIST_HEAD = struct.Struct("<4sIQQ8s")
LIST_HEAD_BYTES: Final = _LIST_HEAD.size
_LISTED = np.dtype(
    [
        ("kind", "<u8"),
        ("offset", "<u8"),
        ("footprint", "<u8"),
        ("payload", "<u8"),
        ("stored", "<u8"),
        ("expires", "<u8"),
        ("key", "V32"),
        ("content", "V32"),
        ("owner", "V16"),
        ("attributes", f"V{ATTRIBUTES_BYTES}"),
    ]
)
LISTED_BYTES: Final = _LISTED.itemsize
_WASTE_SHARE: Final = 10
_ORDINAL_SHIFT: Final = 64
_OFFSET_SHIFT: Final = 32
_LOW: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record lies: in which open segment (a number of this process), at which offset, how long its payload."""

    ordinal: int
    offset: int
    payload_bytes: int

    def packed(self) -> int:
        """The place as one integer: a million of them are kept."""
        return self.ordinal << _ORDINAL_SHIFT | self.offset // ALIGNMENT_BYTES << _OFFSET_SHIFT | self.payload_bytes

    @staticmethod
    def packed_in(ordinal: int, packed_in_segment_0: int) -> int:
        """A packed place of segment 0, in another segment."""
        return ordinal << _ORDINAL_SHIFT | packed_in_segment_0

    @classmethod
    def unpacked(cls, packed: int) -> "Place":
        """What :meth:`packed` made."""
        return cls(packed >> _ORDINAL_SHIFT, (packed >> _OFFSET_SHIFT & _LOW) * ALIGNMENT_BYTES, packed & _LOW)


@dataclass(slots=True, eq=False)
class Segment:
    """An open segment. ``end`` is where what is durable ends, ``reach`` where the next frame goes.

    ``entries`` are the durable ones, known while it is written to.
    Changed by the writer only; ``readers`` under the lock of the log.
    """

    path: Path
    ordinal: int
    sequence: int
    seed: int
    descriptor: int
    size_bytes: int
    end: int = 0
    reach: int = 0
    frames: int = 0
    entries: list[FrameEntry] | None = field(default_factory=list)
    readers: int = 0

    @property
    def list_path(self) -> Path:
        """The file that lists its frames."""
        return self.path.with_suffix(".list")

    def place(self, entry: FrameEntry) -> Place:
        """Where the record of ``entry`` lies."""
        return Place(self.ordinal, entry.offset, entry.info.payload_bytes if entry.info else 0)

    def write_list(self, disk: Disk) -> None:
        """Write the frames down and keep them in memory no longer; once nothing more is written to the segment."""
        if self.entries is not None:
            disk.write_small(self.list_path, encode_list(self.entries, self.seed, self.end))
            self.entries = None


def segment_name(sequence: int, seed: int) -> str:
    """The name of a segment's file."""
    return f"{sequence:016x}-{seed:016x}.log"


def parse_name(name: str) -> tuple[int, int] | None:
    """Sequence and seed of the segment called ``name``, ``None`` where it is no segment."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1], 16), int(match[2], 16))


def new_seed() -> int:
    """A seed nobody can guess."""
    return int.from_bytes(os.urandom(8), "little")


def encode_list(entries: Sequence[FrameEntry], seed: int, end: int) -> bytes:
    """The list of ``entries`` for the segment of ``seed``, whose frames stop at ``end``."""
    nothing = RecordInfo(StorageKey(bytes(32)), ContentKey(bytes(32)), 0, 0)
    rows = np.array([_row(entry, entry.info or nothing) for entry in entries], dtype=_LISTED).tobytes()
    fields = _LIST_HEAD.pack(_LIST_MAGIC, _LIST_FORMAT, len(entries), end, b"")[:-8]
    return fields + xxh3_64_digest(fields + rows, seed=seed) + rows


def decode_list(data: bytes, seed: int, size_bytes: int) -> tuple[list[FrameEntry], int] | None:
    """The entries and where they stop; ``None`` for a list that is damaged, or of more than ``size_bytes`` hold."""
    listed = _checked_rows(data, seed, size_bytes)
    return None if listed is None else ([_entry(row) for row in listed[0].tolist()], listed[1])


def _checked_rows(data: bytes, seed: int, size_bytes: int) -> tuple[NDArray[np.void], int] | None:
    if len(data) < LIST_HEAD_BYTES:
        return None
    fields, rows = data[: LIST_HEAD_BYTES - 8], data[LIST_HEAD_BYTES:]
    magic, form, count, end, digest = _LIST_HEAD.unpack_from(data)
    if digest != xxh3_64_digest(fields + rows, seed=seed) or (magic, form) != (_LIST_MAGIC, _LIST_FORMAT):
        return None
    if len(rows) != count * LISTED_BYTES or end > size_bytes:
        return None
    return np.frombuffer(rows, _LISTED), end


@dataclass(frozen=True, slots=True)
class ListedColumns:
    """A list for whoever opens the tier: one entry per frame in each column, no object per frame."""

    is_record: list[bool]
    keys: list[bytes]
    places: list[int]
    """Packed, of segment 0."""
    footprints_bytes: list[int]
    expires_at_ms: list[int]
    attributes: list[bytes]
    """Packed."""
    end: int


def decode_columns(data: bytes, seed: int, size_bytes: int) -> ListedColumns | None:
    """What :func:`decode_list` finds, as columns."""
    listed = _checked_rows(data, seed, size_bytes)
    if listed is None:
        return None
    rows, end = listed
    places = (rows["offset"] // ALIGNMENT_BYTES << np.uint64(_OFFSET_SHIFT)) | rows["payload"]
    is_record = (rows["kind"] == FrameKind.RECORD).tolist()
    return ListedColumns(
        is_record,
        rows["key"].tolist(),
        places.tolist(),
        rows["footprint"].tolist(),
        rows["expires"].tolist(),
        rows["attributes"].tolist(),
        end,
    )


def _row(entry: FrameEntry, info: RecordInfo) -> tuple[int | bytes, ...]:
    return (
        entry.kind,
        entry.offset,
        entry.footprint_bytes,
        info.payload_bytes,
        info.stored_at_ms,
        info.expires_at_ms,
        entry.key,
        info.content_key,
        info.owner,
        pack_attributes(entry.key, info.attributes),
    )


def _entry(row: tuple[int, int, int, int, int, int, bytes, bytes, bytes, bytes]) -> FrameEntry:
    kind, offset, footprint, payload, stored, expires, key, content, owner, about = row
    info = None
    if kind == FrameKind.RECORD:
        place, attributes = StorageKey(key), unpack_attributes(StorageKey(key), about)
        info = RecordInfo(place, ContentKey(content), payload, stored, OwnerId(owner), expires, attributes)
    return FrameEntry(FrameKind(kind), offset, footprint, StorageKey(key), info)


def segment_entries(disk: Disk, segment: Segment) -> list[FrameEntry]:
    """The frames of a segment: from memory, from its list, or found by a search. Raises :class:`OSError`."""
    entries = segment.entries
    if entries is not None:
        return list(entries)
    with suppress(OSError):
        listed = decode_list(segment.list_path.read_bytes(), segment.seed, segment.size_bytes)
        if listed is not None:
            return listed[0]

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(min(length, segment.size_bytes - offset))
        return bytes(memoryview(buffer)[: disk.read(segment.descriptor, [buffer], offset)])

    return list(find_frames(read, segment.size_bytes, segment.seed))


def give_back(disk: Disk, segment: Segment) -> None:
    """Cut off what a segment has too much, if it is worth it: a file that keeps its size is cheaper to use again."""
    if segment.size_bytes - segment.end > segment.size_bytes // _WASTE_SHARE:
        disk.truncate(segment.descriptor, segment.end)
        segment.size_bytes = segment.end
