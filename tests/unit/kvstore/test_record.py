import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from kvloom import limits
from kvloom.errors import InvalidData
from kvloom.kvstore.attributes import ChunkAttributes
from kvloom.kvstore.key import ContentKey, StorageKey
from kvloom.kvstore.record import HEADER_BYTES, check_payload, encode_record, parse_record_header
from kvloom.kvstore.tier import OwnerId, Record

RECORD = Record(
    StorageKey(b"s" * 32),
    ContentKey(b"c" * 32),
    b"the payload",
    1_700_000_000_123,
    OwnerId(b"o" * 16),
    1_700_000_900_000,
    ChunkAttributes(StorageKey(b"s" * 16 + b"p" * 16), 512, 256),
)


def resealed(fields: bytes) -> bytes:
    return fields + xxh3_64_digest(fields)


def test_layout_is_the_documented_one() -> None:
    data = encode_record(RECORD)
    assert len(data) == 152 + len(RECORD.payload)
    assert data[:4] == b"KVLR"
    assert struct.unpack_from("<HH", data, 4) == (4, 0)
    assert data[8:40] == RECORD.storage_key
    assert data[40:72] == RECORD.content_key
    assert data[72:88] == RECORD.owner
    assert struct.unpack_from("<QQQ", data, 88) == (len(RECORD.payload), RECORD.stored_at_ms, RECORD.expires_at_ms)
    assert data[112:128] == b"p" * 16
    assert struct.unpack_from("<II", data, 128) == (512, 256)
    assert data[136:144] == xxh3_64_digest(RECORD.payload)
    assert data[144:152] == xxh3_64_digest(data[:144])
    assert data[152:] == RECORD.payload


@given(
    payload=st.binary(max_size=300),
    stored_at_ms=st.integers(0, 2**64 - 1),
    owner=st.binary(min_size=16, max_size=16),
    expires_at_ms=st.integers(0, 2**64 - 1),
    parent=st.none() | st.binary(min_size=16, max_size=16).filter(any),
    start=st.integers(0, limits.POSITION_MAX),
    tail=st.binary(max_size=5),
)
def test_what_is_encoded_is_parsed(
    payload: bytes, stored_at_ms: int, owner: bytes, expires_at_ms: int, parent: bytes | None, start: int, tail: bytes
) -> None:
    above = None if parent is None else StorageKey(RECORD.storage_key[:16] + parent)
    attributes = ChunkAttributes(above, start, limits.POSITION_MAX - start)
    record = Record(
        RECORD.storage_key, RECORD.content_key, payload, stored_at_ms, OwnerId(owner), expires_at_ms, attributes
    )
    data = encode_record(record)
    header = parse_record_header(memoryview(data), record_bytes=len(data))
    assert header.info == record.info
    check_payload(header, payload)
    if tail:
        with pytest.raises(InvalidData, match="payload"):
            check_payload(header, payload + tail)


def test_every_flipped_bit_of_header_and_payload_is_found() -> None:
    data = encode_record(RECORD)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidData):
            check_payload(parse_record_header(damaged, record_bytes=len(damaged)), damaged[HEADER_BYTES:])


@pytest.mark.parametrize("size", [0, 1, 151])
def test_short_data_is_refused(size: int) -> None:
    with pytest.raises(InvalidData, match=f"{size} bytes, its header needs 152"):
        parse_record_header(encode_record(RECORD)[:size], record_bytes=size)


def test_header_that_is_sealed_but_wrong_is_refused() -> None:
    fields = encode_record(RECORD)[:144]
    for wrong in (b"KVLX" + fields[4:], fields[:4] + b"\1\0" + fields[6:], fields[:6] + b"\1\0" + fields[8:]):
        with pytest.raises(InvalidData, match="this kvloom reads"):
            parse_record_header(resealed(wrong), record_bytes=152)
    huge = fields[:88] + struct.pack("<Q", limits.RECORD_BYTES_MAX + 1) + fields[96:]
    with pytest.raises(InvalidData, match=str(limits.RECORD_BYTES_MAX + 1)):
        parse_record_header(resealed(huge), record_bytes=limits.RECORD_BYTES_MAX + 153)


def test_length_that_is_not_the_record_s_is_refused() -> None:
    data = encode_record(RECORD)
    with pytest.raises(InvalidData, match="declares 11 payload bytes and has 12"):
        parse_record_header(data, record_bytes=len(data) + 1)
