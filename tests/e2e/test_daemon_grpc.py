"""The gRPC interface of a real daemon, as a stranger with the proto file meets it."""

import os

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvloom import limits
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from kvloom.codec.level import EXACT
from kvloom.daemon.grpc_api import SERVICE_NAME, GrpcApi

WAIT_SECONDS = 30
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["Kvloom"].methods}


class Nobody:
    """Stands where a service would: the table of methods is made without asking anything."""

    def __getattr__(self, name):
        return None


class Stub:
    """Every method of the service, as generated code would offer them."""

    def __init__(self, channel: grpc.Channel, metadata=()) -> None:
        self._channel = channel
        self._metadata = tuple(metadata)

    def __getattr__(self, name):
        method = METHODS[name]
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        asked, answered = (getattr(pb, item.name) for item in (method.input_type, method.output_type))
        call = getattr(self._channel, kind)(f"/{SERVICE_NAME}/{name}", asked.SerializeToString, answered.FromString)

        def ask(question, metadata=(), **options):
            return call(question, timeout=WAIT_SECONDS, metadata=(*self._metadata, *metadata), **options)

        return ask


@pytest.fixture(scope="module")
def served(daemon, tmp_path_factory):
    """A daemon that the tests of this module share."""
    flags = ("--memory", "64MiB", "--ssd", "off", "--grpc-port", "0")
    process = type(daemon)(tmp_path_factory.mktemp("grpc") / "data", *flags)
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture
def metadata(served):
    """By which this user's programs are known."""
    return tuple((name.lower(), value) for name, value in served.key.items())


@pytest.fixture
def channel(served):
    with grpc.insecure_channel(f"127.0.0.1:{DaemonNote.read(served.data_dir).grpc_port}") as opened:
        yield opened


@pytest.fixture
def stub(channel, metadata):
    return Stub(channel, metadata)


def failure(call, *arguments):
    """The status, the code of kvloom and the details that a call ends with."""

    def run():
        answer = call(*arguments)
        return list(answer) if hasattr(answer, "__next__") else answer

    with pytest.raises(grpc.RpcError) as caught:
        run()
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == caught.value.code().value[0]
    return caught.value.code(), trailers["kvloom-error"], status


def frames(key, data, **head):
    yield pb.PutFrame(head=pb.PutHead(key=key, total_bytes=len(data), **head), data=data[:100])
    for start in range(100, len(data), limits.STREAM_FRAME_BYTES):
        yield pb.PutFrame(data=data[start : start + limits.STREAM_FRAME_BYTES])


def test_every_method_of_the_proto_file_is_there_and_no_other():
    assert [method.name for method in GrpcApi(Nobody(), Nobody(), Nobody()).methods] == list(METHODS)


def test_the_life_of_chunks(stub, container_bytes):
    keys = [os.urandom(32) for _ in range(3)]
    chunks = {key: container_bytes((EXACT,), content_key=key, layers=3, segment_bytes=700_000) for key in keys[:2]}
    assert stub.Put(frames(keys[0], chunks[keys[0]], ack=pb.ACK_MEMORY, ttl_seconds=60.0)).ack == pb.ACK_MEMORY
    both = [frame for key, data in chunks.items() for frame in frames(key, data)]
    assert [item.WhichOneof("result") for item in stub.PutMany(iter(both))] == ["ack", "ack"]
    answer = list(stub.Get(pb.GetQuestion(key=keys[0])))
    assert answer[0].head.total_bytes == len(chunks[keys[0]])
    assert (answer[0].head.tier, list(answer[0].head.levels)) == ("memory", ["exact"])
    assert b"".join(frame.data for frame in answer) == chunks[keys[0]]
    assert max(len(frame.data) for frame in answer) == limits.STREAM_FRAME_BYTES
    many, heads = [], []
    for frame in stub.GetMany(pb.BatchQuestion(keys=[keys[1], keys[2], keys[0]], layers=pb.Layers(first=1, last=2))):
        if frame.HasField("head"):
            heads.append(frame.head)
            many.append(b"")
        many[-1] += frame.data
    assert [head.failure.error for head in heads] == ["", "not_found", ""]
    assert [len(data) for data in many] == [head.total_bytes for head in heads]
    assert stub.Describe(pb.KeyQuestion(key=keys[1])).layers == 3
    assert {entry.key for entry in stub.List(pb.ListQuestion(limit=1000)).chunks} >= set(chunks)
    assert list(stub.Exists(pb.KeysQuestion(keys=keys)).exists) == [True, True, False]
    assert stub.LongestPrefix(pb.PrefixQuestion(keys=keys)).chunks == 2
    assert list(stub.Delete(pb.KeysQuestion(keys=keys)).deleted) == [True, True, False]


def test_pins_hints_and_prefetch(stub, container_bytes):
    key, absent = os.urandom(32), os.urandom(32)
    stub.Put(frames(key, container_bytes((EXACT,), content_key=key)))
    pinned = stub.Pin(pb.PinQuestion(keys=[key, absent], lease_seconds=30))
    assert list(pinned.pinned) == [True, False]
    assert stub.Tenant(pb.NoQuestion()).pinned_bytes > 0
    assert stub.Release(pb.ReleaseQuestion(lease=pinned.lease)).released
    assert not stub.Release(pb.ReleaseQuestion(lease=pinned.lease)).released
    assert stub.Hint(pb.HintQuestion(keys=[key], finished=True)).keys == 1
    assert stub.Prefetch(pb.KeysQuestion(keys=[key, absent])).accepted >= 1
    assert stub.DeleteNamespace(pb.NoQuestion()).records >= 1
    assert [item.namespace for item in stub.Namespaces(pb.NoQuestion()).namespaces] == ["default"]
    assert stub.Stats(pb.NoQuestion()).puts >= 1


def test_profiles_are_streamed(stub):
    from blake3 import blake3

    data = os.urandom(3 * limits.STREAM_FRAME_BYTES)
    digest = blake3(data).digest()
    parts = [
        data[start : start + limits.STREAM_FRAME_BYTES] for start in range(0, len(data), limits.STREAM_FRAME_BYTES)
    ]
    first = pb.ProfileFrame(digest=digest, total_bytes=len(data), data=parts[0])
    assert stub.PutProfile(iter([first, *(pb.ProfileFrame(data=part) for part in parts[1:])])).digest == digest
    assert b"".join(frame.data for frame in stub.GetProfile(pb.DigestQuestion(digest=digest))) == data


def test_errors_have_a_status_a_code_and_details(stub, container_bytes):
    key, other = os.urandom(32), os.urandom(32)
    data = container_bytes((EXACT,), content_key=key)
    status = grpc.StatusCode
    assert failure(stub.Get, pb.GetQuestion(key=key))[:2] == (status.NOT_FOUND, "not_found")
    assert failure(stub.Get, pb.GetQuestion(key=b"short"))[:2] == (status.INVALID_ARGUMENT, "invalid_key")
    assert failure(stub.Get, pb.GetQuestion(key=key, level="best"))[:2] == (status.INVALID_ARGUMENT, "unknown_level")
    assert failure(stub.Put, frames(other, data))[:2] == (status.FAILED_PRECONDITION, "key_mismatch")
    code, name, details = failure(stub.Pin, pb.PinQuestion(keys=[key], lease_seconds=-1))
    assert (code, name) == (status.INVALID_ARGUMENT, "invalid_request")
    info = error_details_pb2.ErrorInfo()
    assert details.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "kvloom")


def test_bad_frames_are_refused(stub, container_bytes):
    key = os.urandom(32)
    data = container_bytes((EXACT,), content_key=key, layers=4, segment_bytes=2000)
    huge = pb.PutFrame(head=pb.PutHead(key=key, total_bytes=limits.CONTAINER_BYTES_MAX + 1))
    for messages, code in (
        ([], "invalid_request"),
        ([pb.PutFrame(data=data)], "invalid_request"),
        ([pb.PutFrame(head=pb.PutHead(key=key, total_bytes=len(data)), data=data[:-1])], "truncated_body"),
        ([pb.PutFrame(head=pb.PutHead(key=key, total_bytes=len(data) - 1), data=data)], "body_too_large"),
        ([pb.PutFrame(head=pb.PutHead(key=key, total_bytes=len(data)), data=data), pb.PutFrame()], "invalid_request"),
        ([pb.PutFrame(head=pb.PutHead(key=key, total_bytes=len(data), ack=9), data=data)], "invalid_request"),
        ([pb.PutFrame(head=pb.PutHead(key=key), data=bytes(limits.GRPC_FRAME_BYTES_MAX))], "body_too_large"),
        ([huge], "body_too_large"),
    ):
        assert failure(stub.Put, iter(messages))[1] == code
    assert not stub.Exists(pb.KeysQuestion(keys=[key])).exists[0]


def test_whoever_has_no_key_is_told_nothing_else(channel, metadata):
    key = metadata[0][1]
    for wrong in ((), (("authorization", "Bearer x"),), (("authorization", key), ("authorization", key))):
        for name in METHODS.keys() - {"Health"}:
            call = channel.stream_stream(f"/{SERVICE_NAME}/{name}")
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([b""]), timeout=WAIT_SECONDS, metadata=wrong))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
    assert Stub(channel).Health(pb.NoQuestion()).phase == "ready"


def test_bytes_that_are_no_message_are_refused(channel, metadata):
    for method in METHODS.values():
        if method.input_type.name == "NoQuestion":
            continue
        call = channel.stream_stream(f"/{SERVICE_NAME}/{method.name}")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([b"\xff\xff\xff"]), timeout=WAIT_SECONDS, metadata=metadata))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name


def test_a_list_of_too_many_keys_is_refused(stub):
    keys = [bytes(32)] * (limits.KEYS_PER_REQUEST_MAX + 1)
    for call, question in (
        (stub.Exists, pb.KeysQuestion(keys=keys)),
        (stub.GetMany, pb.BatchQuestion(keys=keys)),
        (stub.LongestPrefix, pb.PrefixQuestion(keys=keys)),
        (stub.Pin, pb.PinQuestion(keys=keys, lease_seconds=1)),
    ):
        assert failure(call, question)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "too_many_items")


def test_nothing_is_decompressed(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Exists(pb.KeysQuestion(keys=[bytes(32)] * 100), compression=grpc.Compression.Gzip)
    assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL)


def test_a_message_over_the_limit_is_not_taken(channel, metadata):
    call = channel.stream_stream(f"/{SERVICE_NAME}/LongestPrefix")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([bytes(limits.GRPC_QUESTION_BYTES_MAX + 1)]), timeout=WAIT_SECONDS, metadata=metadata))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health_and_reflection(channel):
    checks = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE_NAME):
        answer = checks.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (listed,) = reflection.ServerReflectionInfo(asked, timeout=WAIT_SECONDS)
    assert SERVICE_NAME in {service.name for service in listed.list_services_response.service}


def test_a_request_id_is_repeated(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Describe(pb.KeyQuestion(key=bytes(32)), metadata=(("x-request-id", "abc-123"),))
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "abc-123"


def test_calls_are_counted(served, channel):
    Stub(channel).Health(pb.NoQuestion())
    text = served.ask("GET", "/metrics").body.decode()
    assert '\nkvloom_grpc_calls_total{call="health",status="OK"} ' in text


def test_a_port_in_use_is_refused_by_name(served, tmp_path):
    taken = str(DaemonNote.read(served.data_dir).grpc_port)
    second = served.run("serve", "--port", "0", "--data-dir", str(tmp_path / "second"), "--grpc-port", taken)
    assert second.returncode != 0
    assert f"gRPC port {taken}" in second.stderr.decode()
