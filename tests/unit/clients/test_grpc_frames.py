"""Frames written and read by hand are what a protobuf library writes and reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.grpc_frames import RawFrame, encode_frame, split_frames
from kvloom.clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from kvloom.errors import InvalidRequest

heads = st.builds(
    pb.ChunkHead,
    total_bytes=st.integers(0, 2**64 - 1),
    tier=st.text(max_size=20),
    levels=st.lists(st.text(max_size=9), max_size=4),
)


@given(heads, st.lists(st.binary(max_size=200), max_size=4))
def test_what_is_written_a_library_reads(head, parts):
    frame = encode_frame(pb.ChunkFrame(head=head).SerializeToString(), parts)
    assert pb.ChunkFrame.FromString(frame) == pb.ChunkFrame(head=head, data=b"".join(parts))


@given(heads, st.binary(max_size=70_000))
def test_what_a_library_writes_is_read(head, data):
    raw = RawFrame.decode(pb.ChunkFrame(head=head, data=data).SerializeToString())
    assert pb.ChunkFrame.FromString(raw.fields) == pb.ChunkFrame(head=head)
    assert raw.data == data


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    try:
        raw = RawFrame.decode(data)
    except InvalidRequest:
        return
    assert len(raw.fields) + len(raw.data) <= len(data)


@pytest.mark.parametrize("data", [b"\x1a", b"\x1a\x05abc", b"\xff" * 11, b"\x0b", b"\x1a\xff\xff\xff\xff\x7f"])
def test_a_frame_that_is_cut_off_is_refused(data):
    with pytest.raises(InvalidRequest):
        RawFrame.decode(data)


@given(st.lists(st.binary(max_size=50), max_size=12), st.integers(1, 40))
def test_parts_are_gathered_into_full_frames(parts, frame_bytes):
    frames = list(split_frames(parts, frame_bytes))
    sizes = [sum(map(len, frame)) for frame in frames]
    assert b"".join(view for frame in frames for view in frame) == b"".join(parts)
    assert all(size == frame_bytes for size in sizes[:-1])
    assert not sizes or 0 < sizes[-1] <= frame_bytes
