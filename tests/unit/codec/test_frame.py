import pytest

from kvloom.codec.frame import FrameReader
from kvloom.errors import InvalidData


def test_bytes_come_off_the_front_and_none_is_left() -> None:
    reader = FrameReader(b"abcdef", what="thing")
    assert [reader.take(count) for count in (2, 0, 4)] == [b"ab", b"", b"cdef"]
    reader.expect_end()


def test_more_than_there_is_names_what_it_is_of_and_both_counts() -> None:
    reader = FrameReader(b"abcdef", what="thing")
    reader.take(4)
    with pytest.raises(InvalidData, match="thing ends after 6 bytes, 7 are needed"):
        reader.take(3)
    with pytest.raises(InvalidData, match="thing has 2 bytes left over"):
        reader.expect_end()
