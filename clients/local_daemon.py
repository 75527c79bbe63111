"""A daemon on this machine, asked through its Unix socket: the operations of :mod:`.protocol` that have frames there.

Both clients run an operation here first and over HTTP where that is not possible. Chunks in the daemon's memory are
mapped: nobody copies them, and they stay valid for as long as somebody holds the container's ``data`` or anything made
from it, whatever becomes of the daemon.
"""

import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from .. import limits
from ..codec.container import Container, parse_header
from ..codec.header import named_key
from ..codec.level import Level
from ..errors import (
    BodyTooLarge,
    DaemonUnavailable,
    InvalidKey,
    InvalidRequest,
    KvloomError,
    Overloaded,
    StorageUnavailable,
)
from ..kvstore.key import KEY_BYTES, ContentKey
from ..kvstore.namespace import check_ttl
from ..kvstore.outcome import Corrupt, Hit, Outcome
from ..kvstore.tier import Ack
from . import protocol, wire
from .local_connection import LocalConnection
from .local_replies import Failed, GetReply, Inline, Later, Mapped, Result
from .local_stream import LocalGone
from .local_wire import GetQuestion, Kind, PutQuestion
from .mapped_container import MappedContainer
from .patience import UNBOUNDED, Deadline
from .protocol import DAEMON, ChunksExist, DeleteChunk, GetChunk, MatchPrefix, Operation, PutChunk
from .put_batch import ChunkPut, PutChunks
from .reports import GetStats

if TYPE_CHECKING:
    from .local_kept import KeptChunk

__all__ = ["LocalDaemon"]

T = TypeVar("T")
_PASSED_BYTES_MIN: Final = 128 * 1024
"""From here on a container is put through a file that is passed; below, through the socket."""
_KEYS_AT_ONCE: Final = 16
"""Of a longer list. Fewer than the protocol lets through, so that both sides have something to do."""
_COUNT: Final = struct.Struct("<Q")


class LocalDaemon:
    """Connections to one socket, kept and reused. Safe to use from several threads at once.

    Methods raise :class:`LocalGone` where another way to the daemon may still work, :class:`DaemonUnavailable` where it
    has kept silent for too long, and otherwise what the operation raises.
    """

    def __init__(self, path: Path, *, connections_max: int, key: str | None = None) -> None:
        """``key`` names a tenant other than the user's own."""
        self._path = path
        self._key = key
        self._connections_max = connections_max
        self._idle: deque[LocalConnection] = deque()
        self._kept: dict[ContentKey, KeptChunk] = {}

    def close(self) -> None:
        """Close what is idle. Containers that were read stay valid. The object may be used again afterwards."""
        while self._idle:
            self._idle.pop().close()

    def takes(self, operation: Operation[Any]) -> bool:
        """Whether there are frames for the operation."""
        return type(operation) in _HANDLERS

    def run(self, operation: Operation[T], deadline: Deadline = UNBOUNDED) -> T:
        """Run one operation that has frames, until ``deadline``."""
        handler = _HANDLERS[type(operation)]
        if type(operation) is GetChunk and operation.level is None and operation.layers is None:
            found: Any = self.read_again(operation.key)
            if found is not None:
                return cast("T", found)
        answer: T = self._with_connection(lambda connection: handler(connection, operation), deadline)
        return answer

    def read_again(self, key: ContentKey) -> Hit[Container] | None:
        """A whole chunk that was read before and lies where it did, verified; None where the daemon must be asked."""
        chunk = self._kept.pop(key, None)
        return None if chunk is None else chunk.read()

    def get_many(self, keys: Sequence[ContentKey], *, level: Level | None) -> list[Outcome[Container]]:
        """Read many chunks; outcomes stand in the order of ``keys``.

        They are asked for a few at a time, one question ahead: while the daemon looks up some, others are verified. A
        key that stands there twice is read once.
        """
        found: dict[ContentKey, Outcome[Container]] = {}
        asked: list[GetChunk] = []
        for key in dict.fromkeys(keys):
            again = self.read_again(key) if level is None else None
            if again is None:
                asked.append(GetChunk(key, level))
            else:
                found[key] = again
        if asked:
            answers = self._with_connection(partial(_get_many, asked=asked))
            found.update((item.key, answer) for item, answer in zip(asked, answers, strict=True))
        return [found[key] for key in keys]

    def _with_connection(self, work: Callable[[LocalConnection], T], deadline: Deadline = UNBOUNDED) -> T:
        try:
            connection, fresh = self._idle.pop(), False
        except IndexError:
            connection, fresh = self._connect(deadline), True
        try:
            return self._work(work, connection, deadline)
        except LocalGone:
            if fresh:
                raise
            # The daemon was restarted; every operation may be sent twice.
            connection.close()
            connection = self._connect(deadline)
            return self._work(work, connection, deadline)
        finally:
            if connection.reusable and len(self._idle) < self._connections_max:
                self._idle.append(connection)
            else:
                connection.close()

    def _connect(self, deadline: Deadline) -> LocalConnection:
        return LocalConnection(self._path, self._key, deadline, self._kept)

    def _work(self, work: Callable[[LocalConnection], T], connection: LocalConnection, deadline: Deadline) -> T:
        if not deadline.bounded:
            return work(connection)
        with connection.until(deadline):
            return work(connection)


def _get_many(connection: LocalConnection, asked: Sequence[GetChunk]) -> list[Outcome[Container]]:
    """Read chunks, all at the level and the layers of the first."""
    alone = len(asked) == 1
    outcomes = _answer(connection, _ask(connection, asked), asked) if alone else _pipelined(connection, asked)
    # Of a damaged copy the daemon is made to look for itself: it deletes it, and may have another.
    return [
        _get_alone(connection, item) if found is None or isinstance(found, Corrupt) else found
        for item, found in zip(asked, outcomes, strict=True)
    ]


def _pipelined(connection: LocalConnection, asked: Sequence[GetChunk]) -> list[Outcome[Container] | None]:
    """Ask for a few chunks at a time, one question ahead of the answers."""
    outcomes: list[Outcome[Container] | None] = []
    waiting: deque[tuple[int, Sequence[GetChunk]]] = deque()
    try:
        for start in range(0, len(asked), _KEYS_AT_ONCE):
            part = asked[start : start + _KEYS_AT_ONCE]
            waiting.append((_ask(connection, part), part))
            if len(waiting) > 1:
                outcomes += _answer(connection, *waiting.popleft())
        while waiting:
            outcomes += _answer(connection, *waiting.popleft())
    finally:
        if waiting:  # an error was raised, and an answer is still to come that nobody will read
            connection.close()
    return outcomes


def _ask(connection: LocalConnection, asked: Sequence[GetChunk], *, through_socket: bool = False) -> int:
    keys = [item.key for item in asked]
    _joined(keys)
    if asked[0].level is None and asked[0].layers is None and not through_socket:
        connection.ask_for_board()
    return connection.ask(Kind.GET, (GetQuestion(keys, asked[0].level, asked[0].layers, through_socket).encode(),))


def _answer(connection: LocalConnection, number: int, asked: Sequence[GetChunk]) -> list[Outcome[Container] | None]:
    """The answers to one question; None for what would have made the answer too long."""
    try:
        connection.take_board(asked[0].answer_seconds_max)
        body = connection.answer(Kind.GET, number, seconds_max=asked[0].answer_seconds_max)
    except DaemonUnavailable:
        raise
    except KvloomError as error:
        outcome: Outcome[Container] = protocol.outcome_of_error(error)
        return [outcome] * len(asked)
    try:
        reply = GetReply.decode(body)
    except InvalidRequest as error:
        connection.close()
        raise LocalGone(f"daemon's answer does not hold: {error}") from error
    connection.take_grants(reply)
    if len(reply.results) != len(asked):
        connection.close()
        raise LocalGone(f"daemon answered for {len(reply.results)} chunks, {len(asked)} were asked for")
    return [_judge(connection, item, result) for item, result in zip(asked, reply.results, strict=True)]


def _get_alone(connection: LocalConnection, asked: GetChunk) -> Outcome[Container]:
    """Read a chunk through the socket."""
    found = _answer(connection, _ask(connection, (asked,), through_socket=True), (asked,))[0]
    return Corrupt(DAEMON, "the daemon sent no bytes") if found is None else found


def _judge(connection: LocalConnection, asked: GetChunk, result: Result) -> Outcome[Container] | None:
    match result:
        case Mapped():
            return _judge_mapped(connection, asked, result)
        case Inline(parts=(data,), tier=tier):
            return asked.judge(data, tier)
        case Failed(error=error):
            return protocol.outcome_of_error(error)
        case Later():
            return None
        case _:
            return Corrupt(DAEMON, "the daemon sent its bytes in parts")


def _judge_mapped(connection: LocalConnection, asked: GetChunk, found: Mapped) -> Outcome[Container]:
    """Verify what is mapped: all that is stored by its word sum, parts of it by the checksums of their segments."""
    if not found.ranges:
        connection.drop(found)
        return Corrupt(DAEMON, "the daemon named no bytes")
    array = connection.window(found, asked.key)
    window = array.data
    if found.header:
        return asked.judge(_gathered(found, window), found.tier)
    if found.word_sum is None:
        return asked.judge(window, found.tier)
    if named_key(window) != asked.key:
        connection.spoil(found)
        return Corrupt(DAEMON, f"asked for chunk {asked.key.hex()[:16]}…, mapped {named_key(window).hex()[:16]}…")
    if connection.sum_of(array) != found.word_sum:
        connection.spoil(found)
        return Corrupt(DAEMON, "mapped bytes do not have the sum they were kept with")
    if asked.level is None and asked.layers is None:
        return Hit(MappedContainer(window), found.tier)
    try:
        return asked.accept(Container(parse_header(window, declared_bytes=len(window)), window), found.tier)
    except KvloomError as error:
        return Corrupt(DAEMON, str(error))


def _gathered(found: Mapped, window: memoryview) -> bytearray:
    """The header and the ranges as one container: the one copy of a read of layers."""
    start = found.ranges[0].start
    data = bytearray(found.header)
    for item in found.ranges:
        data += window[item.start - start : item.stop - start]
    return data


def _joined(keys: Sequence[ContentKey]) -> bytes:
    """The keys one behind the other; :class:`InvalidKey` for one that is none, as over HTTP."""
    if set(map(len, keys)) - {KEY_BYTES}:
        wrong = next(key for key in keys if len(key) != KEY_BYTES)
        raise InvalidKey(f"key {wrong.hex()[:80]!r} is not {2 * KEY_BYTES} lower-case hexadecimal digits")
    return b"".join(keys)


def _get_one(connection: LocalConnection, operation: GetChunk) -> Outcome[Container]:
    return _get_many(connection, (operation,))[0]


def _exist(connection: LocalConnection, operation: ChunksExist) -> tuple[bool, ...]:
    try:
        body = connection.exchange(Kind.CONTAINS, (_joined(operation.keys),), seconds_max=operation.answer_seconds_max)
    except (Overloaded, StorageUnavailable):
        return (False,) * len(operation.keys)
    if len(body) != len(operation.keys):
        raise LocalGone(f"daemon answered for {len(body)} keys, {len(operation.keys)} were asked about")
    return tuple(map(bool, body))


def _match(connection: LocalConnection, operation: MatchPrefix) -> int:
    try:
        body = connection.exchange(Kind.PREFIX, (_joined(operation.keys),), seconds_max=operation.answer_seconds_max)
    except (Overloaded, StorageUnavailable):
        return 0
    if len(body) != _COUNT.size or _COUNT.unpack(body)[0] > len(operation.keys):
        raise LocalGone(f"daemon's answer to {len(operation.keys)} keys does not hold")
    count: int = _COUNT.unpack(body)[0]
    return count


def _put(connection: LocalConnection, operation: PutChunk) -> wire.PutReply:
    data = memoryview(operation.container).cast("B")
    if len(data) > limits.CONTAINER_BYTES_MAX:
        raise BodyTooLarge(f"container has {len(data)} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
    _joined((operation.key,) if operation.parent is None else (operation.key, operation.parent))
    if operation.ttl_seconds is not None:
        check_ttl(operation.ttl_seconds)
    wait = operation.answer_seconds_max
    if len(data) < _PASSED_BYTES_MIN or not hasattr(os, "memfd_create"):
        question = PutQuestion(operation.key, operation.ack, len(data), None, operation.parent, operation.ttl_seconds)
        body = connection.exchange(Kind.PUT, (question.encode(), data), seconds_max=wait)
    else:
        try:
            passed = connection.stage.fill(data)
        except OSError as error:
            raise LocalGone(f"no memory to pass a container in: {error.strerror}") from error
        question = PutQuestion(operation.key, operation.ack, len(data), 0, operation.parent, operation.ttl_seconds)
        body = connection.exchange(Kind.PUT, (question.encode(),), seconds_max=wait, descriptor=passed)
        connection.stage.trim()
    return wire.PutReply(Ack.DISK if bytes(body) == b"\x01" else Ack.MEMORY)


def _put_many(connection: LocalConnection, operation: PutChunks) -> tuple[ChunkPut, ...]:
    """One after the other: each is copied into the same passed file, so there is nothing to gain by sending ahead."""
    results = []
    for chunk in operation.chunks:
        alone = PutChunk(chunk.key, chunk.container, operation.ack, chunk.ttl_seconds, chunk.parent)
        try:
            results.append(ChunkPut(chunk.key, _put(connection, alone).ack))
        except DaemonUnavailable:
            raise
        except KvloomError as error:
            results.append(ChunkPut(chunk.key, None, error))
    return tuple(results)


def _delete(connection: LocalConnection, operation: DeleteChunk) -> bool:
    return bytes(connection.exchange(Kind.DELETE, (_joined((operation.key,)),))) == b"\x01"


def _stats(connection: LocalConnection, operation: GetStats) -> wire.DaemonStats:
    return wire.decode(wire.DaemonStats, connection.exchange(Kind.STATS, ()), strict=False)


_HANDLERS: Final[dict[type[Operation[Any]], Callable[[LocalConnection, Any], Any]]] = {
    GetChunk: _get_one,
    ChunksExist: _exist,
    MatchPrefix: _match,
    PutChunk: _put,
    PutChunks: _put_many,
    DeleteChunk: _delete,
    GetStats: _stats,
}
