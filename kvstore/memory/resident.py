"""Where the records of the memory tier lie, packed: a million of them cost little more than their keys.

A record lies in a segment as a header of :data:`HEADER_BYTES` and, behind it, the payload:

====== ===== ============ ===============================================================================
offset bytes field        contents
====== ===== ============ ===============================================================================
0      32    content key  what the payload is
32     8     stored at    milliseconds since 1970-01-01 UTC
40     8     expires at   milliseconds since 1970-01-01 UTC, or 0: never
48     4     length       bytes of the payload
52     4     slot         the record's slot in the table below, or :data:`NO_SLOT`: never came to be
56     8     word sum     :func:`kvloom.kvstore.sharing.word_sum` of the payload
====== ===== ============ ===============================================================================

All integers are little-endian. The owner is the segment's. The storage key and the attributes, which name another one,
stand in the table only, so that whoever is given a segment to read learns no place of anything. A record is resident
where the table says that its slot lies there, which is how a segment's live records are found again by walking its
headers.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..attributes import ATTRIBUTES_BYTES, UNATTRIBUTED, ChunkAttributes, pack_attributes, unpack_attributes
from ..key import ContentKey, StorageKey
from ..key_index import ABSENT, KeyIndex
from ..tier import Record, RecordInfo
from .segment import ALIGNMENT_BYTES, Segment, aligned

__all__ = [
    "HEADER_BYTES",
    "NO_SLOT",
    "Place",
    "RecordTable",
    "StoredHeader",
    "footprint",
    "read_header",
    "write_header",
]

_HEADER = struct.Struct("<32sQQIIQ")
HEADER_BYTES: Final = _HEADER.size
NO_SLOT: Final = 2**32 - 1


def footprint(payload_bytes: int) -> int:
    """What a record takes of a segment: header and payload."""
    return HEADER_BYTES + aligned(payload_bytes)


@dataclass(slots=True)
class StoredHeader:
    """The header before a payload. Not frozen, as a place is not: made for every read, which is four times as fast."""

    content_key: ContentKey
    stored_at_ms: int
    expires_at_ms: int
    payload_bytes: int
    slot: int
    word_sum: int

    def info(self, key: StorageKey, segment: Segment, attributes: ChunkAttributes) -> RecordInfo:
        """The record in ``segment`` under ``key``, without its payload."""
        return RecordInfo(
            key, self.content_key, self.payload_bytes, self.stored_at_ms, segment.owner, self.expires_at_ms, attributes
        )


@dataclass(slots=True)
class Place:
    """Where a record begins: at its header."""

    segment: int
    offset: int


def read_header(segment: Segment, offset: int) -> StoredHeader:
    """The header at ``offset``."""
    key, stored_at_ms, expires_at_ms, payload_bytes, slot, total = segment.unpack(_HEADER, offset)
    return StoredHeader(ContentKey(key), stored_at_ms, expires_at_ms, payload_bytes, slot, total)


def write_header(segment: Segment, offset: int, record: Record, *, slot: int = NO_SLOT, total: int = 0) -> None:
    """Write the header of ``record`` at ``offset``; ``total`` is the word sum of its payload."""
    fields = (record.content_key, record.stored_at_ms, record.expires_at_ms, len(record.payload), slot, total)
    segment.pack(_HEADER, offset, *fields)


class RecordTable:
    """A slot per resident record: its key, place and attributes, in arrays; and an index of the keys."""

    __slots__ = ("_attributes", "_free", "_keys", "_segments", "_slots", "_units")

    def __init__(self) -> None:
        self._keys: list[StorageKey | None] = []
        self._slots = KeyIndex(self._keys)
        self._segments = array("I")
        self._units = array("I")
        self._attributes = bytearray()
        self._free = array("I")

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self._slots.find(key) != ABSENT

    def present(self, keys: Sequence[StorageKey]) -> list[bool]:
        """For each key, whether it is resident."""
        return [slot != ABSENT for slot in self._slots.find_many(keys)]

    def keys(self) -> list[StorageKey]:
        """A snapshot of all keys."""
        return [key for key in self._keys if key is not None]

    def slot_of(self, key: StorageKey) -> int | None:
        """The slot of a resident record."""
        slot = self._slots.find(key)
        return None if slot == ABSENT else slot

    def key_of(self, slot: int) -> StorageKey:
        """The key of the record in ``slot``, which must be taken."""
        key = self._keys[slot]
        if key is None:
            raise LookupError(f"slot {slot} is free")
        return key

    def place_of(self, slot: int) -> Place:
        """Where the record in ``slot`` lies."""
        return Place(self._segments[slot], self._units[slot] * ALIGNMENT_BYTES)

    def attributes_of(self, slot: int) -> ChunkAttributes:
        """Those of the record in ``slot``, which must be taken."""
        start = slot * ATTRIBUTES_BYTES
        return unpack_attributes(self.key_of(slot), self._attributes[start : start + ATTRIBUTES_BYTES])

    def add(self, key: StorageKey, place: Place, attributes: ChunkAttributes = UNATTRIBUTED) -> int:
        """A slot for ``key``, which must have none."""
        packed = pack_attributes(key, attributes)
        if self._free:
            slot = self._free.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
            self._segments.append(0)
            self._units.append(0)
            self._attributes += packed
        self._slots.add(key, slot)
        self._attributes[slot * ATTRIBUTES_BYTES : (slot + 1) * ATTRIBUTES_BYTES] = packed
        self.move(slot, place)
        return slot

    def move(self, slot: int, place: Place) -> None:
        """The record in ``slot`` lies at ``place`` from now on."""
        self._segments[slot] = place.segment
        self._units[slot] = place.offset // ALIGNMENT_BYTES

    def remove(self, key: StorageKey) -> None:
        """Free the slot of ``key``, which must have one."""
        slot = self._slots.find(key)
        if slot == ABSENT:
            raise KeyError(key.hex())
        self._slots.remove(slot)
        self._keys[slot] = None
        self._free.append(slot)

    def lies_at(self, slot: int, place: Place) -> bool:
        """Whether the record in ``slot`` is resident and lies at ``place``."""
        return slot < len(self._keys) and self._keys[slot] is not None and self.place_of(slot) == place

    def walk(self, segment: Segment) -> Iterator[tuple[Place, StoredHeader]]:
        """The resident records of ``segment``, in the order in which they lie."""
        offset = 0
        while offset < segment.end_bytes:
            header = read_header(segment, offset)
            place = Place(segment.number, offset)
            if self.lies_at(header.slot, place):
                yield place, header
            offset += footprint(header.payload_bytes)
