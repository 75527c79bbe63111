"""The client protocol without I/O: each operation builds one HTTP request and reads one HTTP reply.

Theory of operation. An :class:`Operation` is a frozen value. ``request()`` gives the bytes to send; the client that
owns the socket sends them and gives the reply to ``parse()``, which returns the typed result or raises the typed error
that the daemon named. Where no daemon answered at all, ``without_daemon()`` says what that means: a lookup or a read
comes to an outcome (the engine recomputes), everything else raises. Nothing a daemon says is believed: lengths are
bounded before they are allocated, and a container or profile is verified against the key it was asked for by.
"""
# ruff: noqa: D102 - what request(), parse(), follow() and without_daemon() promise is said once, in Operation

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar
from urllib.parse import urlencode

from blake3 import blake3

from .. import limits
from ..codec.container import Container
from ..codec.following import Following
from ..codec.level import Level
from ..errors import (
    BodyTooLarge,
    DaemonUnavailable,
    InvalidData,
    InvalidRequest,
    KeyMismatch,
    KvloomError,
    NotFound,
    Overloaded,
    error_for_code,
)
from ..kvstore.key import ChunkRef, ContentKey
from ..kvstore.namespace import check_ttl
from ..kvstore.outcome import Corrupt, Hit, Miss, Outcome, Throttled, Unavailable
from ..kvstore.tier import Ack
from . import wire
from .http_message import Buffer, HttpReply, HttpRequest
from .summed import HEADER_VERIFIES, summed_container

__all__ = [
    "ChunksExist",
    "DeleteChunk",
    "DescribeChunk",
    "GetChunk",
    "GetProfile",
    "HttpReply",
    "HttpRequest",
    "ListChunks",
    "MatchPrefix",
    "Operation",
    "PrefixReply",
    "PutChunk",
    "PutProfile",
    "batches_of",
    "outcome_of_error",
    "post",
    "prefix_reply",
    "read_reply",
]

T = TypeVar("T")
DAEMON = "daemon"
"""The ``tier`` of outcomes that the daemon as a whole is the reason for."""


@dataclass(frozen=True, slots=True)
class PrefixReply:
    """The leading chunks that are stored, and how many tokens they cover."""

    chunks: tuple[ChunkRef, ...]
    tokens: int


class Operation(ABC, Generic[T]):
    """One call of the daemon that comes to a ``T``."""

    reply_bytes_max: ClassVar[int] = limits.JSON_BODY_BYTES_MAX
    """The longest reply body that is read."""

    answer_seconds_max: ClassVar[float] = limits.PROGRESS_SECONDS_MAX
    """How long the daemon may take until its reply begins."""

    repeatable: ClassVar[bool] = True
    """Whether to try again where it is not known what became of the first try."""

    retry_seconds_max: ClassVar[float] = limits.RETRY_SECONDS_MAX
    """How long after the first try another may begin."""

    hedged: ClassVar[bool] = False
    """Whether it may be asked twice at once, where the client was told to."""

    @abstractmethod
    def request(self) -> HttpRequest:
        """What to send; raises :class:`InvalidRequest` and its kin for arguments no daemon would accept."""

    @abstractmethod
    def parse(self, reply: HttpReply) -> T:
        """What the reply means; raises the typed error it carries."""

    def follow(self, body: bytearray) -> Following | None:
        """What is told how much of the answer's body has come; by default nobody is."""
        return None

    def again(self, result: T) -> "Operation[T] | None":
        """What is asked at once where ``result`` is not the last word; by default it is."""
        return None

    def without_daemon(self, error: DaemonUnavailable) -> T:
        """What it means that nobody answered: by default, that error."""
        raise error


@dataclass(frozen=True, slots=True)
class PutChunk(Operation[wire.PutReply]):
    """Store ``container`` under ``key``, for ``ttl_seconds`` if given, and wait until it has reached ``ack``.

    ``parent`` is the key of the chunk before it, which tells the daemon what to give up first.
    """

    answer_seconds_max: ClassVar[float] = limits.PUT_WAIT_SECONDS_MAX + limits.PROGRESS_SECONDS_MAX
    key: ContentKey
    container: Buffer
    ack: Ack
    ttl_seconds: float | None = None
    parent: ContentKey | None = None

    def request(self) -> HttpRequest:
        size = memoryview(self.container).nbytes
        if size > limits.CONTAINER_BYTES_MAX:
            raise BodyTooLarge(f"container has {size} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
        target = f"/chunks/{self.key.hex()}?ack={self.ack.value}"
        if self.ttl_seconds is not None:
            check_ttl(self.ttl_seconds)
            target += f"&ttl_seconds={self.ttl_seconds:.3f}"
        headers = {"Content-Type": wire.CONTAINER_TYPE}
        if self.parent is not None:
            headers[wire.HEADER_PARENT] = self.parent.hex()
        return HttpRequest("PUT", target, headers, self.container)

    def parse(self, reply: HttpReply) -> wire.PutReply:
        return read_reply(wire.PutReply, reply)


@dataclass(frozen=True, slots=True)
class GetChunk(Operation[Outcome[Container]]):
    """Read a chunk: whole, up to ``level``, or only ``layers``. A chunk not stored at ``level`` is a miss.

    Lossy levels are stored in blocks of layers: where they are read, ``layers`` come widened to whole blocks, and the
    header of what comes says which they are. What comes damaged is asked for again, ``verified`` by the daemon too.
    """

    reply_bytes_max: ClassVar[int] = limits.CONTAINER_BYTES_MAX
    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    hedged: ClassVar[bool] = True
    key: ContentKey
    level: Level | None = None
    layers: range | None = None
    verified: bool = False

    def request(self) -> HttpRequest:
        query: dict[str, str] = {}
        if self.level is not None:
            query["level"] = self.level.name
        if self.layers is not None:
            query["layers"] = wire.format_layers(self.layers)
        target = f"/chunks/{self.key.hex()}" + (f"?{urlencode(query)}" if query else "")
        return HttpRequest("GET", target, {} if self.verified else {HEADER_VERIFIES: "1"})

    def again(self, result: Outcome[Container]) -> "GetChunk | None":
        return replace(self, verified=True) if isinstance(result, Corrupt) and not self.verified else None

    def parse(self, reply: HttpReply) -> Outcome[Container]:
        if reply.status != 200:
            return _outcome_of(reply)
        tier = reply.headers.get(wire.HEADER_TIER.lower(), DAEMON)
        if reply.verified is not None and reply.verified.content_key == self.key:
            return self.accept(Container(reply.verified, memoryview(reply.body)), tier)
        return self.judge(reply.body, tier, reply.word_sum, summed=reply.summed)

    def follow(self, body: bytearray) -> Following | None:
        return Following(body)

    def judge(
        self, data: Buffer, tier: str, word_sum: int | None = None, *, summed: int | None = None
    ) -> Outcome[Container]:
        """What ``data``, which came from ``tier``, is to who asked: verified and what was asked for, or damage."""
        try:
            if word_sum is None:
                container = Container.parse(data, content_key=self.key)
            else:
                container = summed_container(data, word_sum, self.key, summed=summed)
        except (InvalidData, KeyMismatch, KvloomError) as error:
            return Corrupt(DAEMON, str(error))
        return self.accept(container, tier)

    def accept(self, container: Container, tier: str) -> Outcome[Container]:
        """What a verified container is to who asked."""
        if self.level is not None and self.level not in container.header.levels:
            return Corrupt(DAEMON, f"asked for level {self.level}, the reply does not hold it")
        header = container.header
        if self.layers is not None and header.layers != header.whole_blocks(self.layers):
            return Corrupt(DAEMON, f"asked for {self.layers}, the reply holds {header.layers}")
        return Hit(container, tier)

    def without_daemon(self, error: DaemonUnavailable) -> Outcome[Container]:
        return Unavailable(DAEMON, str(error))


@dataclass(frozen=True, slots=True)
class ChunksExist(Operation[tuple[bool, ...]]):
    """For each key, whether it is stored; all false where the daemon cannot say."""

    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    hedged: ClassVar[bool] = True
    keys: tuple[ContentKey, ...]

    @classmethod
    def batches(cls, keys: Sequence[ContentKey]) -> "list[ChunksExist]":
        """As many operations as ``keys`` need within the limit of one request."""
        return [cls(batch) for batch in batches_of(keys)]

    def request(self) -> HttpRequest:
        return post("/chunks/exists", wire.KeysQuestion(tuple(key.hex() for key in self.keys)))

    def parse(self, reply: HttpReply) -> tuple[bool, ...]:
        if reply.status == 503:
            return (False,) * len(self.keys)
        exists = read_reply(wire.ExistsReply, reply).exists
        if len(exists) != len(self.keys):
            raise InvalidData(f"daemon answered for {len(exists)} keys, {len(self.keys)} were asked about")
        return exists

    def without_daemon(self, error: DaemonUnavailable) -> tuple[bool, ...]:
        return (False,) * len(self.keys)


@dataclass(frozen=True, slots=True)
class MatchPrefix(Operation[int]):
    """How many of the leading ``keys`` are stored; none where the daemon cannot say."""

    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    hedged: ClassVar[bool] = True
    keys: tuple[ContentKey, ...]

    @classmethod
    def batches(cls, refs: Sequence[ChunkRef]) -> "list[MatchPrefix]":
        """Operations to run in order until one matches less than all of its keys."""
        return [cls(batch) for batch in batches_of([ref.key for ref in refs])]

    def request(self) -> HttpRequest:
        return post("/prefix", wire.PrefixQuestion(keys=tuple(key.hex() for key in self.keys)))

    def parse(self, reply: HttpReply) -> int:
        if reply.status == 503:
            return 0
        count = read_reply(wire.PrefixCount, reply).chunks
        if not 0 <= count <= len(self.keys):
            raise InvalidData(f"daemon matched {count} of {len(self.keys)} keys")
        return count

    def without_daemon(self, error: DaemonUnavailable) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class DeleteChunk(Operation[bool]):
    """Forget a chunk; whether there was one."""

    key: ContentKey

    def request(self) -> HttpRequest:
        return HttpRequest("DELETE", f"/chunks/{self.key.hex()}", {})

    def parse(self, reply: HttpReply) -> bool:
        return read_reply(wire.DeleteReply, reply).deleted


@dataclass(frozen=True, slots=True)
class ListChunks(Operation[wire.ChunkList]):
    """Up to ``limit`` stored chunks whose key begins with the hexadecimal digits ``prefix``, in no particular order."""

    limit: int
    prefix: str = ""

    def request(self) -> HttpRequest:
        return HttpRequest("GET", "/chunks?" + urlencode({"limit": self.limit, "prefix": self.prefix}), {})

    def parse(self, reply: HttpReply) -> wire.ChunkList:
        return read_reply(wire.ChunkList, reply)


@dataclass(frozen=True, slots=True)
class DescribeChunk(Operation[wire.ChunkDetail]):
    """What is stored under a key, without its bytes; :class:`NotFound` where nothing is."""

    key: ContentKey

    def request(self) -> HttpRequest:
        return HttpRequest("GET", f"/chunks/{self.key.hex()}/info", {})

    def parse(self, reply: HttpReply) -> wire.ChunkDetail:
        return read_reply(wire.ChunkDetail, reply)


@dataclass(frozen=True, slots=True)
class PutProfile(Operation[bytes]):
    """Put a codec profile on the shelf; the result is its digest."""

    answer_seconds_max: ClassVar[float] = limits.PUT_WAIT_SECONDS_MAX + limits.PROGRESS_SECONDS_MAX
    data: Buffer

    def request(self) -> HttpRequest:
        size = memoryview(self.data).nbytes
        if size > limits.PROFILE_BYTES_MAX:
            raise BodyTooLarge(f"profile has {size} bytes, the limit is {limits.PROFILE_BYTES_MAX}")
        digest = blake3(self.data).hexdigest()
        return HttpRequest("PUT", f"/profiles/{digest}", {"Content-Type": wire.PROFILE_TYPE}, self.data)

    def parse(self, reply: HttpReply) -> bytes:
        return read_reply(wire.ProfileReply, reply).digest


@dataclass(frozen=True, slots=True)
class GetProfile(Operation[Outcome[bytes]]):
    """Read a codec profile by its digest."""

    reply_bytes_max: ClassVar[int] = limits.PROFILE_BYTES_MAX
    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    digest: bytes

    def request(self) -> HttpRequest:
        return HttpRequest("GET", f"/profiles/{self.digest.hex()}", {})

    def parse(self, reply: HttpReply) -> Outcome[bytes]:
        if reply.status != 200:
            return _outcome_of(reply)
        if blake3(reply.body).digest() != self.digest:
            return Corrupt(DAEMON, f"profile does not match its digest {self.digest.hex()[:16]}…")
        return Hit(bytes(reply.body), DAEMON)

    def without_daemon(self, error: DaemonUnavailable) -> Outcome[bytes]:
        return Unavailable(DAEMON, str(error))


def prefix_reply(refs: Sequence[ChunkRef], matched: int) -> PrefixReply:
    """The first ``matched`` of ``refs`` as the answer to a prefix question."""
    chunks = tuple(refs[:matched])
    return PrefixReply(chunks, chunks[-1].stop if chunks else 0)


def post(target: str, record: object) -> HttpRequest:
    """A question that is a JSON body."""
    return HttpRequest("POST", target, {"Content-Type": wire.JSON_TYPE}, wire.encode(record))


def read_reply(kind: type[T], reply: HttpReply) -> T:
    """The record in a successful reply; an error reply raises its error, nonsense :class:`InvalidData`."""
    if not 200 <= reply.status < 300:
        raise _error_of(reply)
    try:
        return wire.decode(kind, reply.body, strict=False)
    except InvalidRequest as error:
        raise InvalidData(f"daemon's reply is not a {kind.__name__}: {error}") from error


def _error_of(reply: HttpReply) -> KvloomError:
    try:
        body = wire.decode(wire.ErrorBody, reply.body, strict=False)
    except InvalidRequest:
        return DaemonUnavailable(f"the server there answered {reply.status} and is not a kvloom daemon")
    error = error_for_code(body.error)(body.message)
    error.retry_seconds = _seconds(reply.headers.get("retry-after", ""))
    return error


def _outcome_of(reply: HttpReply) -> Outcome[T]:
    return outcome_of_error(_error_of(reply))


def outcome_of_error(error: KvloomError) -> Outcome[T]:
    """What an error means to a read: a state of the cache is an outcome, a caller's mistake is raised."""
    if isinstance(error, NotFound):
        return Miss()
    if isinstance(error, Overloaded):
        return Throttled(DAEMON, 1.0 if error.retry_seconds is None else error.retry_seconds)
    if error.http_status >= 500:
        return Unavailable(DAEMON, str(error))
    raise error


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


def batches_of(keys: Sequence[ContentKey]) -> Iterable[tuple[ContentKey, ...]]:
    """``keys`` in as many parts as the limit of one request makes of them."""
    size = limits.KEYS_PER_REQUEST_MAX
    return [tuple(keys[start : start + size]) for start in range(0, len(keys), size)]
