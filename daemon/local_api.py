"""The Unix socket: each frame is parsed, becomes one call of the service, and is answered; chunks are passed as memory.

A chunk that lies in the daemon's memory is not sent: its client is told the segment and the place, and once per segment
and connection is given the sealed descriptor. The lease is the connection's until it is released; what is leased when a
connection ends is let go, but the memory under it is never written again, since its reader may live on.
"""

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from .. import limits
from ..clients import wire
from ..clients.local_replies import Failed, Inline, Later
from ..clients.local_stream import unix_address
from ..clients.local_wire import PUT_BYTES, Frame, GetQuestion, Hello, Kind, PutQuestion, decode_keys, encode_error
from ..clients.pool_wire import Held, PoolIntroduction
from ..errors import InvalidRequest, KvloomError, TruncatedBody
from ..kvstore.concurrency import run_sized
from ..kvstore.tier import Ack, Buffer
from ..kvstore.tiered.lending import LentChunk
from .authenticator import Authenticator
from .local_loans import Found, LeaseBudget, Loans
from .local_socket import LocalSocket, Reply, peer_user
from .pools import RegisteredPool
from .service import Service

__all__ = ["bind_local", "serve_local"]

_log = structlog.get_logger("kvloom.daemon")
_BACKLOG: Final = 128
_READ_BYTES: Final = 8 * 1024 * 1024
_COUNT: Final = struct.Struct("<Q")


def bind_local(path: Path) -> socket.socket | None:
    """A socket at ``path`` that only this user can connect to, not yet listening; None where there can be none.

    What an earlier daemon left there is replaced: the caller holds the lock on the directory.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with unix_address(path) as address:
            listener.bind(address)
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        _log.warning("no local socket", path=str(path), reason=str(error))
        return None
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def serve_local(
    service: Service, authenticator: Authenticator, listener: socket.socket, *, leased_bytes_max: int
) -> AsyncIterator[None]:
    """Accept connections on ``listener`` while the context lasts. Clients hold at most ``leased_bytes_max`` mapped."""
    listener.listen(_BACKLOG)
    server = LocalApi(service, authenticator, leased_bytes_max=leased_bytes_max)
    task = asyncio.create_task(server.accept(listener))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class LocalApi:
    """The connections of one service; their leases share one budget."""

    def __init__(self, service: Service, authenticator: Authenticator, *, leased_bytes_max: int) -> None:
        self.service = service
        self.authenticator = authenticator
        self.budget = LeaseBudget(leased_bytes_max)
        self._connections = 0

    async def accept(self, listener: socket.socket) -> None:
        """Serve whoever connects, until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    connected, _ = await loop.sock_accept(listener)
                except OSError as error:  # no descriptors left: those who are connected go on
                    _log.warning("local connection refused", reason=str(error))
                    await asyncio.sleep(limits.REFUSED_BODY_SECONDS_MAX)
                    continue
                connected.setblocking(False)
                if not self._may_enter(connected):
                    connected.close()
                    continue
                self._connections += 1
                group.create_task(self._serve(connected))

    def _may_enter(self, connected: socket.socket) -> bool:
        try:
            return self._connections < limits.LOCAL_CONNECTIONS_MAX and peer_user(connected) == os.geteuid()
        except OSError:
            return False

    async def _serve(self, connected: socket.socket) -> None:
        connection = _Connection(self, LocalSocket(connected))
        try:
            await connection.run()
        except (OSError, EOFError, TimeoutError):
            return  # a peer that went away or stood still: what it held is let go below
        except Exception:  # noqa: BLE001 - an edge: what fails in one connection must not end the others
            _log.exception("local connection failed")
        finally:
            connection.close()
            self._connections -= 1


class _Connection:
    """One client: who it is, what it was lent, and the pool it has registered."""

    def __init__(self, api: LocalApi, stream: LocalSocket) -> None:
        self._api = api
        self._service = api.service
        self._caller = api.authenticator.local
        self._key: str | None = None
        self._stream = stream
        self._loans = Loans(api.budget)
        self._begun: list[Found] | None = None
        """What was lent to the question that is handled next, which could not be answered at once."""
        self._pool: RegisteredPool | None = None
        self._in_step = False
        """Whether all of the last frame has been read."""

    def close(self) -> None:
        """Close the connection and let go of its leases; the memory under them may still be read."""
        self._stream.close()
        if self._pool is not None:
            self._service.remove_pool(self._pool)
        self._loans.abandon()
        self._begun = None

    async def run(self) -> None:
        """Answer frames until the peer closes, or sends one that does not hold."""
        wait_seconds: float | None = limits.PROGRESS_SECONDS_MAX
        number = 0
        while True:
            try:
                self._in_step = False
                frame = await self._stream.next_frame(seconds_max=wait_seconds)
                if frame is None:
                    return
                wait_seconds, number = None, frame.number
                await self._handle(frame)
                self._stream.at_once = self._answer_at_once
            except KvloomError as error:
                await self._reply(Kind.ERROR, number, (encode_error(error),))
                if isinstance(error, InvalidRequest) or not self._in_step:
                    # What follows a frame that does not hold, or a body that was not read, cannot be made sense of.
                    return

    async def _handle(self, frame: Frame) -> None:
        if self._key is not None:
            self._caller = self._api.authenticator.by_key(self._key)  # it may have been revoked since
        if frame.kind is Kind.PUT:
            await self._reply(frame.kind, frame.number, (await self._put(frame),))
            return
        if frame.descriptors:
            raise InvalidRequest(f"{frame.kind.name} takes no descriptor")
        body = await self._stream.read(frame.body_bytes)
        self._in_step = True
        if frame.kind is Kind.RELEASE:
            self._loans.release(body)
        elif frame.kind is Kind.USED:
            self._note_uses(body)
        elif frame.kind is Kind.BOARD:
            # A tenant's key may be revoked, and what it keeps would be read on: who comes with one asks every time.
            descriptor = None if self._key is not None else self._loans.open_board()
            await self._reply(frame.kind, frame.number, (), () if descriptor is None else (descriptor,))
        elif frame.kind is Kind.GET:
            await self._get(frame, GetQuestion.decode(body))
        else:
            await self._reply(frame.kind, frame.number, (await self._answer(frame, body),))

    async def _reply(self, kind: Kind, number: int, parts: Sequence[Buffer], descriptors: Sequence[int] = ()) -> None:
        frame = Frame(kind, number, sum(len(part) for part in parts), len(descriptors))
        await self._stream.send((frame.encode(), *parts), descriptors)

    async def _answer(self, frame: Frame, body: memoryview) -> bytes:
        """The body of the answer to a question about keys, or about the daemon."""
        if frame.kind is Kind.HELLO:
            if body:
                # Somebody who is this user already and wants to be another tenant, for this connection.
                self._key = bytes(body).decode("ascii", "replace")
                self._caller = self._api.authenticator.by_key(self._key)
            health = self._service.health()
            return wire.encode(Hello(health.version, health.phase, health.pid))
        if frame.kind is Kind.STATS:
            return wire.encode(self._service.stats(self._caller))
        if frame.kind is Kind.POOL:
            return self._register(body)
        if frame.kind is Kind.HELD:
            return self._update(body)
        keys = decode_keys(body)
        if frame.kind is Kind.RESIDENT:
            return wire.encode(self._service.resident(self._caller, keys))
        with self._service.entering(self._caller):
            if frame.kind is Kind.CONTAINS:
                return bytes(await self._service.exists(self._caller, keys))
            if frame.kind is Kind.PREFIX:
                return _COUNT.pack(await self._service.match_prefix(self._caller, keys))
            if len(keys) != 1:
                raise InvalidRequest(f"DELETE names {len(keys)} keys, must name one")
            return bytes((await self._service.delete(self._caller, keys[0]),))

    def _register(self, body: memoryview) -> bytes:
        """Keep count of the chunks of a pool until this connection ends."""
        if self._pool is not None:
            raise InvalidRequest("this connection has registered a pool already")
        self._pool = self._service.register_pool(self._caller, wire.decode(PoolIntroduction, body))
        return b""

    def _update(self, body: memoryview) -> bytes:
        """Note what changed in the pool."""
        if self._pool is None:
            raise InvalidRequest("this connection has not registered a pool")
        self._service.update_pool(self._caller, self._pool, Held.decode(bytes(body)))
        return b""

    def _note_uses(self, body: Buffer) -> None:
        """Chunks were read by kept leases: that counts as any read."""
        self._service.note_uses(self._caller, self._loans.used(body))

    async def _put(self, frame: Frame) -> bytes:
        """Keep a container; it is copied before it is looked at, since its sender can change what it passes."""
        if frame.body_bytes < PUT_BYTES:
            raise InvalidRequest(f"PUT has {frame.body_bytes} bytes, needs {PUT_BYTES}")
        question = PutQuestion.decode(await self._stream.read(PUT_BYTES))
        follows = frame.body_bytes - PUT_BYTES
        passed = question.offset is not None
        if follows != (0 if passed else question.length) or frame.descriptors != passed:
            raise InvalidRequest(
                f"PUT declares {question.length} bytes, {follows} follow its question of {PUT_BYTES}, "
                f"with {frame.descriptors} descriptors"
            )
        with self._service.entering(self._caller), self._service.reserving(self._caller, question.length):
            if question.offset is None:
                data = await self._stream.read(question.length)
            else:
                descriptor = self._stream.take_descriptor()
                try:
                    copying = partial(_copied, descriptor, question.offset, question.length)
                    data = await run_sized(question.length, copying)
                finally:
                    os.close(descriptor)
            self._in_step = True
            reached = await self._service.put(
                self._caller,
                question.key,
                data,
                ack=question.ack,
                ttl_seconds=question.ttl_seconds,
                parent=question.parent,
            )
        return bytes((reached is Ack.DISK,))

    def _answer_at_once(self, frame: Frame, body: bytes) -> Reply | None:
        """Answer what takes no waiting: questions for chunks all of which can be lent, and releases."""
        if frame.descriptors or self._begun is not None:
            return None
        if frame.kind is Kind.RELEASE:
            self._loans.release(body)
            return Reply()
        if frame.kind is Kind.USED:
            self._note_uses(body)
            return Reply()
        if frame.kind is not Kind.GET:
            return None
        question = GetQuestion.decode(body)
        if question.through_socket:
            return None
        self._service.admission.require_ready()
        found = self._lent(question)
        if None in found:
            self._begun = found
            return None
        parts, descriptors = self._loans.encoded(found, keep=question.is_whole)
        return Reply(
            (Frame(Kind.GET, frame.number, sum(map(len, parts)), len(descriptors)).encode(), *parts), descriptors
        )

    async def _get(self, frame: Frame, question: GetQuestion) -> None:
        """Answer with places in memory; with bytes, where there is no such memory or too much of it is leased."""
        begun, self._begun = self._begun, None
        async with AsyncExitStack() as sent:
            sent.enter_context(self._service.entering(self._caller))
            if question.through_socket:
                found: list[Found] = [None] * len(question.keys)
            else:
                found = self._lent(question) if begun is None else begun
            inline_bytes = 0
            for index, key in enumerate(question.keys):
                if found[index] is not None:
                    continue
                try:
                    reading = self._service.reading(self._caller, key, level=question.level, layers=question.layers)
                    chunk = await sent.enter_async_context(reading)
                except KvloomError as error:
                    found[index] = Failed(error)
                    continue
                if inline_bytes and inline_bytes + chunk.total_bytes > limits.LOCAL_INLINE_BYTES_MAX:
                    found[index] = Later()
                    continue
                inline_bytes += chunk.total_bytes
                found[index] = Inline(chunk.parts, chunk.tier)
            parts, descriptors = self._loans.encoded(found, keep=question.is_whole)
            await self._reply(Kind.GET, frame.number, parts, descriptors)

    def _lent(self, question: GetQuestion) -> list[Found]:
        """Lend what can be, unless this client or all of them together hold as much as they may already.

        None for what has to be read. What is lent is the connection's once it is in an answer.
        """
        found: list[Found] = []
        room, room_bytes = self._loans.rooms()
        for key in question.keys[: max(0, room)]:
            lent: Found = None
            if room_bytes > 0:
                try:
                    lent = self._service.lend(self._caller, key, level=question.level, layers=question.layers)
                except KvloomError as error:
                    lent = Failed(error)
            if isinstance(lent, LentChunk):
                room_bytes -= lent.lease.payload_bytes
            found.append(lent)
        return found + [None] * (len(question.keys) - len(found))


def _copied(descriptor: int, offset: int, length: int) -> memoryview:
    """The bytes of a memfd that somebody passed; reading it cannot fault or block, whatever he does to it meanwhile.

    Raises :class:`InvalidRequest` for another kind of file and :class:`TruncatedBody` for a shorter one.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise InvalidRequest("the file passed is not a memfd") from error
    if os.fstat(descriptor).st_size < offset + length:
        raise TruncatedBody(f"the file passed has {os.fstat(descriptor).st_size} bytes, not {offset + length}")
    view = np.empty(length, np.uint8).data  # in huge pages where it is long: a fifth of the time of a bytearray
    position = 0
    while position < length:
        count = os.preadv(descriptor, [view[position : position + _READ_BYTES]], offset + position)
        if not count:
            raise TruncatedBody(f"the file passed ended after {position} of {length} bytes")
        position += count
    return view
