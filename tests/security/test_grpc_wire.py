"""HTTP/2 as no gRPC client speaks it, over a real port: slow and silent peers, floods, text that is none."""

import asyncio
import contextlib
import struct

import grpc
import pytest
from grpc_health.v1 import health_pb2

from kvloom import limits
from kvloom.clients.access import TOKEN_NAME
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.grpc_api import SERVICE_NAME
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import open_daemon

WAIT_SECONDS = 60
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_HEADERS, END_STREAM = 4, 1


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name, value):
    """One header, without a table and without Huffman's code (RFC 7541, 6.2.2)."""

    def text(data):
        return (bytes([len(data)]) if len(data) < 127 else b"\x7f" + bytes([len(data) - 127])) + data

    return b"\0" + text(name) + text(value)


class Peer:
    """One daemon with gRPC, spoken to in bytes and by a client."""

    def __init__(self, running, port, token):
        self.running, self.port, self.token = running, port, token

    def call(self, method):
        return b"".join(
            field(name, value)
            for name, value in (
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", f"/{SERVICE_NAME}/{method}".encode()),
                (b":authority", b"localhost"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"authorization", f"Bearer {self.token}".encode()),
            )
        )

    async def say(self, data, *, until=None):
        """What comes back to ``data`` until the daemon closes the connection, or has said ``until``."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        said = b""
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                async with asyncio.timeout(WAIT_SECONDS):
                    while (until is None or until not in said) and (part := await reader.read(65536)):
                        said += part
            return said
        finally:
            writer.transport.abort()

    async def health(self):
        """What a sound client hears."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            ask = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            return (await ask(health_pb2.HealthCheckRequest(), timeout=WAIT_SECONDS)).status


@pytest.fixture
async def peer(tmp_path):
    text = ConfigText(port="0", grpc_port="0", data_dir=str(tmp_path / "data"), memory="64MiB", ssd="off")
    async with open_daemon(resolve_config(text, probe_machine(text.directory()))) as running:
        token = (tmp_path / "data" / TOKEN_NAME).read_text()
        peer = Peer(running, DaemonNote.read(tmp_path / "data").grpc_port, token)
        yield peer
        assert await peer.health() == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(WAIT_SECONDS):
            while running.service.admission.requests or running.service.admission.inflight_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_slow_and_silent_peers_are_closed(peer):
    """Each says a little and then nothing; all of them at once, since each takes seconds by its nature."""
    begun = PREFACE + frame(SETTINGS, 0, 0)
    half_head = frame(HEADERS, 0, 1, peer.call("Tenant")[:20])
    await asyncio.gather(
        peer.say(b""),
        peer.say(PREFACE[:10]),
        peer.say(begun[:-3]),
        peer.say(begun),
        peer.say(begun + half_head),
        peer.say(begun + half_head + frame(CONTINUATION, 0, 1, b"") * 3),
    )


async def test_a_call_that_sends_nothing_or_half_a_message_is_ended(peer, monkeypatch):
    monkeypatch.setattr(limits, "PROGRESS_SECONDS_MAX", 0.2)
    begun = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, peer.call("Put"))
    half = frame(DATA, 0, 1, b"\0" + struct.pack(">I", 1000) + b"x" * 10)
    for data in (begun, begun + half):
        assert b"no message came" in await peer.say(data, until=b"no message came")


async def test_calls_taken_back_at_once_by_the_thousand_hold_up_nobody(peer):
    """Rapid reset (CVE-2023-44487)."""
    head = peer.call("Tenant")
    flood = b"".join(
        frame(HEADERS, END_HEADERS, stream, head) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        for stream in range(1, 8000, 2)
    )
    flooding = asyncio.create_task(peer.say(PREFACE + frame(SETTINGS, 0, 0) + flood))
    assert await peer.health() == health_pb2.HealthCheckResponse.SERVING
    flooding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flooding


async def test_floods_and_nonsense_end_the_connection_or_are_ignored(peer):
    floods = {
        "pings": frame(PING, 0, 0, bytes(8)) * 20_000,
        "settings": frame(SETTINGS, 0, 0) * 20_000,
        "data of no call": frame(DATA, 0, 0, b"x" * 100),
        "endless head": frame(HEADERS, 0, 1, b"x" * 10) + frame(CONTINUATION, 0, 1, b"x" * 1000) * 1000,
        "no head": frame(HEADERS, END_HEADERS, 1, b"\xff" * 3000),
        "even stream": frame(HEADERS, END_HEADERS, 2, b""),
        "unknown frames": frame(77, 0xFF, 0x7FFFFFFF, b"x" * 1000) * 100,
        "noise": b"\xff" * 100_000,
    }
    await asyncio.gather(*(peer.say(PREFACE + frame(SETTINGS, 0, 0) + flood) for flood in floods.values()))


async def test_more_calls_at_once_than_a_connection_may_have_are_refused(peer):
    head = peer.call("Tenant")
    many = range(1, 2 * limits.GRPC_STREAMS_PER_CONNECTION_MAX + 200, 2)
    calls = b"".join(frame(HEADERS, END_HEADERS, stream, head) for stream in many)
    talking = asyncio.create_task(peer.say(PREFACE + frame(SETTINGS, 0, 0) + calls))
    assert await peer.health() == health_pb2.HealthCheckResponse.SERVING
    assert peer.running.service.admission.connections <= 2
    talking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await talking


def string_fields():
    """Every method, with a message of each of its text fields that holds bytes which are no text."""
    for method in pb.DESCRIPTOR.services_by_name["Kvloom"].methods:
        for item in method.input_type.fields:
            if item.type == item.TYPE_STRING:
                yield method.name, item.name, bytes([item.number << 3 | 2, 2]) + b"\xff\xfe"


@pytest.mark.parametrize(("method", "name", "message"), list(string_fields()))
async def test_text_that_is_none_is_an_invalid_argument(peer, method, name, message):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}") as channel:
        call = channel.stream_stream(f"/{SERVICE_NAME}/{method}")(
            iter([message]), metadata=(("authorization", f"Bearer {peer.token}"),), timeout=WAIT_SECONDS
        )
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, name


@pytest.mark.parametrize("value", [b"\xff\xfe", b"\0", b"x" * 5000])
async def test_metadata_that_is_no_text_is_ignored(peer, value):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}") as channel:
        metadata = (("authorization", f"Bearer {peer.token}"), ("x-request-id-bin", value))
        call = channel.stream_stream(f"/{SERVICE_NAME}/Tenant")(iter([b""]), metadata=metadata, timeout=WAIT_SECONDS)
        assert len([message async for message in call]) == 1
        assert await call.code() is grpc.StatusCode.OK


async def test_more_metadata_than_fits_is_refused(peer):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}") as channel:
        metadata = [("authorization", f"Bearer {peer.token}"), *((f"x-{n}", "v" * 1000) for n in range(40))]
        call = channel.stream_stream(f"/{SERVICE_NAME}/Tenant")(iter([b""]), metadata=metadata, timeout=WAIT_SECONDS)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
