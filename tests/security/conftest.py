"""A daemon in the test's own process, on a real socket: its limits can be turned down, and its inside looked at."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvloom.clients import wire
from kvloom.daemon.caller import Caller
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import RunningDaemon, open_daemon


@dataclass(frozen=True)
class RawAnswer:
    """What came back over a connection: the first answer's parts, and whether it was the last."""

    status: int
    head: str
    body: bytes
    closed: bool

    def json(self):
        return json.loads(self.body)


@dataclass(frozen=True)
class Edge:
    """The running daemon and a way to send it any bytes."""

    running: RunningDaemon

    @property
    def me(self) -> Caller:
        """The caller that this user's own programs are."""
        return self.running.authenticator.local

    def stats(self) -> wire.DaemonStats:
        return self.running.service.stats(self.me)

    async def connect(self, **options: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.running.endpoint.host, self.running.endpoint.port, **options)

    async def send(self, data: bytes, *, head_only: bool = False) -> RawAnswer | None:
        """Send ``data`` over a connection of its own; ``None`` where it is closed without an answer."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
            body = b"" if head_only else await reader.readexactly(length)
            closed = "connection: close" in head.decode("latin-1").lower() or lines[0].startswith("HTTP/1.0 ")
            return RawAnswer(int(lines[0].split()[1]), head.decode("latin-1"), body, closed)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        finally:
            writer.close()

    async def ask(
        self, method: str, target: str, *headers: str, body: bytes = b"", host: str = "localhost"
    ) -> RawAnswer:
        """A request with a Host and a Content-Length."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *headers, "", ""]
        answer = await self.send("\r\n".join(lines).encode("latin-1") + body, head_only=method == "HEAD")
        assert answer is not None
        return answer


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    """A daemon without a disk tier."""
    text = ConfigText(port="0", data_dir=str(tmp_path / "data"), memory="256MiB", ssd="off")
    async with open_daemon(resolve_config(text, probe_machine(text.directory()))) as running:
        yield Edge(running)
