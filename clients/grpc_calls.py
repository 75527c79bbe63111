"""The gRPC calls of a client without I/O: each operation as messages to send, and what the messages that come mean.

Theory of operation. A transport sends ``messages()`` to ``method``, hands every message that comes to ``feed()`` and,
when the call has ended well, asks for ``reply()``; a call that failed is ``refusal()``. Both are the reply that the
daemon gives over HTTP in the same case, so an operation comes to the same outcome over either. Lengths that a daemon
declares are bounded before they are allocated.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from google.protobuf.message import Message

from ..codec.following import Following
from ..errors import DaemonUnavailable, InvalidData, InvalidRequest, error_for_code
from ..kvstore.tier import Ack
from . import leases, plan_wire, wire
from .batches import PutManyReply, PutResult
from .grpc_frames import RawFrame, encode_frame, split_frames
from .grpc_records import parse_message, read_record, to_message
from .planning import AskPlan, SendReport
from .proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from .protocol import (
    ChunksExist,
    DeleteChunk,
    DescribeChunk,
    GetChunk,
    GetProfile,
    HttpReply,
    ListChunks,
    MatchPrefix,
    Operation,
    PutChunk,
    PutProfile,
)
from .put_batch import ChunkToPut, PutChunks
from .reports import CheckHealth, GetStats, GetTenant, ListNamespaces
from .scrubs import GetScrub, ScrubReport, StartScrub
from .summed import Summing, receive_buffer
from .tenancy import TenantStats
from .upkeep import DeleteChunks, EraseNamespace, HintChunks, PinChunks, PrefetchChunks, ReleaseLease

__all__ = ["ERROR_TRAILER", "RETRY_TRAILER", "GrpcCall", "call_of", "refusal"]

ERROR_TRAILER: Final = "kvloom-error"
RETRY_TRAILER: Final = "grpc-retry-pushback-ms"
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Kvloom"].full_name


class GrpcCall(ABC):
    """One call, from its messages to its reply."""

    asks_once: ClassVar[bool] = False
    """Whether it sends one message, which takes no thread of its own."""

    def __init__(self, operation: Operation[Any], method: str) -> None:
        self.method = f"/{_SERVICE}/{method}"
        self.bytes_max = operation.reply_bytes_max
        self.follows = False
        """Whether what comes may be verified at once, which takes as long as hashing it."""
        self.is_near = False
        """Whether the daemon is on this machine."""

    @abstractmethod
    def messages(self) -> Iterator[bytes]:
        """What to send, in order; may be asked for again where the call is made again."""

    @abstractmethod
    def feed(self, message: bytes) -> None:
        """Take a message that came; :class:`DaemonUnavailable` for one that no kvloom daemon sends."""

    @abstractmethod
    def reply(self) -> HttpReply:
        """What came, as the reply to the operation's request."""


class _Question(GrpcCall):
    """A call of one message each way; ``convert`` makes the record of HTTP out of the record that comes."""

    asks_once = True

    def __init__(
        self,
        operation: Operation[Any],
        method: str,
        question: Message,
        reply: type[Message],
        record: type[Any],
        convert: Callable[[Any], object] = lambda record: record,
    ) -> None:
        super().__init__(operation, method)
        self._question, self._kind, self._record_kind, self._convert = question, reply, record, convert
        self._record: object = None

    def messages(self) -> Iterator[bytes]:
        yield self._question.SerializeToString()

    def feed(self, message: bytes) -> None:
        try:
            self._record = self._convert(read_record(self._record_kind, parse_message(self._kind, message)))
        except (InvalidRequest, InvalidData) as error:
            raise DaemonUnavailable(f"the server there is no kvloom daemon: {error}") from error

    def reply(self) -> HttpReply:
        if self._record is None:
            raise DaemonUnavailable("daemon ended the call without an answer")
        return HttpReply(200, {}, wire.encode(self._record))


class _Download(GrpcCall):
    """A call whose answer is a chunk or a profile in frames, gathered in one buffer."""

    asks_once = True

    def __init__(self, operation: Operation[Any], method: str, question: Message, frame: type[Any]) -> None:
        super().__init__(operation, method)
        self._question, self._frame, self._operation = question, frame, operation
        self._following: Following | Summing | None = None
        self._body: memoryview | None = None
        self._position = 0
        self._word_sum: int | None = None
        self._headers: dict[str, str] = {}

    def messages(self) -> Iterator[bytes]:
        yield self._question.SerializeToString()

    def feed(self, message: bytes) -> None:
        try:
            raw = RawFrame.decode(message)
            if self._body is None:
                self._begin(parse_message(self._frame, raw.fields))
        except InvalidRequest as error:
            raise DaemonUnavailable(f"the server there is no kvloom daemon: {error}") from error
        body = self._body
        end = self._position + len(raw.data)
        if body is None or end > len(body):
            raise DaemonUnavailable(f"daemon sent {end} bytes, it had declared {0 if body is None else len(body)}")
        body[self._position : end] = raw.data
        self._position = end
        if self._following is not None:
            self._following.advance(end)

    def reply(self) -> HttpReply:
        if self._body is None or self._position < len(self._body):
            declared = 0 if self._body is None else len(self._body)
            raise DaemonUnavailable(f"daemon sent {self._position} of {declared} bytes and ended the call")
        if isinstance(self._following, Summing):
            return HttpReply(200, self._headers, self._body, None, self._word_sum, self._following.total)
        verified = None if self._following is None else self._following.verified
        return HttpReply(200, self._headers, self._body, verified, self._word_sum)

    def _begin(self, first: Any) -> None:
        if isinstance(first, pb.ChunkFrame):
            self._headers = {wire.HEADER_TIER.lower(): first.head.tier}
            declared = first.head.total_bytes
            if self.is_near and first.head.HasField("word_sum"):
                self._word_sum = first.head.word_sum
        else:
            declared = first.total_bytes
        if declared > self.bytes_max:
            raise DaemonUnavailable(f"daemon declares {declared} bytes, the limit is {self.bytes_max}")
        if self._word_sum is not None:
            self._body = receive_buffer(declared)
            self._following = Summing(self._body)
            return
        buffer = bytearray(declared)
        self._body = memoryview(buffer)
        if self.follows:
            self._following = self._operation.follow(buffer)


class _PutChunk(_Question):
    asks_once = False

    def __init__(self, operation: PutChunk) -> None:
        operation.request()  # the checks that every put passes
        super().__init__(operation, "Put", pb.NoQuestion(), pb.PutReply, wire.PutReply)
        self._operation = operation

    def messages(self) -> Iterator[bytes]:
        yield from _chunk_frames(self._operation, self._operation.ack)


class _PutMany(GrpcCall):
    def __init__(self, operation: PutChunks) -> None:
        super().__init__(operation, "PutMany")
        self._operation = operation
        self._results: list[PutResult] = []

    def messages(self) -> Iterator[bytes]:
        for chunk in self._operation.chunks:
            yield from _chunk_frames(chunk, self._operation.ack)

    def feed(self, message: bytes) -> None:
        try:
            said = parse_message(pb.PutResult, message)
        except InvalidRequest as error:
            raise DaemonUnavailable(f"the server there is no kvloom daemon: {error}") from error
        if len(self._results) == len(self._operation.chunks):
            raise DaemonUnavailable(f"daemon answers for more than the {len(self._results)} chunks put")
        key = self._operation.chunks[len(self._results)].key.hex()
        if said.HasField("failure"):
            self._results.append(PutResult(key, None, said.failure.error, said.failure.message))
        else:
            self._results.append(PutResult(key, Ack.DISK if said.ack == pb.ACK_DISK else Ack.MEMORY))

    def reply(self) -> HttpReply:
        return HttpReply(200, {}, wire.encode(PutManyReply(tuple(self._results))))


class _PutProfile(_Question):
    asks_once = False

    def __init__(self, operation: PutProfile) -> None:
        digest = bytes.fromhex(operation.request().target.rpartition("/")[2])
        super().__init__(operation, "PutProfile", pb.NoQuestion(), pb.ProfileReply, wire.ProfileReply)
        self._head = pb.ProfileFrame(digest=digest, total_bytes=memoryview(operation.data).nbytes)
        self._data = operation.data

    def messages(self) -> Iterator[bytes]:
        yield from _frames(self._head.SerializeToString(), memoryview(self._data).cast("B"))


def call_of(operation: Operation[Any]) -> GrpcCall:
    """The call that ``operation`` is."""
    maker: Callable[[Any], GrpcCall] = _CALLS[type(operation)]
    return maker(operation)


def refusal(code: str | None, message: str, *, overloaded: bool, retry_ms: str = "") -> HttpReply:
    """The reply that a call which failed is, from the daemon's own ``code``, if it sent one.

    :class:`DaemonUnavailable` where it did not, but for a server that is ``overloaded``.
    """
    if code is None and not overloaded:
        raise DaemonUnavailable(message)
    error = error_for_code(code or "overloaded")
    seconds = str(-(-int(retry_ms) // 1000)) if retry_ms.isdecimal() and len(retry_ms) < 9 else "1"
    return HttpReply(
        error.http_status, {"retry-after": seconds}, wire.encode(wire.ErrorBody(code or error.code, message))
    )


def _frames(fields: bytes, data: memoryview) -> Iterator[bytes]:
    for frame in split_frames((data,)):
        yield encode_frame(fields, frame)
        fields = b""
    if fields:
        yield fields


def _chunk_frames(chunk: PutChunk | ChunkToPut, ack: Ack) -> Iterator[bytes]:
    data = memoryview(chunk.container).cast("B")
    head = pb.PutHead(
        key=chunk.key,
        total_bytes=len(data),
        ack=pb.ACK_DISK if ack is Ack.DISK else pb.ACK_MEMORY,
        ttl_seconds=chunk.ttl_seconds,
        parent=chunk.parent,
    )
    yield from _frames(pb.PutFrame(head=head).SerializeToString(), data)


def _get(operation: GetChunk) -> GrpcCall:
    level = "" if operation.level is None else operation.level.name
    question = pb.GetQuestion(key=operation.key, level=level, verifies=not operation.verified)
    if operation.layers is not None:
        wire.format_layers(operation.layers)
        question.layers.first, question.layers.last = operation.layers[0], operation.layers[-1]
    return _Download(operation, "Get", question, pb.ChunkFrame)


def _release(operation: ReleaseLease) -> GrpcCall:
    operation.request()  # the same check of its length
    question = pb.ReleaseQuestion(lease=operation.lease)
    return _Question(operation, "Release", question, pb.ReleaseReply, leases.ReleaseReply)


def _deleted(reply: leases.DeleteManyReply) -> wire.DeleteReply:
    if len(reply.deleted) != 1:
        raise InvalidData(f"daemon answered for {len(reply.deleted)} keys, one was named")
    return wire.DeleteReply(reply.deleted[0])


_CALLS: Final[dict[type[Operation[Any]], Callable[[Any], GrpcCall]]] = {
    GetChunk: _get,
    PutChunk: _PutChunk,
    PutProfile: _PutProfile,
    GetProfile: lambda item: _Download(item, "GetProfile", pb.DigestQuestion(digest=item.digest), pb.ProfileFrame),
    ChunksExist: lambda item: _Question(
        item, "Exists", pb.KeysQuestion(keys=item.keys), pb.ExistsReply, wire.ExistsReply
    ),
    MatchPrefix: lambda item: _Question(
        item, "LongestPrefix", pb.PrefixQuestion(keys=item.keys), pb.PrefixCount, wire.PrefixCount
    ),
    DeleteChunk: lambda item: _Question(
        item, "Delete", pb.KeysQuestion(keys=[item.key]), pb.DeleteManyReply, leases.DeleteManyReply, _deleted
    ),
    DescribeChunk: lambda item: _Question(
        item, "Describe", pb.KeyQuestion(key=item.key), pb.ChunkDetail, wire.ChunkDetail
    ),
    ListChunks: lambda item: _Question(
        item, "List", pb.ListQuestion(limit=item.limit, prefix=item.prefix), pb.ChunkList, wire.ChunkList
    ),
    GetStats: lambda item: _Question(item, "Stats", pb.NoQuestion(), pb.DaemonStats, wire.DaemonStats),
    StartScrub: lambda item: _Question(item, "Scrub", pb.NoQuestion(), pb.ScrubReport, ScrubReport),
    GetScrub: lambda item: _Question(item, "GetScrub", pb.NoQuestion(), pb.ScrubReport, ScrubReport),
    PutChunks: _PutMany,
    DeleteChunks: lambda item: _Question(
        item, "Delete", pb.KeysQuestion(keys=item.keys), pb.DeleteManyReply, leases.DeleteManyReply
    ),
    EraseNamespace: lambda item: _Question(
        item, "DeleteNamespace", pb.NoQuestion(), pb.ErasedReply, leases.ErasedReply
    ),
    PinChunks: lambda item: _Question(
        item, "Pin", to_message(item.question(), pb.PinQuestion), pb.PinReply, leases.PinReply
    ),
    ReleaseLease: _release,
    HintChunks: lambda item: _Question(
        item, "Hint", to_message(item.question(), pb.HintQuestion), pb.HintReply, leases.HintReply
    ),
    PrefetchChunks: lambda item: _Question(
        item, "Prefetch", pb.KeysQuestion(keys=item.keys), pb.PrefetchReply, leases.PrefetchReply
    ),
    AskPlan: lambda item: _Question(
        item, "Plan", to_message(item.question, pb.PlanQuestion), pb.PlanReply, plan_wire.PlanReply
    ),
    SendReport: lambda item: _Question(
        item, "Report", to_message(item.report, pb.EngineReport), pb.ReportReply, plan_wire.ReportReply
    ),
    GetTenant: lambda item: _Question(item, "Tenant", pb.NoQuestion(), pb.TenantStats, TenantStats),
    ListNamespaces: lambda item: _Question(item, "Namespaces", pb.NoQuestion(), pb.NamespaceList, leases.NamespaceList),
    CheckHealth: lambda item: _Question(item, "Health", pb.NoQuestion(), pb.Health, wire.Health),
}
