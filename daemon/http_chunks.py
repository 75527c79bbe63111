"""Chunks and profiles over HTTP: whole or in ranges, one by one or in batches, in both directions without piling up."""

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import hdrs, web

from .. import limits
from ..clients import batches, leases, wire
from ..clients.summed import HEADER_VERIFIES, HEADER_WORD_SUM, format_sum
from ..codec.container import ContainerHeader
from ..codec.level import Level, parse_level
from ..errors import KvloomError, NotFound, PreconditionFailed, RangeNotSatisfiable, TooManyItems
from ..kvstore.key import ContentKey, key_from_hex
from ..kvstore.tier import Ack, Buffer
from .batches import reading_in_turn
from .caller import Caller
from .http_body import body_bytes, continue_now, read_body, read_exactly, write_parts, write_some
from .http_conditions import Conditions, Verdict, cut, entity_tag
from .http_connection import json_error
from .http_query import only, question
from .metrics import Metrics
from .service import Service

__all__ = ["ChunkHandlers"]

_NO_CACHE = "private, no-cache"


class _Body(web.StreamResponse):
    """A response whose head goes out with the first bytes of its body: a packet of its own would wake the client."""

    _send_headers_immediately = False


@dataclass(frozen=True, slots=True)
class ChunkHandlers:
    """What serves the routes that carry chunks and profiles."""

    service: Service
    metrics: Metrics

    async def put(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Store a chunk; conditions are looked at before its body is read."""
        only(request, "ack", "ttl_seconds")
        key = key_from_hex(request.match_info["key"])
        ack = wire.parse_ack(request.query.get("ack", Ack.MEMORY.value))
        ttl_seconds = wire.parse_ttl(request.query["ttl_seconds"]) if "ttl_seconds" in request.query else None
        above = request.headers.get(wire.HEADER_PARENT)
        parent = None if above is None else key_from_hex(above)
        with self.service.reserving(caller, body_bytes(request, what="container", limit=limits.CONTAINER_BYTES_MAX)):
            await self._check(request, caller, key)
            body = await self._body(request, what="container", limit=limits.CONTAINER_BYTES_MAX)
            reached = await self.service.put(caller, key, body, ack=ack, ttl_seconds=ttl_seconds, parent=parent)
        return _json(wire.PutReply(reached), status=201)

    async def get(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Send a chunk, or the range of it that is asked for."""
        key, level, layers = _asked(request)
        conditions = _conditions(request)
        if not conditions.is_empty:
            outline = await self.service.outline(caller, key, level=level, layers=layers)
            tag = entity_tag(outline.header_bytes)
            if (refused := _judged(conditions, tag)) is not None:
                return refused
        # Who asks for a range verifies none of it: word sums are of whole chunks.
        verifies = HEADER_VERIFIES in request.headers and hdrs.RANGE not in request.headers
        async with self.service.reading(caller, key, level=level, layers=layers, caller_verifies=verifies) as chunk:
            headers = _chunk_headers(chunk.header, chunk.tier)
            if chunk.word_sum is not None:
                headers[HEADER_WORD_SUM] = format_sum(chunk.word_sum)
            tag = entity_tag(chunk.parts[0])
            return await self._send(request, wire.CONTAINER_TYPE, tag, headers, chunk.parts, chunk.total_bytes)

    async def head(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Say what :meth:`get` would send; a range has no meaning here."""
        key, level, layers = _asked(request)
        outline = await self.service.outline(caller, key, level=level, layers=layers)
        tag = entity_tag(outline.header_bytes)
        if (refused := _judged(_conditions(request), tag)) is not None:
            return refused
        response = web.StreamResponse(headers=_chunk_headers(outline.header, outline.tier))
        response.headers.update({"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": _NO_CACHE})
        response.content_type = wire.CONTAINER_TYPE
        response.content_length = outline.total_bytes
        return response

    async def delete(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Forget a chunk."""
        only(request)
        key = key_from_hex(request.match_info["key"])
        await self._check(request, caller, key)
        return _json(wire.DeleteReply(await self.service.delete(caller, key)))

    async def put_many(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Store the chunks of a batch as they come; one of them at a time is in memory."""
        only(request, "ack")
        ack = wire.parse_ack(request.query.get("ack", Ack.MEMORY.value))
        body_bytes(request, what="batch", limit=limits.BATCH_BYTES_MAX)
        await continue_now(request)
        results: list[batches.PutResult] = []
        while (length := await read_exactly(request, batches.LENGTH_BYTES, what="batch", may_end=True)) is not None:
            if len(results) == limits.KEYS_PER_REQUEST_MAX:
                raise TooManyItems(f"batch has over {limits.KEYS_PER_REQUEST_MAX} chunks, the limit")
            head_data = await read_exactly(request, batches.head_bytes(length), what="head")
            head = batches.decode_head(batches.PutHead, head_data or b"")
            results.append(await self._put_one(request, caller, head, ack))
        return _json(batches.PutManyReply(tuple(results)))

    async def _put_one(
        self, request: web.Request, caller: Caller, head: batches.PutHead, ack: Ack
    ) -> batches.PutResult:
        """A chunk that is refused once it has come is a result; what is wrong before ends the batch."""
        key = key_from_hex(head.key)
        parent = None if head.parent is None else key_from_hex(head.parent)
        with self.service.reserving(caller, head.payload_bytes):
            body = await read_exactly(request, head.payload_bytes, what="container")
            self.metrics.add_received(head.payload_bytes)
            try:
                reached = await self.service.put(
                    caller, key, memoryview(body or b""), ack=ack, ttl_seconds=head.ttl_seconds, parent=parent
                )
            except KvloomError as error:
                return batches.PutResult.of_error(head.key, error)
        return batches.PutResult(head.key, reached)

    async def get_many(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Send chunks one after the other, as the client takes them."""
        only(request)
        asked = await question(self.service, self.metrics, request, caller, leases.BatchQuestion)
        keys = wire.parse_keys(asked.keys)
        level = None if asked.level is None else parse_level(asked.level)
        layers = None if asked.layers is None else wire.parse_layers(asked.layers)
        response = web.StreamResponse(headers={"Cache-Control": _NO_CACHE})
        response.content_type = batches.BATCH_TYPE
        async with reading_in_turn(self.service, caller, keys, level=level, layers=layers) as turn:
            await response.prepare(request)
            names = iter(asked.keys)
            async for found in turn:
                chunk, name = found.chunk, next(names)
                if chunk is None:
                    code, message = ("", "") if found.error is None else (found.error.code, str(found.error))
                    head = batches.ChunkHead(name, 0, error=code, message=message)
                    await write_some(request, response, (batches.encode_head(head),))
                    continue
                levels = tuple(item.name for item in chunk.header.levels)
                head = batches.ChunkHead(name, chunk.total_bytes, chunk.tier, levels, chunk.header.tokens)
                await write_some(request, response, (batches.encode_head(head), *chunk.parts))
                self.metrics.add_sent(chunk.total_bytes)
            await response.write_eof()
        return response

    async def put_profile(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Put a profile on the shelf."""
        only(request)
        digest = key_from_hex(request.match_info["digest"])
        with self.service.reserving(caller, body_bytes(request, what="profile", limit=limits.PROFILE_BYTES_MAX)):
            body = await self._body(request, what="profile", limit=limits.PROFILE_BYTES_MAX)
            await self.service.put_profile(caller, digest, body)
        return _json(wire.ProfileReply(digest), status=201)

    async def get_profile(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Send a profile; its digest is its tag."""
        only(request)
        digest = key_from_hex(request.match_info["digest"])
        tag = f'"{digest.hex()}"'
        async with self.service.reading_profile(caller, digest) as data:
            if (refused := _judged(_conditions(request), tag)) is not None:
                return refused
            return await self._send(request, wire.PROFILE_TYPE, tag, {}, (data,), len(data))

    async def _send(
        self,
        request: web.Request,
        media: str,
        tag: str,
        headers: dict[str, str],
        parts: Sequence[Buffer],
        total_bytes: int,
    ) -> web.StreamResponse:
        try:
            wanted = _conditions(request).range_of(tag, total_bytes)
        except RangeNotSatisfiable as error:
            told = {"Content-Range": f"bytes */{total_bytes}"}
            return json_error(error.http_status, error.code, str(error), told)
        response = _Body(status=200 if wanted is None else 206, headers=headers)
        response.headers.update({"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": _NO_CACHE})
        response.content_type = media
        sent_bytes = total_bytes
        if wanted is not None:
            sent_bytes = wanted.length
            response.headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{total_bytes}"
            parts = tuple(cut(parts, wanted))
        response.content_length = sent_bytes
        await write_parts(request, response, parts)
        self.metrics.add_sent(sent_bytes)
        return response

    async def _check(self, request: web.Request, caller: Caller, key: ContentKey) -> None:
        """Raise :class:`PreconditionFailed` where a condition of a change does not hold."""
        conditions = _conditions(request)
        if conditions.is_empty:
            return
        try:
            tag: str | None = entity_tag((await self.service.outline(caller, key)).header_bytes)
        except NotFound:
            tag = None
        if conditions.judge(tag, reading=False) is not Verdict.GO_ON:
            stored = "nothing" if tag is None else tag
            raise PreconditionFailed(f"what is stored is {stored}, which the request's condition excludes")

    async def _body(self, request: web.Request, *, what: str, limit: int) -> memoryview:
        await continue_now(request)
        body = await read_body(request, what=what, limit=limit)
        self.metrics.add_received(len(body))
        return body


def _asked(request: web.Request) -> tuple[ContentKey, Level | None, range | None]:
    only(request, "level", "layers")
    level = parse_level(request.query["level"]) if "level" in request.query else None
    layers = wire.parse_layers(request.query["layers"]) if "layers" in request.query else None
    return key_from_hex(request.match_info["key"]), level, layers


def _conditions(request: web.Request) -> Conditions:
    """The conditions of a request; fields that stand several times are one list."""
    joined = (
        ", ".join(request.headers.getall(name)) if name in request.headers else None
        for name in ("If-Match", "If-None-Match", "Range", "If-Range")
    )
    return Conditions(*joined)


def _judged(conditions: Conditions, tag: str) -> web.Response | None:
    """The answer to a read whose conditions do not hold; :class:`PreconditionFailed` where it is an error."""
    verdict = conditions.judge(tag, reading=True)
    if verdict is Verdict.FAILED:
        raise PreconditionFailed(f"what is stored is {tag}, which the request's condition excludes")
    if verdict is Verdict.NOT_MODIFIED:
        return web.Response(status=304, headers={"ETag": tag, "Cache-Control": _NO_CACHE})
    return None


def _chunk_headers(header: ContainerHeader, tier: str) -> dict[str, str]:
    return {
        wire.HEADER_TIER: tier,
        wire.HEADER_LEVELS: ",".join(item.name for item in header.levels),
        wire.HEADER_TOKENS: str(header.tokens),
    }


def _json(record: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=wire.encode(record), content_type=wire.JSON_TYPE)
