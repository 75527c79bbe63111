"""How a record is cut into a head and parts, and that a head which does not hold is found out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.container import ByteRange, checksum
from kvloom.errors import InvalidData
from kvloom.kvstore import network_limits as limits
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.network.valkey_record import (
    HEAD_BYTES,
    INLINE_BYTES_MAX,
    PART_BYTES_MIN,
    ValkeyKeys,
    encode_head,
    parse_head,
)

SIZES = st.integers(0, 3 * PART_BYTES_MIN) | st.sampled_from([0, INLINE_BYTES_MAX, INLINE_BYTES_MAX + PART_BYTES_MIN])
HEAD = encode_head(make_record(1, 200_000), generation=b"generate", part_bytes=PART_BYTES_MIN)


@given(SIZES, st.integers(PART_BYTES_MIN, 2 * PART_BYTES_MIN))
def test_the_parts_and_what_is_inline_are_the_payload(size_bytes, part_bytes):
    record = make_record(1, size_bytes)
    head = encode_head(record, generation=b"12345678", part_bytes=part_bytes)
    assert parse_head(head.data) == head
    assert len(head.data) == HEAD_BYTES
    held = [head.part_range(part) for part in range(head.parts)]
    assert all(0 < item.stop - item.start <= part_bytes for item in held)
    assert (
        record.payload[: head.inline_bytes] + b"".join(record.payload[r.start : r.stop] for r in held) == record.payload
    )


@given(SIZES, st.integers(0, 2**18), st.integers(0, 2**18))
def test_the_pieces_of_a_range_are_the_range(size_bytes, start, stop):
    record = make_record(1, size_bytes)
    head = encode_head(record, generation=b"12345678", part_bytes=PART_BYTES_MIN)
    read = b""
    for piece in head.pieces(ByteRange(start, stop)):
        assert piece.size_bytes > 0
        held = ByteRange(0, head.inline_bytes) if piece.part is None else head.part_range(piece.part)
        read += record.payload[held.start : held.stop][piece.start : piece.stop]
    assert read == record.payload[start:stop]


@pytest.mark.parametrize("bit", range(0, 8 * HEAD_BYTES, 7))
def test_a_flipped_bit_is_found(bit):
    damaged = bytearray(HEAD.data)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidData):
        parse_head(damaged)


@given(st.binary(max_size=2 * HEAD_BYTES))
def test_bytes_that_are_no_head_are_found(data):
    with pytest.raises(InvalidData):
        parse_head(data)


@pytest.mark.parametrize(
    ("inline_bytes", "part_bytes"),
    [
        (0, PART_BYTES_MIN),
        (INLINE_BYTES_MAX, 1),
        (INLINE_BYTES_MAX, 0),
        (INLINE_BYTES_MAX, limits.VALKEY_VALUE_BYTES_MAX + 1),
    ],
)
def test_a_forged_plan_with_a_right_checksum_is_refused(inline_bytes, part_bytes):
    forged = HEAD.data[:136] + inline_bytes.to_bytes(4, "little") + part_bytes.to_bytes(4, "little")
    with pytest.raises(InvalidData):
        parse_head(forged + checksum(forged))


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_found_again_by_the_name_of_its_head(key):
    keys = ValkeyKeys("some.prefix")
    assert keys.storage_key(keys.head(StorageKey(key))) == key
    for part in keys.parts(StorageKey(key), HEAD, range(HEAD.parts)):
        assert keys.storage_key(part) is None
        assert part.startswith(keys.head(StorageKey(key)))


@pytest.mark.parametrize(
    "name", [b"", b"other:00:{00}", b"p:" + b"0" * 32 + b":{" + b"0" * 31 + b"}", b"p:zz:{zz}", b"\xff"]
)
def test_a_name_that_is_none_of_ours_has_no_key(name):
    assert ValkeyKeys("p").storage_key(name) is None
