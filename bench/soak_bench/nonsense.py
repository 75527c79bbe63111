"""What no sound client does: broken requests and calls, bodies cut off, connections left half open, readers that stop.

The daemon may refuse each as it likes, but with no 500; what it must not do is keep anything of them.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import grpc
import grpc.aio

from kvloom.clients.discovery import Endpoint
from kvloom.clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb

from .traffic import Tally, make_chunk

__all__ = ["Nonsense", "Targets"]

SERVICE = pb.DESCRIPTOR.services_by_name["Kvloom"]
SECONDS_MAX = 20.0


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the daemon is, over HTTP, gRPC and the Unix socket, and a key that holds."""

    http: Endpoint
    grpc: str
    socket: str
    key: str


class Nonsense:
    """Sends nonsense of every kind, one after another."""

    def __init__(self, targets: Targets, tally: Tally) -> None:
        self._targets, self._tally = targets, tally
        self._channel = grpc.aio.insecure_channel(targets.grpc)

    async def run(self, seconds_between: float) -> None:
        """Until cancelled, ``seconds_between`` two of them on average."""
        acts: Sequence[Callable[[], Awaitable[None]]] = (
            self._broken_head,
            self._broken_body,
            self._cut_body,
            self._half_open,
            self._wrong_key,
            self._wrong_container,
            self._wrong_call,
            self._wrong_frames,
            self._no_grpc,
            self._events_left,
        )
        try:
            while True:
                act = random.choice(acts)
                with suppress(OSError, EOFError, TimeoutError, asyncio.IncompleteReadError, grpc.aio.BaseError):
                    async with asyncio.timeout(SECONDS_MAX):
                        await act()
                self._tally.counts[f"nonsense {act.__name__.strip('_')}"] += 1
                await asyncio.sleep(random.expovariate(1) * seconds_between)
        finally:
            await self._channel.close()

    async def _http(self, data: bytes, *, answered: bool = True) -> None:
        reader, writer = await asyncio.open_connection(self._targets.http.host, self._targets.http.port)
        try:
            writer.write(data)
            if answered:
                self._judge(await reader.read(65536), data)
        finally:
            writer.transport.abort()

    def _judge(self, said: bytes, asked: bytes) -> None:
        if said.startswith(b"HTTP/1.1 500"):
            self._tally.fault(f"500 for {asked[:100]!r}: {said[-200:]!r}")

    def _head(self, first: str, *lines: str) -> bytes:
        known = ("Host: localhost", f"Authorization: Bearer {self._targets.key}")
        return "\r\n".join((first, *known, *lines, "", "")).encode()

    async def _broken_head(self) -> None:
        await self._http(
            random.choice(
                (
                    os.urandom(200),
                    b"GET / HTTP/9.9\r\n\r\n",
                    self._head("GET /chunks/zz HTTP/1.1"),
                    self._head(f"GET /chunks/{'0' * 64}?level=best HTTP/1.1"),
                    self._head("GET /nowhere HTTP/1.1"),
                    self._head("GET /stats HTTP/1.1", *(f"X-{number}: x" for number in range(200))),
                    self._head("GET /stats HTTP/1.1", f"X-Long: {'x' * 60_000}"),
                    self._head("GET /chunks HTTP/1.1", "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(2000))),
                )
            )
        )

    async def _broken_body(self) -> None:
        body = random.choice((b"{", b"[" * 5000, b'{"keys": [1]}', b'{"keys": ["\xff\xfe"]}', os.urandom(300)))
        await self._http(self._head("POST /chunks/exists HTTP/1.1", f"Content-Length: {len(body)}") + body)

    async def _cut_body(self) -> None:
        data = make_chunk(os.urandom(32))
        head = self._head(f"PUT /chunks/{os.urandom(32).hex()} HTTP/1.1", f"Content-Length: {len(data)}")
        await self._http(head + data[: random.randrange(len(data))], answered=False)

    async def _half_open(self) -> None:
        await self._http(self._head("GET /stats HTTP/1.1")[: random.randrange(1, 40)], answered=random.random() < 0.2)

    async def _wrong_key(self) -> None:
        await self._http(b"GET /stats HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer kvl_nobody\r\n\r\n")

    async def _wrong_container(self) -> None:
        data = bytearray(make_chunk(os.urandom(32)))
        data[random.randrange(len(data))] ^= 0xFF
        head = self._head(f"PUT /chunks/{os.urandom(32).hex()} HTTP/1.1", f"Content-Length: {len(data)}")
        await self._http(head + data)

    async def _wrong_call(self) -> None:
        name = random.choice([method.name for method in SERVICE.methods if method.name not in ("Events", "Scrub")])
        call = self._channel.stream_stream(f"/{SERVICE.full_name}/{name}")(
            iter([os.urandom(random.randrange(100))]),
            metadata=(("authorization", f"Bearer {self._targets.key}"),),
            timeout=SECONDS_MAX,
        )
        with suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        if await call.code() is grpc.StatusCode.UNKNOWN:
            self._tally.fault(f"{name} of nonsense: UNKNOWN {await call.details()}")

    async def _wrong_frames(self) -> None:
        """A put that says more than it sends, or is given up in the middle."""
        head = pb.PutFrame(head=pb.PutHead(key=os.urandom(32), total_bytes=3_000_000), data=os.urandom(100_000))
        call = self._channel.stream_stream(f"/{SERVICE.full_name}/Put")(
            metadata=(("authorization", f"Bearer {self._targets.key}"),)
        )
        await call.write(head.SerializeToString())
        if random.random() < 0.5:
            await call.done_writing()
            await call.code()
        call.cancel()

    async def _no_grpc(self) -> None:
        host, _, port = self._targets.grpc.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            random.choice((os.urandom(100), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(60), b"GET /\r\n"))
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1000)
        writer.transport.abort()
        reader, writer = await asyncio.open_unix_connection(self._targets.socket)
        writer.write(os.urandom(random.randrange(100)))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1000)
        writer.transport.abort()

    async def _events_left(self) -> None:
        """Subscribe, and read nothing, or little, for some seconds."""
        reader, writer = await asyncio.open_connection(self._targets.http.host, self._targets.http.port)
        writer.write(self._head("GET /events HTTP/1.1"))
        await asyncio.sleep(random.random() * 3)
        if random.random() < 0.5:
            said = await reader.read(5000)
            self._judge(said, b"GET /events")
        writer.transport.abort()
