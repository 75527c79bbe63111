"""A chunk's place in the tree of prefixes, packed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.errors import InvalidData
from kvloom.kvstore.attributes import (
    ATTRIBUTES_BYTES,
    UNATTRIBUTED,
    ChunkAttributes,
    pack_attributes,
    unpack_attributes,
)
from kvloom.kvstore.key import StorageKey

OWNER, OTHER = b"o" * 16, b"x" * 16
KEY = StorageKey(OWNER + b"k" * 16)
NUMBERS = st.integers(0, limits.POSITION_MAX)


@given(place=st.none() | st.binary(min_size=16, max_size=16).filter(any), start=NUMBERS, tokens=NUMBERS)
def test_what_is_packed_comes_back(place: bytes | None, start: int, tokens: int) -> None:
    parent = None if place is None else StorageKey(OWNER + place)
    attributes = ChunkAttributes(parent, start, tokens)
    packed = pack_attributes(KEY, attributes)
    assert len(packed) == ATTRIBUTES_BYTES
    assert unpack_attributes(KEY, packed) == (ChunkAttributes(None, start, tokens) if parent == KEY else attributes)


def test_no_parent_of_another_owner_and_no_chunk_before_itself() -> None:
    for parent in (StorageKey(OTHER + b"p" * 16), KEY):
        assert unpack_attributes(KEY, pack_attributes(KEY, ChunkAttributes(parent, 5, 6))) == ChunkAttributes(
            None, 5, 6
        )


def test_a_record_of_which_nothing_is_known_stays_one() -> None:
    assert unpack_attributes(KEY, pack_attributes(KEY, UNATTRIBUTED)) == UNATTRIBUTED


@pytest.mark.parametrize("numbers", [(-1, 1), (0, -1), (limits.POSITION_MAX + 1, 1), (0, 2**32 - 1)])
def test_numbers_that_no_chunk_has_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(InvalidData, match=str(limits.POSITION_MAX)):
        ChunkAttributes(None, *numbers)
    packed = bytes(16) + b"".join((number % 2**32).to_bytes(4, "little") for number in numbers)
    with pytest.raises(InvalidData):
        unpack_attributes(KEY, packed)
