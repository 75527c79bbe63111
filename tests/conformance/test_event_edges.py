"""One suite against both streams of KV events of a real daemon, server-sent and over gRPC: the same fields and ends."""

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import pytest

from kvloom import errors, limits
from kvloom.clients.access import TOKEN_NAME
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from kvloom.codec.level import EXACT
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.grpc_api import SERVICE_NAME
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import RunningDaemon, open_daemon
from kvloom.kvstore.tier import Ack

SECONDS = 60


@dataclass(frozen=True)
class Told:
    """One event as it came: its name, its id in the stream, its fields."""

    name: str
    number: int
    fields: dict


class Stream(ABC):
    """One subscription."""

    @abstractmethod
    async def next(self) -> Told | None:
        """The next event, past what only says that the stream is alive; ``None`` at the end."""


class ServerSent(Stream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> Told | None:
        fields: dict[str, str] = {}
        while line := (await self._response.content.readline()).decode():
            if line == "\n" and fields:
                return Told(fields["event"], int(fields["id"]), json.loads(fields["data"]))
            if line != "\n" and not line.startswith(":"):
                name, _, value = line.rstrip("\n").partition(": ")
                fields[name] = value
        return None


class OverGrpc(Stream):
    def __init__(self, call) -> None:
        self._call = call

    async def next(self) -> Told | None:
        while (event := await self._call.read()) is not grpc.aio.EOF:
            kind = event.WhichOneof("event")
            if kind is None:
                continue
            said = getattr(event, kind)
            fields = {item.name: None for item in said.DESCRIPTOR.fields if item.has_presence}
            for item, value in said.ListFields():
                fields[item.name] = [part.hex() for part in value] if item.is_repeated else value
            if isinstance(fields.get("parent_block_hash"), bytes):
                fields["parent_block_hash"] = fields["parent_block_hash"].hex()
            return Told(type(said).__name__, event.id, fields)
        return None


@dataclass(frozen=True)
class Edge:
    """A daemon, and how to subscribe over one of its edges."""

    name: str
    running: RunningDaemon
    note: DaemonNote
    token: str
    stack: AsyncExitStack

    async def subscribe(self, *, last_event_id: int | None = None) -> Stream:
        """A stream that is subscribed; raises the error that the daemon refuses it with."""
        if self.name == "http":
            headers = {"Authorization": f"Bearer {self.token}"}
            if last_event_id is not None:
                headers["Last-Event-ID"] = str(last_event_id)
            session = await self.stack.enter_async_context(aiohttp.ClientSession())
            response = await session.get(f"{self.note.endpoint.url}/events", headers=headers)
            if response.status != 200:
                raise errors.error_for_code((await response.json())["error"])
            assert await response.content.readline() == b": alive\n"
            return ServerSent(response)
        channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(str(self.note.grpc_endpoint)))
        call = channel.unary_stream(
            f"/{SERVICE_NAME}/Events",
            request_serializer=pb.EventsQuestion.SerializeToString,
            response_deserializer=pb.Event.FromString,
        )(pb.EventsQuestion(last_event_id=last_event_id), metadata=(("authorization", f"Bearer {self.token}"),))
        try:
            assert await call.read() == pb.Event()
        except grpc.aio.AioRpcError as error:
            raise errors.error_for_code(dict(error.trailing_metadata())["kvloom-error"]) from error
        return OverGrpc(call)


@pytest.fixture(params=["http", "grpc"])
async def edge(request, tmp_path: Path) -> AsyncIterator[Edge]:
    data_dir = tmp_path / "data"
    text = ConfigText(port="0", grpc_port="0", data_dir=str(data_dir), memory="16MiB", ssd="64MiB")
    async with open_daemon(resolve_config(text, probe_machine(data_dir))) as running, AsyncExitStack() as stack:
        token = (data_dir / TOKEN_NAME).read_text()
        yield Edge(request.param, running, DaemonNote.read(data_dir), token, stack)


async def several(stream: Stream, count: int) -> list[Told]:
    async with asyncio.timeout(SECONDS):
        return [await stream.next() for _ in range(count)]


async def test_what_is_stored_where_and_what_is_forgotten_is_told_with_the_same_fields(edge, container_bytes):
    stream = await edge.subscribe()
    me, service = edge.running.authenticator.local, edge.running.service
    parent, key = os.urandom(32), os.urandom(32)
    data = container_bytes([EXACT], content_key=key, first_position=5)
    await service.put(me, key, data, ack=Ack.DISK, parent=parent)
    seen = await several(stream, 2)
    assert [(told.name, told.number) for told in seen] == [("BlockStored", 1), ("BlockStored", 2)]
    assert {told.fields["medium"]: told.fields["tier"] for told in seen} == {"disk": "ssd", "cpu": "memory"}
    for told in seen:
        assert {name: value for name, value in told.fields.items() if name not in ("medium", "tier")} == {
            "block_hashes": [key.hex()],
            "parent_block_hash": parent.hex(),
            "block_size": 5,
            "start": 5,
            "size_bytes": len(data),
        }
    await service.delete(me, key)
    seen = await several(stream, 2)
    assert [(told.name, told.number, told.fields["block_hashes"]) for told in seen] == [
        ("BlockRemoved", 3, [key.hex()]),
        ("BlockRemoved", 4, [key.hex()]),
    ]
    assert {told.fields["medium"] for told in seen} == {"disk", "cpu"}


async def test_a_stream_that_is_resumed_begins_with_a_loss(edge):
    stream = await edge.subscribe(last_event_id=17)
    assert await several(stream, 1) == [Told("EventsLost", 1, {"count": None})]


async def test_who_does_not_read_is_told_how_much_was_lost_and_holds_up_nobody(edge):
    """More events than may wait come in one turn of the loop, in which nobody can send any."""
    stream = await edge.subscribe()
    owner, hub = edge.running.authenticator.local.namespace.owner, edge.running.service._hub
    surplus = 100
    for number in range(limits.EVENTS_QUEUED_MAX + surplus):
        hub.note_pool(owner, "cuda:0", (number.to_bytes(32, "big"),), ())
    first, second = await several(stream, 2)
    assert first == Told("EventsLost", 1, {"count": surplus})
    assert (second.name, second.number, second.fields["medium"]) == ("BlockStored", 2, "gpu")
    await several(stream, limits.EVENTS_QUEUED_MAX - 1)
    hub.note_pool(owner, "cuda:0", (), (bytes(32),))
    assert (await several(stream, 1))[0].name == "BlockRemoved"


async def test_a_tenant_may_have_so_many_streams_and_no_more_until_one_ends(edge):
    for _ in range(limits.EVENT_SUBSCRIBERS_PER_TENANT_MAX):
        await edge.subscribe()
    with pytest.raises(errors.TenantOverloaded):
        await edge.subscribe()
    await edge.stack.aclose()  # whoever hangs up is no subscriber any more
    hub = edge.running.service._hub
    async with asyncio.timeout(SECONDS):
        while hub.subscribers:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_streams_end_when_the_daemon_drains_and_none_begins(edge):
    stream = await edge.subscribe()
    edge.running.service._hub.close()
    assert await several(stream, 1) == [None]
    with pytest.raises(errors.Overloaded):
        await edge.subscribe()


async def test_another_tenants_events_are_not_told(edge):
    stream = await edge.subscribe()
    hub = edge.running.service._hub
    hub.note_pool(b"x" * 16, "cuda:0", (bytes(32),), ())
    hub.note_pool(edge.running.authenticator.local.namespace.owner, "cuda:0", (b"m" * 32,), ())
    assert (await several(stream, 1))[0].fields["block_hashes"] == [(b"m" * 32).hex()]


async def test_an_alive_stream_without_events_says_so(edge, monkeypatch):
    monkeypatch.setattr(limits, "EVENT_HEARTBEAT_SECONDS", 0.01)
    stream = await edge.subscribe()
    async with asyncio.timeout(SECONDS):
        if isinstance(stream, OverGrpc):
            assert await stream._call.read() == pb.Event()
        else:
            assert await stream._response.content.readline() == b"\n"
            assert await stream._response.content.readline() == b": alive\n"
