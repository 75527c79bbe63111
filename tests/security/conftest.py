"""A daemon in the test's own process, on a real socket: its limits can be turned down, and its inside looked at."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from kvloom.clients import wire
from kvloom.clients.access import TOKEN_NAME
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.caller import Caller, Scope
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.credentials import NewKey, new_key
from kvloom.daemon.credentials_file import CREDENTIALS_NAME, CredentialsFile
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
    data_dir: Path

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

    @property
    def key(self) -> str:
        """The header by which this user's programs are known."""
        return f"Authorization: Bearer {(self.data_dir / TOKEN_NAME).read_text()}"

    async def ask(
        self,
        method: str,
        target: str,
        *headers: str,
        body: bytes = b"",
        host: str = "localhost",
        key: str | None = "",
    ) -> RawAnswer:
        """A request with a Host, a Content-Length and, unless ``key`` is another header or None, the user's token."""
        known = [] if key is None else [key or self.key]
        sized = [f"Host: {host}", f"Content-Length: {len(body)}"]
        lines = [f"{method} {target} HTTP/1.1", *sized, *known, *headers, "", ""]
        answer = await self.send("\r\n".join(lines).encode("latin-1") + body, head_only=method == "HEAD")
        assert answer is not None
        return answer

    async def grant(self, tenant: str, *scopes: Scope, expires: datetime | None = None) -> NewKey:
        """A new key, made as ``kvloom keys create`` makes one, that the daemon knows when this returns."""
        known = self.running.authenticator
        made = new_key(os.urandom(38), tenant=tenant, scopes=scopes or (*Scope,), now=utc_now(), expires=expires)
        await asyncio.to_thread(self.credentials.add, made, known.tenants.secret)
        await self.reload()
        assert made.key.key_id in known.tenants.credentials.keys
        return made

    async def reload(self) -> None:
        """Have the credentials file taken over, as SIGHUP does, and wait for it."""
        before = self.running.authenticator.tenants
        self.running.reload.set()
        async with asyncio.timeout(30):
            while self.running.authenticator.tenants is before:  # noqa: ASYNC110
                await asyncio.sleep(0)

    @property
    def credentials(self) -> CredentialsFile:
        return CredentialsFile(self.data_dir / CREDENTIALS_NAME)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    """A daemon without a disk tier."""
    text = ConfigText(port="0", data_dir=str(tmp_path / "data"), memory="256MiB", ssd="off")
    async with open_daemon(resolve_config(text, probe_machine(text.directory()))) as running:
        yield Edge(running, text.directory())
