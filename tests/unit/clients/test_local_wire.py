"""Frames of the Unix socket: what is written is read again, and nothing else is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients.local_replies import Failed, GetReply, Granted, Inline, Later, Mapped
from kvloom.clients.local_wire import (
    FRAME_BYTES,
    Frame,
    GetQuestion,
    Kind,
    PutQuestion,
    decode_error,
    decode_keys,
    encode_error,
)
from kvloom.codec.container import ByteRange
from kvloom.codec.level import DRAFT, EXACT, FINE
from kvloom.errors import InvalidRequest, KvloomError, LevelNotStored, NotFound
from kvloom.kvstore.tier import Ack

keys = st.binary(min_size=32, max_size=32)
words = st.integers(0, 2**64 - 1)
ranges = st.builds(ByteRange, words, words)
mapped = st.builds(
    Mapped,
    lease=words,
    segment=words,
    ranges=st.lists(ranges, max_size=4).map(tuple),
    tier=st.sampled_from(["memory", "gpu", ""]),
    header=st.binary(max_size=40),
    word_sum=st.none() | words,
    kept=st.booleans(),
)
results = mapped | st.builds(Inline, st.tuples(st.binary(max_size=50)), st.just("ssd")) | st.builds(Later)


@given(st.sampled_from([Kind.CONTAINS, Kind.GET, Kind.STATS]), st.integers(0, 2**32 - 1))
def test_frames_come_back(kind, number):
    frame = Frame(kind, number, 0)
    assert Frame.decode(frame.encode(), reply=False) == frame
    assert Frame.decode(frame.encode(), reply=True) == frame


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ((b"KVLC", 1, 1, 0, 0, 0), "frame starts with b'KVLC'"),
        ((b"KVLL", 1, 1, 0, 0, 0), "version 1"),
        ((b"KVLL", 3, 0, 0, 0, 0), "kind 0"),
        ((b"KVLL", 3, 14, 0, 0, 0), "kind 14"),
        ((b"KVLL", 3, 255, 0, 0, 0), "kind 255"),
        ((b"KVLL", 3, 1, 0, 0, 257), "HELLO frame declares 257 bytes, the limit is 256"),
        ((b"KVLL", 3, 2, 0, 0, 32 * limits.KEYS_PER_REQUEST_MAX + 1), "the limit is 320000"),
        ((b"KVLL", 3, 4, 0, 0, 2**32 - 1), "GET frame declares 4294967295 bytes"),
        ((b"KVLL", 3, 5, 0, 0, limits.CONTAINER_BYTES_MAX + 97), "PUT frame declares"),
        ((b"KVLL", 3, 5, 2, 0, 96), "declares 2 descriptors"),
    ],
)
def test_frames_out_of_bounds_are_refused_by_their_header(fields, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        Frame.decode(struct.pack("<4sBBHII", *fields), reply=False)


@given(st.binary(min_size=FRAME_BYTES, max_size=FRAME_BYTES))
def test_any_bytes_are_a_frame_within_bounds_or_refused(data):
    try:
        frame = Frame.decode(data, reply=False)
    except InvalidRequest:
        return
    assert frame.body_bytes <= limits.CONTAINER_BYTES_MAX + 100


@given(st.lists(keys, min_size=1, max_size=5), st.sampled_from([None, DRAFT, FINE, EXACT]), st.booleans())
def test_get_questions_come_back(asked, level, through_socket):
    for layers in (None, range(1), range(3, 30), range(limits.LAYERS_MAX)):
        question = GetQuestion(asked, level, layers, through_socket)
        assert GetQuestion.decode(question.encode()) == question


@pytest.mark.parametrize("change", [{0: 77}, {1: 2}, {2: 9}, {6: 2}, {6: 0}])
def test_get_questions_that_do_not_hold_are_refused(change):
    body = bytearray(GetQuestion([bytes(32)], EXACT, range(2, 4)).encode())
    for place, value in change.items():
        body[place] = value
    with pytest.raises(InvalidRequest):
        GetQuestion.decode(bytes(body))


@pytest.mark.parametrize("body", [b"", b"\x00" * 7, GetQuestion([bytes(32)]).encode()[:-1]])
def test_short_get_questions_are_refused(body):
    with pytest.raises(InvalidRequest):
        GetQuestion.decode(body)


def test_put_questions_come_back():
    for ack in Ack:
        for offset in (None, 0, 4096):
            for parent in (None, b"p" * 32):
                for ttl in (None, 0.001, 3600.5):
                    question = PutQuestion(bytes(range(32)), ack, 1000, offset, parent, ttl)
                    assert PutQuestion.decode(question.encode()) == question
    for wrong in ((2, 0, 0, 0), (0, 2, 0, 0), (0, 1, 2**63, 0), (0, 0, 0, limits.CONTAINER_BYTES_MAX + 1)):
        ack, passed, offset, length = wrong
        with pytest.raises(InvalidRequest):
            PutQuestion.decode(struct.pack("<32sBBHIQQ40x", bytes(32), ack, passed, 0, 0, offset, length))


@pytest.mark.parametrize("size", [88, 95, 97])
def test_a_put_question_of_another_size_is_refused(size):
    with pytest.raises(InvalidRequest, match=f"has {size} bytes, must have 96"):
        PutQuestion.decode(bytes(size))


def test_a_put_question_with_a_time_to_live_past_the_limit_is_refused():
    body = PutQuestion(bytes(range(32)), Ack.MEMORY, 1000).encode()[:-8] + struct.pack("<Q", 2**63)
    with pytest.raises(InvalidRequest, match="time to live"):
        PutQuestion.decode(body)


@given(
    st.lists(results, max_size=5).map(tuple),
    st.lists(st.builds(Granted, words, words), max_size=3).map(tuple),
    st.lists(words, max_size=3).map(tuple),
)
def test_get_replies_come_back(found, granted, gone):
    body = b"".join(bytes(part) for part in GetReply(found, granted, gone).encode())
    assert GetReply.decode(body) == GetReply(found, granted, gone)


def test_errors_in_replies_come_back():
    body = b"".join(GetReply((Failed(LevelNotStored("not at exact")),)).encode())
    (result,) = GetReply.decode(body).results
    assert isinstance(result.error, LevelNotStored)
    assert str(result.error) == "not at exact"
    assert isinstance(decode_error(encode_error(NotFound("gone"))), NotFound)


@given(st.lists(mapped | st.builds(Later), max_size=3).map(tuple), st.data())
def test_cut_and_changed_replies_are_refused_or_hold(found, data):
    body = b"".join(bytes(part) for part in GetReply(found, (Granted(1, 2),), (3,)).encode())
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(InvalidRequest):
        GetReply.decode(body[:cut])
    changed = bytearray(body)
    changed[cut] ^= data.draw(st.integers(1, 255))
    try:
        GetReply.decode(bytes(changed))
    except KvloomError:
        return


def test_keys_are_whole():
    assert decode_keys(bytes(64)) == [bytes(32), bytes(32)]
    with pytest.raises(InvalidRequest, match="33 bytes together"):
        decode_keys(bytes(33))
