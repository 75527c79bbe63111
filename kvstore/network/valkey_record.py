"""How a record lies in Valkey: a head under one key, and the rest of the payload in parts of bounded size. Pure.

Keys, where ``owner`` and ``place`` are the two halves of the storage key in hexadecimal::

    prefix:owner:{place}                      the head
    prefix:owner:{place}:generation:index     part number index

The braces are a hash tag: head and parts of a record lie in one slot of a cluster, so one command may touch them all.

====== ===== ================= ===============================================================================
offset bytes field             contents (integers little-endian)
====== ===== ================= ===============================================================================
0      152   record header     as on disk (:mod:`kvloom.kvstore.record`)
152    8     generation        random, new with every put: parts are written once and never changed
160    4     inline bytes      bytes of the payload that follow here
164    4     part bytes        bytes of each part but the last
168    8     checksum          first 8 bytes of BLAKE3-256 of bytes 0 to 167
176          inline payload    the first bytes of the payload: a small record needs no parts
====== ===== ================= ===============================================================================
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ...codec.container import ByteRange, checksum
from ...errors import InvalidData
from .. import network_limits as limits
from ..key import KEY_BYTES, OWNER_BYTES, OwnerId, StorageKey
from ..record import HEADER_BYTES, RecordHeader, encode_record_header, parse_record_header
from ..tier import Buffer, Record

__all__ = [
    "GENERATION_BYTES",
    "HEAD_BYTES",
    "INLINE_BYTES_MAX",
    "PART_BYTES_MIN",
    "Head",
    "Piece",
    "ValkeyKeys",
    "encode_head",
    "parse_head",
]

GENERATION_BYTES: Final = 8
INLINE_BYTES_MAX: Final = 32 * 1024
"""So much of a payload comes with its head: the header of any usual container, or all of a small one."""
PART_BYTES_MIN: Final = 64 * 1024
_PLAN: Final = struct.Struct("<8sII")
_CHECKSUM_BYTES: Final = 8
HEAD_BYTES: Final = HEADER_BYTES + _PLAN.size + _CHECKSUM_BYTES


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``[start, stop)`` of one value; ``part`` ``None`` is the inline payload."""

    part: int | None
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """How many bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Head:
    """A verified head without the inline payload; ``data`` are its bytes, which tell one put from any other."""

    record: RecordHeader
    generation: bytes
    inline_bytes: int
    part_bytes: int
    data: bytes

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-(self.record.info.payload_bytes - self.inline_bytes) // self.part_bytes)

    def part_range(self, part: int) -> ByteRange:
        """Which bytes of the payload part number ``part`` holds."""
        start = self.inline_bytes + part * self.part_bytes
        return ByteRange(start, min(start + self.part_bytes, self.record.info.payload_bytes))

    def pieces(self, wanted: ByteRange) -> list[Piece]:
        """Where ``wanted``, clipped to the payload, lies; in order, none empty."""
        start, stop = wanted.start, min(wanted.stop, self.record.info.payload_bytes)
        pieces: list[Piece] = []
        if start < min(stop, self.inline_bytes):
            pieces.append(Piece(None, start, min(stop, self.inline_bytes)))
            start = pieces[0].stop
        while start < stop:
            part = (start - self.inline_bytes) // self.part_bytes
            held = self.part_range(part)
            pieces.append(Piece(part, start - held.start, min(stop, held.stop) - held.start))
            start = held.stop
        return pieces


def encode_head(record: Record, *, generation: bytes, part_bytes: int) -> Head:
    """The head of ``record``; reads the payload for its checksum. :class:`InvalidData` for one past the limit."""
    header = encode_record_header(record)
    inline_bytes = min(len(record.payload), INLINE_BYTES_MAX)
    fields = header + _PLAN.pack(generation, inline_bytes, part_bytes)
    parsed = parse_record_header(header, record_bytes=HEADER_BYTES + len(record.payload))
    return Head(parsed, generation, inline_bytes, part_bytes, fields + checksum(fields))


def parse_head(data: Buffer) -> Head:
    """Parse and verify the first :data:`HEAD_BYTES` of a head; :class:`InvalidData` naming what does not hold."""
    if len(data) < HEAD_BYTES:
        raise InvalidData(f"head has {len(data)} bytes, needs {HEAD_BYTES}")
    head = bytes(data[:HEAD_BYTES])
    if checksum(head[:-_CHECKSUM_BYTES]) != head[-_CHECKSUM_BYTES:]:
        raise InvalidData("head does not match its checksum")
    generation, inline_bytes, part_bytes = _PLAN.unpack_from(head, HEADER_BYTES)
    if not PART_BYTES_MIN <= part_bytes <= limits.VALKEY_VALUE_BYTES_MAX:
        raise InvalidData(
            f"head has parts of {part_bytes} bytes, must be {PART_BYTES_MIN} to {limits.VALKEY_VALUE_BYTES_MAX}"
        )
    payload_bytes = int.from_bytes(head[88:96], "little")
    record = parse_record_header(head[:HEADER_BYTES], record_bytes=HEADER_BYTES + payload_bytes)
    if inline_bytes != min(payload_bytes, INLINE_BYTES_MAX):
        raise InvalidData(f"head has {inline_bytes} bytes inline of a payload of {payload_bytes}")
    return Head(record, generation, inline_bytes, part_bytes, head)


@dataclass(frozen=True, slots=True)
class ValkeyKeys:
    """The names of keys under one ``prefix``, which has none of the characters that a pattern gives a meaning."""

    prefix: str

    def head(self, key: StorageKey) -> bytes:
        """Where the head of a record lies."""
        return f"{self.prefix}:{key[:OWNER_BYTES].hex()}:{{{key[OWNER_BYTES:].hex()}}}".encode()

    def parts(self, key: StorageKey, head: Head, parts: Sequence[int] | range) -> list[bytes]:
        """Where ``parts`` of a record lie."""
        stem = self.head(key) + b":" + head.generation.hex().encode() + b":"
        return [stem + str(part).encode() for part in parts]

    def heads_pattern(self, owner: OwnerId | None) -> bytes:
        """Matches the heads of ``owner``, or of everybody."""
        return f"{self.prefix}:{'*' if owner is None else owner.hex()}:{{*}}".encode()

    def everything_pattern(self, owner: OwnerId) -> bytes:
        """Matches all keys of ``owner``, parts that no head names included."""
        return f"{self.prefix}:{owner.hex()}:*".encode()

    def storage_key(self, head_key: bytes) -> StorageKey | None:
        """The storage key of a head by its name, or ``None`` for a name that is not one."""
        text = head_key.decode("ascii", "replace").removeprefix(self.prefix + ":")
        owner, _, place = text.partition(":")
        try:
            key = bytes.fromhex(owner) + bytes.fromhex(place.removeprefix("{").removesuffix("}"))
        except ValueError:
            return None
        return StorageKey(key) if len(key) == KEY_BYTES and self.head(StorageKey(key)) == head_key else None
