"""The record header: what stands before every payload on disk, so that a payload says by itself what it is.

A record is this header and the payload, nothing else. All integers are little-endian.

====== ===== ================= ==========================================================================
offset bytes field             contents
====== ===== ================= ==========================================================================
0      4     magic             ``KVLR``
4      2     format            4
6      2     flags             0
8      32    storage key       where the record is kept: its owner, keyed BLAKE3 of the content key
40     32    content key       what the payload is
72     16    owner             whose it is: quotas go by it
88     8     payload length    bytes after the header
96     8     stored at         milliseconds since 1970-01-01 UTC
104    8     expires at        milliseconds since 1970-01-01 UTC, or 0: never
112    16    parent            second half of the storage key of the chunk before it, or zeros: none is known
128    4     start             tokens before the chunk
132    4     tokens            of the chunk
136    8     payload checksum  XXH3-64 of the payload
144    8     header checksum   XXH3-64 of bytes 0 to 143
====== ===== ================= ==========================================================================

Both keys stand in full and are compared on every read: a record that an index points to by mistake is a damaged
record, never another tenant's bytes. The checksums are against damage, not against somebody who can write to the disk
(that is what :mod:`.wrappers.encrypt` is for), so they are XXH3, ten times as fast as BLAKE3.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from xxhash import xxh3_64, xxh3_64_digest

from .. import limits
from ..errors import InvalidData
from .attributes import ATTRIBUTES_BYTES, pack_attributes, unpack_attributes
from .key import ContentKey, StorageKey
from .tier import Buffer, OwnerId, Record, RecordInfo

__all__ = [
    "HEADER_BYTES",
    "RecordHeader",
    "check_payload",
    "check_payload_parts",
    "encode_record",
    "encode_record_header",
    "open_record_header",
    "parse_record_header",
    "seal_record_header",
]

MAGIC = b"KVLR"
FORMAT = 4

_OPEN = struct.Struct(f"<4sHH32s32s16sQQQ{ATTRIBUTES_BYTES}s")
_FIELDS = struct.Struct(f"{_OPEN.format}8s")
_CHECKSUM_BYTES = 8
HEADER_BYTES = _FIELDS.size + _CHECKSUM_BYTES


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """A verified header; the payload itself is verified by :func:`check_payload`."""

    info: RecordInfo
    payload_checksum: bytes


def encode_record(record: Record) -> bytes:
    """The header and the payload as one value (one copy of the payload); :class:`InvalidData` past the limit."""
    return b"".join((encode_record_header(record), record.payload))


def encode_record_header(record: Record) -> bytes:
    """What stands before the payload of ``record``; reads all of the payload. :class:`InvalidData` past the limit."""
    return seal_record_header(open_record_header(record), record.payload)


def open_record_header(record: Record) -> bytes:
    """The header without its checksums; the payload is not read. :class:`InvalidData` past the limit."""
    payload_bytes = len(record.payload)
    if payload_bytes > limits.RECORD_BYTES_MAX:
        raise InvalidData(f"record has {payload_bytes} payload bytes, the limit is {limits.RECORD_BYTES_MAX}")
    return _OPEN.pack(
        MAGIC,
        FORMAT,
        0,
        record.storage_key,
        record.content_key,
        record.owner,
        payload_bytes,
        record.stored_at_ms,
        record.expires_at_ms,
        pack_attributes(record.storage_key, record.attributes),
    )


def seal_record_header(fields: bytes, payload: Buffer) -> bytes:
    """The header that :func:`open_record_header` began, with both checksums; reads all of ``payload``."""
    fields += xxh3_64_digest(payload)
    return fields + xxh3_64_digest(fields)


def parse_record_header(data: Buffer, *, record_bytes: int) -> RecordHeader:
    """Parse and verify the header at the start of ``data``, of a record whose length is ``record_bytes``.

    Raises :class:`InvalidData` naming what does not hold; nothing is believed before the header checksum is.
    """
    if len(data) < HEADER_BYTES:
        raise InvalidData(f"record has {len(data)} bytes, its header needs {HEADER_BYTES}")
    head = bytes(data[:HEADER_BYTES])
    if xxh3_64_digest(head[: _FIELDS.size]) != head[_FIELDS.size :]:
        raise InvalidData("record header does not match its checksum")
    magic, form, flags, storage_key, content_key, owner, payload_bytes, stored_at_ms, expires_at_ms, about, digest = (
        _FIELDS.unpack_from(head)
    )
    if magic != MAGIC or form != FORMAT or flags != 0:
        raise InvalidData(
            f"record has magic {magic!r}, format {form}, flags {flags}; this kvloom reads {MAGIC!r}, {FORMAT}, 0"
        )
    if payload_bytes > limits.RECORD_BYTES_MAX or HEADER_BYTES + payload_bytes != record_bytes:
        raise InvalidData(f"record declares {payload_bytes} payload bytes and has {record_bytes - HEADER_BYTES}")
    info = RecordInfo(
        StorageKey(storage_key),
        ContentKey(content_key),
        payload_bytes,
        stored_at_ms,
        OwnerId(owner),
        expires_at_ms,
        unpack_attributes(StorageKey(storage_key), about),
    )
    return RecordHeader(info, digest)


def check_payload(header: RecordHeader, payload: Buffer) -> None:
    """Raise :class:`InvalidData` unless ``payload`` is the whole payload that the header describes."""
    check_payload_parts(header, (payload,))


def check_payload_parts(header: RecordHeader, parts: Iterable[Buffer]) -> None:
    """:func:`check_payload` of a payload in parts, each of which is looked at before the next is asked for."""
    found, size_bytes = xxh3_64(), 0
    for part in parts:
        found.update(part)
        size_bytes += len(part)
    if size_bytes != header.info.payload_bytes or found.digest() != header.payload_checksum:
        raise InvalidData("record payload does not match its checksum")
