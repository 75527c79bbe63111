"""The gRPC edge: a table of methods, each reads its messages, calls the service once per chunk, and writes what comes.

Messages are bytes here, so that frames are neither copied into messages nor out of them (:mod:`..clients.grpc_frames`);
all methods are streams to gRPC, which is the same on the wire for those that have one message.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from .. import limits
from ..clients import leases, plan_wire, wire
from ..clients.grpc_frames import RawFrame, encode_frame, split_frames
from ..clients.grpc_records import fill, parse_message, read_record, to_message
from ..clients.kv_events import BlockRemoved, BlockStored, EventsLost
from ..clients.proto.kvloom.v1alpha1 import kvloom_pb2 as pb
from ..codec.level import Level, parse_level
from ..errors import BodyTooLarge, InvalidKey, InvalidRequest, KvloomError, TooManyItems, TruncatedBody
from ..kvstore.key import KEY_BYTES, ContentKey
from ..kvstore.tier import Ack, Buffer
from ..kvstore.tiered.pins import LeaseId
from ..kvstore.tiered.store import ChunkRead
from .authenticator import Authenticator
from .batches import reading_in_turn
from .call import Call
from .caller import Caller
from .events import Subscription
from .grpc_guard import GrpcGuard, GrpcStream, Handler
from .grpc_shares import GrpcShares
from .metrics import Metrics
from .service import Service

__all__ = ["SERVICE_NAME", "GrpcApi", "Method"]

M = TypeVar("M", bound=Message)
SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["Kvloom"].full_name
_ACKS: Final = {pb.ACK_UNSPECIFIED: Ack.MEMORY, pb.ACK_MEMORY: Ack.MEMORY, pb.ACK_DISK: Ack.DISK}

_EVENT_FIELDS: Final = {BlockStored: "block_stored", BlockRemoved: "block_removed", EventsLost: "events_lost"}


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the service in the proto file."""

    name: str
    call: Call
    handler: Handler


class GrpcApi:
    """Builds the gRPC handlers of one service."""

    def __init__(self, service: Service, metrics: Metrics, authenticator: Authenticator) -> None:
        self._service = service
        self._metrics = metrics
        self._guard = GrpcGuard(service, metrics, authenticator, GrpcShares(service.admission))
        self.methods = (
            Method("Put", Call.PUT_CHUNK, self._put),
            Method("PutMany", Call.PUT_CHUNKS, self._put_many),
            Method("Get", Call.GET_CHUNK, self._get),
            Method("GetMany", Call.GET_CHUNKS, self._get_many),
            Method("Describe", Call.DESCRIBE_CHUNK, self._describe),
            Method("List", Call.LIST_CHUNKS, self._list),
            Method("Exists", Call.EXISTS, self._exists),
            Method("LongestPrefix", Call.LONGEST_PREFIX, self._longest_prefix),
            Method("Delete", Call.DELETE_CHUNKS, self._delete),
            Method("DeleteNamespace", Call.DELETE_NAMESPACE, self._delete_namespace),
            Method("Pin", Call.PIN, self._pin),
            Method("Release", Call.RELEASE, self._release),
            Method("Hint", Call.HINT, self._hint),
            Method("Prefetch", Call.PREFETCH, self._prefetch),
            Method("Plan", Call.PLAN, self._plan),
            Method("Report", Call.REPORT, self._report),
            Method("PutProfile", Call.PUT_PROFILE, self._put_profile),
            Method("GetProfile", Call.GET_PROFILE, self._get_profile),
            Method("Tenant", Call.TENANT, self._plain(self._service.tenant, pb.TenantStats)),
            Method("Namespaces", Call.NAMESPACES, self._plain(self._service.namespaces, pb.NamespaceList)),
            Method("Stats", Call.STATS, self._plain(self._service.stats, pb.DaemonStats)),
            Method("Scrub", Call.SCRUB, self._plain(self._service.start_scrub, pb.ScrubReport)),
            Method("GetScrub", Call.SCRUB_REPORT, self._plain(self._service.scrub_report, pb.ScrubReport)),
            Method("Events", Call.EVENTS, self._events),
            Method("Health", Call.HEALTH, self._plain(lambda _: self._service.health(), pb.Health)),
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods, each behind the guard."""
        behaviours: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            method.name: grpc.stream_stream_rpc_method_handler(self._guard.around(method.call, method.handler))
            for method in self.methods
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, behaviours)

    async def _put(self, stream: GrpcStream, caller: Caller) -> None:
        first = await self._first(stream, caller)
        if first is None:
            raise InvalidRequest("the call has no message")
        head = _put_head(first)
        with self._service.reserving(caller, head.total_bytes):
            body = await self._body(stream, first, head.total_bytes)
            if await stream.read(limits.GRPC_FRAME_BYTES_MAX) is not None:
                raise InvalidRequest("frames follow the end of the chunk")
            reached = await self._keep(caller, head, body)
        await _say(stream, wire.PutReply(reached), pb.PutReply)

    async def _put_many(self, stream: GrpcStream, caller: Caller) -> None:
        """A chunk that is refused once it has come is a result; what is wrong with its frames ends the call."""
        count = 0
        while (first := await self._first(stream, caller)) is not None:
            if (count := count + 1) > limits.KEYS_PER_REQUEST_MAX:
                raise TooManyItems(f"over {limits.KEYS_PER_REQUEST_MAX} chunks in one call, the limit")
            head = _put_head(first)
            with self._service.reserving(caller, head.total_bytes):
                body = await self._body(stream, first, head.total_bytes)
                try:
                    reached = await self._keep(caller, head, body)
                    result = pb.PutResult(ack=pb.ACK_DISK if reached is Ack.DISK else pb.ACK_MEMORY)
                except KvloomError as error:
                    result = pb.PutResult(failure=_failure(error))
            await stream.write(result.SerializeToString())

    async def _keep(self, caller: Caller, head: pb.PutHead, body: memoryview) -> Ack:
        return await self._service.put(
            caller,
            _key(head.key),
            body,
            ack=_ACKS[head.ack],
            ttl_seconds=head.ttl_seconds if head.HasField("ttl_seconds") else None,
            parent=_key(head.parent) if head.parent else None,
        )

    async def _get(self, stream: GrpcStream, caller: Caller) -> None:
        question = parse_message(pb.GetQuestion, await stream.question(limits.GRPC_KEYS_BYTES_MAX))
        level, layers = _level(question.level), _layers(question)
        async with self._service.reading(
            caller, _key(question.key), level=level, layers=layers, caller_verifies=question.verifies
        ) as chunk:
            await self._send(stream, chunk)

    async def _get_many(self, stream: GrpcStream, caller: Caller) -> None:
        question = await self._question(stream, caller, pb.BatchQuestion, limits.GRPC_KEYS_BYTES_MAX)
        keys = [_key(key) for key in _counted(question.keys)]
        level, layers = _level(question.level), _layers(question)
        async with reading_in_turn(self._service, caller, keys, level=level, layers=layers) as turn:
            async for found in turn:
                if found.chunk is not None:
                    await self._send(stream, found.chunk)
                elif found.error is not None:
                    head = pb.ChunkHead(failure=_failure(found.error))
                    await stream.write(pb.ChunkFrame(head=head).SerializeToString())

    async def _describe(self, stream: GrpcStream, caller: Caller) -> None:
        question = parse_message(pb.KeyQuestion, await stream.question(limits.GRPC_KEYS_BYTES_MAX))
        await _say(stream, await self._service.describe(caller, _key(question.key)), pb.ChunkDetail)

    async def _list(self, stream: GrpcStream, caller: Caller) -> None:
        question = parse_message(pb.ListQuestion, await stream.question(limits.GRPC_KEYS_BYTES_MAX))
        limit = question.limit or limits.LIST_CHUNKS_DEFAULT
        await _say(stream, await self._service.list_chunks(caller, limit=limit, prefix=question.prefix), pb.ChunkList)

    async def _exists(self, stream: GrpcStream, caller: Caller) -> None:
        exists = await self._service.exists(caller, await self._keys(stream, caller))
        await _say(stream, wire.ExistsReply(tuple(exists)), pb.ExistsReply)

    async def _longest_prefix(self, stream: GrpcStream, caller: Caller) -> None:
        with self._service.reserving(caller, limits.GRPC_QUESTION_BYTES_MAX):
            message = parse_message(pb.PrefixQuestion, await stream.question(limits.GRPC_QUESTION_BYTES_MAX))
            count = await self._service.longest_prefix(caller, read_record(wire.PrefixQuestion, message))
        await _say(stream, count, pb.PrefixCount)

    async def _delete(self, stream: GrpcStream, caller: Caller) -> None:
        deleted = await self._service.delete_many(caller, await self._keys(stream, caller))
        await _say(stream, leases.DeleteManyReply(tuple(deleted)), pb.DeleteManyReply)

    async def _delete_namespace(self, stream: GrpcStream, caller: Caller) -> None:
        await stream.question(limits.GRPC_KEYS_BYTES_MAX)
        await _say(stream, leases.ErasedReply(await self._service.delete_namespace(caller)), pb.ErasedReply)

    async def _pin(self, stream: GrpcStream, caller: Caller) -> None:
        question = await self._question(stream, caller, pb.PinQuestion, limits.GRPC_KEYS_BYTES_MAX)
        keys = [_key(key) for key in _counted(question.keys)]
        seconds = question.lease_seconds or limits.LEASE_SECONDS_DEFAULT
        pinned = await self._service.pin(caller, keys, lease_seconds=seconds)
        await _say(stream, leases.PinReply(pinned.lease, pinned.until_ms, pinned.pinned), pb.PinReply)

    async def _release(self, stream: GrpcStream, caller: Caller) -> None:
        question = parse_message(pb.ReleaseQuestion, await stream.question(limits.GRPC_KEYS_BYTES_MAX))
        released = self._service.release(caller, LeaseId(question.lease))
        await _say(stream, leases.ReleaseReply(released), pb.ReleaseReply)

    async def _hint(self, stream: GrpcStream, caller: Caller) -> None:
        question = await self._question(stream, caller, pb.HintQuestion, limits.GRPC_KEYS_BYTES_MAX)
        keys = [_key(key) for key in _counted(question.keys)]
        self._service.hint(caller, keys, finished=question.finished)
        await _say(stream, leases.HintReply(len(keys)), pb.HintReply)

    async def _prefetch(self, stream: GrpcStream, caller: Caller) -> None:
        accepted = await self._service.prefetch(caller, await self._keys(stream, caller))
        await _say(stream, leases.PrefetchReply(accepted), pb.PrefetchReply)

    async def _plan(self, stream: GrpcStream, caller: Caller) -> None:
        message = await self._question(stream, caller, pb.PlanQuestion, limits.GRPC_QUESTION_BYTES_MAX)
        plan = await self._service.planning.plan(caller, read_record(plan_wire.PlanQuestion, message))
        await _say(stream, plan, pb.PlanReply)

    async def _report(self, stream: GrpcStream, caller: Caller) -> None:
        message = await self._question(stream, caller, pb.EngineReport, limits.GRPC_KEYS_BYTES_MAX)
        reply = self._service.planning.report(caller, read_record(plan_wire.EngineReport, message))
        await _say(stream, reply, pb.ReportReply)

    async def _put_profile(self, stream: GrpcStream, caller: Caller) -> None:
        first = await self._first(stream, caller)
        if first is None:
            raise InvalidRequest("the call has no message")
        head = parse_message(pb.ProfileFrame, first.fields)
        digest = _key(head.digest)
        _check_size("profile", head.total_bytes, limits.PROFILE_BYTES_MAX)
        with self._service.reserving(caller, head.total_bytes):
            body = await self._body(stream, first, head.total_bytes)
            await self._service.put_profile(caller, digest, body)
        await _say(stream, wire.ProfileReply(digest), pb.ProfileReply)

    async def _get_profile(self, stream: GrpcStream, caller: Caller) -> None:
        question = parse_message(pb.DigestQuestion, await stream.question(limits.GRPC_KEYS_BYTES_MAX))
        async with self._service.reading_profile(caller, _key(question.digest)) as data:
            fields = pb.ProfileFrame(total_bytes=len(data)).SerializeToString()
            await self._send_frames(stream, fields, (data,))

    async def _events(self, stream: GrpcStream, caller: Caller) -> None:
        """Send the caller's events until it hangs up, takes none for too long, or the daemon drains."""
        question = parse_message(pb.EventsQuestion, await stream.question(limits.GRPC_KEYS_BYTES_MAX))
        with self._service.subscribing(caller, resumed=question.HasField("last_event_id")) as subscription:
            message: pb.Event | None = pb.Event()
            while message is not None:
                await stream.write(message.SerializeToString())
                message = await _next_event(subscription)

    def _plain(self, ask: Callable[[Caller], object], reply: type[Message]) -> Handler:
        """A method that asks nothing but who calls."""

        async def answer(stream: GrpcStream, caller: Caller) -> None:
            await stream.question(limits.GRPC_KEYS_BYTES_MAX)
            await _say(stream, ask(caller), reply)

        return answer

    async def _question(self, stream: GrpcStream, caller: Caller, kind: type[M], limit: int) -> M:
        with self._service.reserving(caller, limit):
            return parse_message(kind, await stream.question(limit))

    async def _keys(self, stream: GrpcStream, caller: Caller) -> list[ContentKey]:
        question = await self._question(stream, caller, pb.KeysQuestion, limits.GRPC_KEYS_BYTES_MAX)
        return [_key(key) for key in _counted(question.keys)]

    async def _first(self, stream: GrpcStream, caller: Caller) -> RawFrame | None:
        with self._service.reserving(caller, limits.GRPC_FRAME_BYTES_MAX):
            message = await stream.read(limits.GRPC_FRAME_BYTES_MAX)
        return None if message is None else RawFrame.decode(message)

    async def _body(self, stream: GrpcStream, first: RawFrame, total_bytes: int) -> memoryview:
        """Read what a first frame has announced, into one buffer of its length; more or less than that is an error.

        So is what comes more slowly than :data:`limits.BODY_BYTES_PER_SECOND_MIN` in all: its memory is held meanwhile.
        """
        seconds_max = limits.PROGRESS_SECONDS_MAX + total_bytes / limits.BODY_BYTES_PER_SECOND_MIN
        try:
            async with asyncio.timeout(seconds_max):
                return await self._gather(stream, first, total_bytes)
        except TimeoutError as error:
            raise TruncatedBody(f"{total_bytes} bytes did not come within {seconds_max:.0f} s") from error

    async def _gather(self, stream: GrpcStream, first: RawFrame, total_bytes: int) -> memoryview:
        body = bytearray(total_bytes)
        position = 0
        data: memoryview | None = first.data
        while data is not None:
            if position + len(data) > total_bytes:
                raise BodyTooLarge(f"frames have {position + len(data)} bytes, {total_bytes} were announced")
            body[position : position + len(data)] = data
            position += len(data)
            if position == total_bytes:
                break
            message = await stream.read(limits.GRPC_FRAME_BYTES_MAX)
            data = None if message is None else RawFrame.decode(message).data
        if position < total_bytes:
            raise TruncatedBody(f"frames ended after {position} of {total_bytes} bytes")
        self._metrics.add_call_received(total_bytes)
        return memoryview(body)

    async def _send(self, stream: GrpcStream, chunk: ChunkRead) -> None:
        head = pb.ChunkHead(total_bytes=chunk.total_bytes, tier=chunk.tier, tokens=chunk.header.tokens)
        head.levels.extend(level.name for level in chunk.header.levels)
        if chunk.word_sum is not None:
            head.word_sum = chunk.word_sum
        await self._send_frames(stream, pb.ChunkFrame(head=head).SerializeToString(), chunk.parts)
        self._metrics.add_call_sent(chunk.total_bytes)

    async def _send_frames(self, stream: GrpcStream, fields: bytes, parts: Iterable[Buffer]) -> None:
        """Send ``parts`` in frames, the first with ``fields``; one frame even where there are no bytes."""
        for frame in split_frames(parts):
            await stream.write(encode_frame(fields, frame))
            fields = b""
        if fields:
            await stream.write(fields)


async def _say(stream: GrpcStream, record: object, kind: type[Message]) -> None:
    await stream.write(to_message(record, kind).SerializeToString())


async def _next_event(subscription: Subscription) -> pb.Event | None:
    """The next event, one of nothing after a while without any, ``None`` at the end."""
    try:
        event = await subscription.next(seconds_max=limits.EVENT_HEARTBEAT_SECONDS)
    except StopAsyncIteration:
        return None
    message = pb.Event()
    if event is not None:
        message.id = subscription.number
        into = getattr(message, _EVENT_FIELDS[type(event)])
        into.SetInParent()
        fill(into, event)
    return message


def _put_head(frame: RawFrame) -> pb.PutHead:
    """The head of a chunk's first frame; refused before anything is allocated for what it announces."""
    message = parse_message(pb.PutFrame, frame.fields)
    if not message.HasField("head"):
        raise InvalidRequest("the first frame of a chunk has no head")
    if message.head.ack not in _ACKS:
        raise InvalidRequest(f"ack is {message.head.ack}, which has no meaning")
    _key(message.head.key)
    _check_size("container", message.head.total_bytes, limits.CONTAINER_BYTES_MAX)
    return message.head


def _check_size(what: str, size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        raise BodyTooLarge(f"{what} declares {size_bytes} bytes, the limit is {limit}")


def _counted(keys: Sequence[bytes]) -> Sequence[bytes]:
    if len(keys) > limits.KEYS_PER_REQUEST_MAX:
        raise TooManyItems(f"request names {len(keys)} keys, the limit is {limits.KEYS_PER_REQUEST_MAX}")
    return keys


def _key(data: bytes) -> ContentKey:
    if len(data) != KEY_BYTES:
        raise InvalidKey(f"key {data.hex()[:80]!r} has {len(data)} bytes, must have {KEY_BYTES}")
    return ContentKey(data)


def _level(name: str) -> Level | None:
    return parse_level(name) if name else None


def _layers(question: pb.GetQuestion | pb.BatchQuestion) -> range | None:
    if not question.HasField("layers"):
        return None
    return wire.parse_layers(f"{question.layers.first}-{question.layers.last}")


def _failure(error: KvloomError) -> pb.Failure:
    return pb.Failure(error=error.code, message=str(error))
