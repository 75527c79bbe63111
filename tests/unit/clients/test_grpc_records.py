"""Records and the messages of the proto file say the same, and the committed messages are those of the file."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

import kvloom
from kvloom.clients import kv_events, leases, plan_wire, pool_wire, scrubs, tenancy, wire
from kvloom.clients.grpc_records import parse_message, read_record, to_message
from kvloom.clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from kvloom.codec.level import Level, LossyCodec
from kvloom.errors import InvalidRequest, UnknownLevel
from kvloom.kvstore.key import ModelIdentity
from kvloom.kvstore.tier import Ack

PROTO = Path(kvloom.__file__).parent / "clients" / "proto"
ASIDE = {"NoQuestion", "Layers", "PutHead", "PutFrame", "PutResult", "Failure", "GetQuestion", "BatchQuestion", "Event"}
"""Messages without a record: questions that HTTP puts into paths and headers, frames, and one of several."""
RECORDS = {
    name: record
    for module in (wire, kv_events, leases, plan_wire, pool_wire, scrubs, tenancy)
    for name in module.__all__
    if dataclasses.is_dataclass(record := getattr(module, name))
}
RECORDS["ModelIdentity"] = ModelIdentity

small = st.integers(0, 2**31 - 1)
keys = st.binary(min_size=32, max_size=32)
names = st.text(max_size=8)
entries = st.builds(wire.ChunkEntry, keys, small, small, st.lists(names).map(tuple), st.none() | small)
levels = st.sampled_from([Level(2, "standard"), Level(255, "exact")])


@pytest.mark.parametrize("name", sorted(pb.DESCRIPTOR.message_types_by_name))
def test_a_message_has_the_fields_of_its_record(name):
    fields = {field.name for field in pb.DESCRIPTOR.message_types_by_name[name].fields}
    if name in RECORDS and name not in ASIDE:
        assert fields == {field.name for field in dataclasses.fields(RECORDS[name])}
    else:
        assert name in ASIDE or name.endswith(("Frame", "Head", "Question"))


@given(
    st.builds(
        wire.ChunkDetail,
        entries,
        small,
        small,
        small,
        names,
        keys,
        small,
        st.lists(st.builds(wire.LevelBytes, levels, small)).map(tuple),
        st.none() | keys,
        st.none() | st.sampled_from(LossyCodec),
    )
)
def test_a_record_survives_the_way_there_and_back(record):
    message = parse_message(pb.ChunkDetail, to_message(record, pb.ChunkDetail).SerializeToString())
    assert read_record(wire.ChunkDetail, message) == record


@given(st.lists(keys.map(bytes.hex), min_size=1).map(tuple), st.none() | small)
def test_keys_are_hexadecimal_in_records_and_bytes_in_messages(hexadecimal, tokens):
    record = wire.PrefixCount(len(hexadecimal), tokens, hexadecimal)
    message = to_message(record, pb.PrefixCount)
    assert list(message.keys) == [bytes.fromhex(key) for key in hexadecimal]
    assert read_record(wire.PrefixCount, message) == record


@pytest.mark.parametrize("ack", Ack)
def test_an_ack_is_an_enumeration(ack):
    assert read_record(wire.PutReply, to_message(wire.PutReply(ack), pb.PutReply)) == wire.PutReply(ack)


def test_a_question_of_keys_has_no_tokens():
    question = read_record(wire.PrefixQuestion, pb.PrefixQuestion(keys=[bytes(32)]))
    assert question == wire.PrefixQuestion(keys=("00" * 32,))


def test_what_no_record_can_be_is_refused():
    with pytest.raises(InvalidRequest, match="fingerprint has 3 bytes"):
        read_record(wire.PrefixQuestion, pb.PrefixQuestion(identity=pb.ModelIdentity(fingerprint=b"abc")))
    with pytest.raises(UnknownLevel):
        read_record(wire.LevelBytes, pb.LevelBytes(level="best"))
    with pytest.raises(InvalidRequest, match="ack is 9"):
        read_record(wire.PutReply, pb.PutReply(ack=9))
    with pytest.raises(InvalidRequest, match="are no KeysQuestion"):
        parse_message(pb.KeysQuestion, b"\xff\xff")


def test_the_messages_are_those_of_the_proto_file(tmp_path):
    """Whatever compiler is installed; the generated text differs from one to the next, what it describes does not."""
    target = tmp_path / "descriptors"
    source = "kvloom/v1alpha1/kvloom.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={target}", source]
    subprocess.run(command, check=True, cwd=PROTO)
    (described,) = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(committed)
    for file in (described, committed):
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert described == committed
