"""Connections to one Valkey server or to the nodes of a cluster, and which node a key lies on.

Connections, authentication and TLS are ``valkey-py``'s. Its pools and its cluster client are not used: a command that
is cancelled must give up its connection and nothing else, a reply must be no longer than what was asked for before it
is read, and a dead node must cost nothing to the keys of the others.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, Final

from valkey._parsers import _AsyncRESP2Parser
from valkey.asyncio.connection import AbstractConnection, Connection, SSLConnection
from valkey.crc import key_slot
from valkey.exceptions import (
    AskError,
    InvalidResponse,
    MovedError,
    ResponseError,
    ValkeyError,
)
from valkey.exceptions import ConnectionError as ValkeyConnectionError

from ...errors import StorageUnavailable
from .. import network_limits as limits
from .address import HostPort, ValkeyAddress

__all__ = ["Command", "Reply", "ValkeyNode", "ValkeyNodes"]

Command = tuple[str | int | bytes | memoryview, ...]
Reply = Any
"""``bytes``, ``int``, ``None``, a list of them, or the :class:`ResponseError` that a command was answered with."""

_SLOTS: Final = 16384
_SLOT_RANGES_MAX: Final = 4096
_REPLY_BYTES_MAX: Final = limits.VALKEY_VALUE_BYTES_MAX + 64 * 1024
_REPLY_ITEMS_MAX: Final = 65_536
_REPLY_DEPTH_MAX: Final = 6
_SEND_BYTES: Final = 1024 * 1024
_REDIRECTS_MAX: Final = 4
_REFRESH_SECONDS_MIN: Final = 0.25
_BACKEND_ERRORS: Final = (ValkeyError, OSError, EOFError, ValueError)


class _BoundedParser(_AsyncRESP2Parser):
    """Refuses a reply whose length is more than anything asked for, before reading it; knows a cluster's answers."""

    EXCEPTION_CLASSES = {  # noqa: RUF012 - as the base class has it
        **_AsyncRESP2Parser.EXCEPTION_CLASSES,
        "ASK": AskError,
        "MOVED": MovedError,
    }

    async def _read_response(self, disable_decoding: bool = False, depth: int = 0) -> Reply:
        raw = await self._readline()
        kind, text = raw[:1], raw[1:]
        if kind == b"+":
            return text
        if kind == b"-":
            error = self.parse_error(text.decode("utf-8", "replace"))  # type: ignore[no-untyped-call]
            if isinstance(error, ValkeyConnectionError):
                self._clear()  # type: ignore[no-untyped-call]
                raise error
            return error
        if kind not in (b":", b"$", b"*"):
            raise InvalidResponse(f"a reply begins with {raw[:20]!r}")
        number = int(text)
        if kind == b":":
            return number
        if number == -1:
            return None
        if kind == b"$":
            if not 0 <= number <= _REPLY_BYTES_MAX:
                raise InvalidResponse(f"a value of {number} bytes, the limit is {_REPLY_BYTES_MAX}")
            return await self._read(number)
        if not 0 <= number <= _REPLY_ITEMS_MAX or depth == _REPLY_DEPTH_MAX:
            raise InvalidResponse(f"a list of {number} at depth {depth}, the limits are {_REPLY_ITEMS_MAX}, 6")
        return [await self._read_response(disable_decoding, depth + 1) for _ in range(number)]


class ValkeyNode:
    """One server, and up to :data:`limits.VALKEY_CONNECTIONS_MAX` connections to it."""

    def __init__(self, place: HostPort, address: ValkeyAddress, *, connect_seconds_max: float) -> None:
        self.place = place
        self._address = address
        self._connect_seconds_max = connect_seconds_max
        self._turns = asyncio.Semaphore(limits.VALKEY_CONNECTIONS_MAX)
        self._idle: list[AbstractConnection] = []
        self._closed = False

    async def run(self, commands: Sequence[Command]) -> list[Reply]:
        """Send all, then read all replies, over one connection; an error that a command is answered with is its reply.

        Raises :class:`StorageUnavailable` where the connection fails: any of the commands may have been done or not.
        Cancelled, it closes its connection: a late reply can not be taken for another's.
        """
        async with self._turns:
            if self._closed:
                raise StorageUnavailable(f"connection to {self.place} is closed")
            connection = self._idle.pop() if self._idle else self._connection()
            try:
                await connection.connect()
                for batch in _batches(commands):
                    await connection.send_packed_command(connection.pack_commands(batch), check_health=False)
                replies = [await _reply(connection) for _ in commands]
            except _BACKEND_ERRORS as error:
                await self._drop(connection)
                raise StorageUnavailable(f"valkey at {self.place}: {_told(error)}") from error
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._idle.append(connection)
            return replies

    async def close(self) -> None:
        """Close the idle connections; those in use are closed by their users, who are refused from now on."""
        self._closed = True
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def _drop(self, failed: AbstractConnection) -> None:
        """Close a connection that failed, and the idle ones with it: likely as dead, they would cost a try each."""
        idle, self._idle = self._idle, []
        for connection in (failed, *idle):
            await connection.disconnect(nowait=True)

    def _connection(self) -> AbstractConnection:
        address = self._address
        options: dict[str, Any] = {
            "host": self.place.host,
            "port": self.place.port,
            "username": address.username,
            "password": address.password,
            "socket_timeout": None,
            "socket_connect_timeout": self._connect_seconds_max,
            "lib_name": None,
            "lib_version": None,
            "parser_class": _BoundedParser,
        }
        if not address.tls:
            return Connection(**options)
        return SSLConnection(**options, ssl_check_hostname=True, ssl_min_version=ssl.TLSVersion.TLSv1_2)


class ValkeyNodes:
    """Routes commands to the node that has their key; a single server has all. Connects when first asked."""

    def __init__(self, address: ValkeyAddress, *, connect_seconds_max: float) -> None:
        self._address = address
        self._connect_seconds_max = connect_seconds_max
        self._nodes: dict[HostPort, ValkeyNode] = {}
        self._slots: list[HostPort | None] = []
        self._discovered_at = float("-inf")
        self._discovering = asyncio.Lock()

    async def run(self, key: bytes, commands: Sequence[Command]) -> list[Reply]:
        """Run ``commands``, whose keys all lie in the slot of ``key``; see :meth:`ValkeyNode.run`.

        They may be run again where the slot has moved, so each must bear that.
        """
        slot = key_slot(key)
        node, asking = await self._node_of(slot), False
        for _ in range(_REDIRECTS_MAX):
            try:
                replies = await node.run(_asked(commands) if asking else commands)
            except StorageUnavailable:
                self._suspect()
                raise
            replies = replies[1::2] if asking else replies
            moved = next((reply for reply in replies if isinstance(reply, AskError)), None)
            if moved is None:
                return replies
            asking = not isinstance(moved, MovedError)
            if asking:
                node = self._node(HostPort(str(moved.host) or node.place.host, int(moved.port)))
            else:
                self._discovered_at = float("-inf")
                node = await self._node_of(slot)
        raise StorageUnavailable(f"slot {slot} moved {_REDIRECTS_MAX} times in a row")

    async def run_each(self, commands: dict[bytes, Command]) -> list[Reply]:
        """One command per key, in as many batches as there are nodes; in order. A key whose node is away has ``None``.

        Raises :class:`StorageUnavailable` where none of the nodes answers.
        """
        keys = list(commands)
        owners: dict[ValkeyNode, list[bytes]] = {}
        for key in keys:
            owners.setdefault(await self._node_of(key_slot(key)), []).append(key)
        replies: dict[bytes, Reply] = {}
        failures: list[StorageUnavailable] = []

        async def ask(node: ValkeyNode, held: list[bytes]) -> None:
            try:
                answered = await node.run([commands[key] for key in held])
            except StorageUnavailable as error:
                self._suspect()
                failures.append(error)
                return
            for key, reply in zip(held, answered, strict=True):
                replies[key] = (await self.run(key, [commands[key]]))[0] if isinstance(reply, AskError) else reply

        async with asyncio.TaskGroup() as group:
            for node, held in owners.items():
                group.create_task(ask(node, held))
        if failures and len(failures) == len(owners):
            raise failures[0]
        return [replies.get(key) for key in keys]

    async def primaries(self) -> list[ValkeyNode]:
        """The nodes that hold keys; :class:`StorageUnavailable` where a part of the keys has no node."""
        await self._discover()
        if None in self._slots:
            raise StorageUnavailable("a part of the cluster's slots has no node")
        return [self._node(place) for place in dict.fromkeys(self._slots) if place is not None]

    async def ping(self) -> None:
        """Return when any node answers; :class:`StorageUnavailable` when none does."""
        await self._discover()
        places = [place for place in dict.fromkeys(self._slots) if place is not None]
        asked = {asyncio.ensure_future(self._node(place).run([("PING",)])) for place in places}
        failure: StorageUnavailable | None = None
        try:
            while asked:
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for answer in done:
                    try:
                        (reply,) = await answer
                    except StorageUnavailable as error:
                        failure = error
                        continue
                    if reply == b"PONG":
                        return
                    failure = StorageUnavailable(f"a ping was answered with {str(reply)[:80]!r}")
        finally:
            for answer in asked:
                answer.cancel()
            if asked:
                await asyncio.wait(asked)
        self._suspect()
        raise failure or StorageUnavailable("no node is known")

    async def close(self) -> None:
        """Close all connections."""
        for node in self._nodes.values():
            await node.close()

    def _node(self, place: HostPort) -> ValkeyNode:
        if place not in self._nodes:
            self._nodes[place] = ValkeyNode(place, self._address, connect_seconds_max=self._connect_seconds_max)
        return self._nodes[place]

    async def _node_of(self, slot: int) -> ValkeyNode:
        await self._discover()
        place = self._slots[slot]
        if place is None:
            self._suspect()
            raise StorageUnavailable(f"slot {slot} has no node")
        return self._node(place)

    def _suspect(self) -> None:
        """Ask for the map of slots again before the next command, but not with every failure."""
        now = asyncio.get_running_loop().time()
        if now - self._discovered_at >= _REFRESH_SECONDS_MIN:
            self._discovered_at = float("-inf")

    async def _discover(self) -> None:
        if self._discovered_at > float("-inf"):
            return
        async with self._discovering:
            if self._discovered_at > float("-inf"):
                return
            failure = StorageUnavailable("no host is known")
            for place in dict.fromkeys((*self._nodes, *self._address.hosts)):
                try:
                    (reply,) = await self._node(place).run([("CLUSTER", "SLOTS")])
                    self._slots = self._parsed(place, reply)
                except StorageUnavailable as error:
                    failure = error
                    continue
                self._discovered_at = asyncio.get_running_loop().time()
                return
            raise failure

    def _parsed(self, asked: HostPort, reply: Reply) -> list[HostPort | None]:
        """The place of every slot by the reply to ``CLUSTER SLOTS``; a server that is no cluster has them all."""
        if isinstance(reply, ResponseError):
            if not any(said in str(reply) for said in ("cluster support disabled", "unknown command")):
                raise StorageUnavailable(f"valkey at {asked}: {_told(reply)}")
            if len(self._address.hosts) > 1:
                raise StorageUnavailable(
                    f"valkey at {asked} is no cluster, but {len(self._address.hosts)} hosts are named"
                )
            return [asked] * _SLOTS
        slots: list[HostPort | None] = [None] * _SLOTS
        if not isinstance(reply, list) or len(reply) > _SLOT_RANGES_MAX:
            raise StorageUnavailable(f"valkey at {asked} answered CLUSTER SLOTS with {str(reply)[:80]!r}")
        for item in reply:
            match item:
                case [int(start), int(stop), [bytes() | None as host, int(port), *_], *_] if (
                    0 <= start <= stop < _SLOTS
                ):
                    place = HostPort(host.decode("ascii", "replace") if host else asked.host, port)
                    slots[start : stop + 1] = [place] * (stop + 1 - start)
                case _:
                    raise StorageUnavailable(f"valkey at {asked} listed slots as {str(item)[:80]!r}")
        return slots


async def _reply(connection: AbstractConnection) -> Reply:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _batches(commands: Sequence[Command]) -> list[list[Command]]:
    """Cut ``commands`` so that what is copied on its way into the socket is bounded."""
    batches: list[list[Command]] = [[]]
    size_bytes = 0
    for command in commands:
        command_bytes = sum(len(item) for item in command if not isinstance(item, int))
        if batches[-1] and size_bytes + command_bytes > _SEND_BYTES:
            batches.append([])
            size_bytes = 0
        batches[-1].append(command)
        size_bytes += command_bytes
    return batches


def _asked(commands: Sequence[Command]) -> list[Command]:
    return [item for command in commands for item in (("ASKING",), command)]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
