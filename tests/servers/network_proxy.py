"""A TCP proxy between a client and a real server that misbehaves as told: in the middle of anything."""

import asyncio
import random
import socket
import struct
import threading
from contextlib import suppress
from enum import StrEnum

GARBAGE_SEED = 11


class Fault(StrEnum):
    """What is wrong with the network."""

    NONE = "none"
    DOWN = "down"
    """Connections are refused, those that are open are closed."""
    BLACK_HOLE = "black hole"
    """Connections are taken, and not a byte comes through, either way."""
    DRIP = "one byte a second"
    """From the server."""
    RESET = "reset"
    """Every connection is reset at its first byte."""
    GARBAGE = "garbage"
    """Requests are answered with random bytes, and do not reach the server."""


class NetworkProxy:
    """Listens on ``port`` and passes on to ``target``; :attr:`fault` may be changed at any time, from any thread.

    Runs in a thread of its own, so that a busy test does not slow the network down.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._fault = Fault.NONE
        self._changed: asyncio.Event
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def set(self, fault: Fault) -> None:
        """From now on; connections that are open are treated so too."""
        asyncio.run_coroutine_threadsafe(self._set(fault), self._loop).result()

    def close(self) -> None:
        """End it with all its connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._changed = asyncio.Event()
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    async def _set(self, fault: Fault) -> None:
        was, self._fault = self._fault, fault
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if fault is Fault.DOWN:
            self._server.close()
            for writer in list(self._connections):
                writer.transport.abort()
        elif was is Fault.DOWN:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self._connections.add(writer)
        upstream = None
        try:
            with suppress(OSError, asyncio.CancelledError):  # cancelled at the end only
                upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
                self._connections.add(upstream)
                ways = (self._requests(reader, writer, upstream), self._pass(upstream_reader, writer))
                done, left = await asyncio.wait(
                    [asyncio.ensure_future(way) for way in ways], return_when=asyncio.FIRST_COMPLETED
                )
                for way in left:
                    way.cancel()
                await asyncio.gather(*done, *left, return_exceptions=True)
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._connections.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _requests(self, reader, writer, upstream) -> None:
        noise = random.Random(GARBAGE_SEED)
        while data := await reader.read(65536):
            if self._fault is Fault.RESET:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if self._fault is Fault.GARBAGE:
                writer.write(noise.randbytes(300) + b"\r\n")
                await writer.drain()
                continue
            await self._through_the_hole()
            upstream.write(data)
            await upstream.drain()

    async def _pass(self, reader, writer) -> None:
        while data := await reader.read(65536):
            if self._fault is Fault.GARBAGE:
                continue
            await self._through_the_hole()
            while data and self._fault is Fault.DRIP:
                writer.write(data[:1])
                data = data[1:]
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)
            writer.write(data)
            await writer.drain()

    async def _through_the_hole(self) -> None:
        while self._fault is Fault.BLACK_HOLE:
            await self._changed.wait()
