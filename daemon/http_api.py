"""The HTTP edge: a table of routes, each parses its request, calls the service once, and writes out what came back."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from aiohttp import web

from .. import limits
from ..clients import wire
from ..codec.level import parse_level
from ..errors import InvalidRequest, Overloaded
from ..kvstore.key import ContentKey, key_from_hex
from ..kvstore.tier import Ack
from .admission import Phase
from .http_body import body_bytes, read_body, write_parts
from .http_guard import guard, stamp
from .metrics import METRICS_TYPE, Metrics
from .service import Service

__all__ = ["HttpApi", "Route"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Question = TypeVar("Question")
_CONTAINER: Final = "container"
_PROFILE: Final = "profile"


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path. ``admitted`` routes are served only while the daemon is ready, and counted as inside."""

    method: str
    path: str
    handler: Handler
    admitted: bool = True


class HttpApi:
    """Builds the aiohttp application of one service."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self.routes = (
            Route("PUT", "/chunks/{key}", self._put_chunk),
            Route("GET", "/chunks/{key}", self._get_chunk),
            Route("HEAD", "/chunks/{key}", self._head_chunk),
            Route("DELETE", "/chunks/{key}", self._delete_chunk),
            Route("GET", "/chunks/{key}/info", self._describe_chunk),
            Route("GET", "/chunks", self._list_chunks),
            Route("POST", "/chunks/exists", self._exists),
            Route("POST", "/prefix", self._prefix),
            Route("PUT", "/profiles/{digest}", self._put_profile),
            Route("GET", "/profiles/{digest}", self._get_profile),
            Route("GET", "/stats", self._stats, admitted=False),
            Route("GET", "/healthz", self._health, admitted=False),
            Route("GET", "/readyz", self._ready, admitted=False),
            Route("GET", "/metrics", self._render_metrics, admitted=False),
        )

    def application(self) -> web.Application:
        """The application: every route of the table, and the guard around all of them."""
        app = web.Application(middlewares=[guard(self._metrics)], client_max_size=limits.PROFILE_BYTES_MAX)
        app.on_response_prepare.append(stamp)
        for route in self.routes:
            handler = self._admitted(route.handler) if route.admitted else route.handler
            app.router.add_route(route.method, route.path, handler, expect_handler=_continue_later)
        return app

    def _admitted(self, handler: Handler) -> Handler:
        async def inside(request: web.Request) -> web.StreamResponse:
            with self._service.admission.enter():
                return await handler(request)

        return inside

    async def _put_chunk(self, request: web.Request) -> web.StreamResponse:
        _only(request, "ack", "ttl_seconds")
        key = _key(request)
        ack = wire.parse_ack(request.query.get("ack", Ack.MEMORY.value))
        ttl_seconds = wire.parse_ttl(request.query["ttl_seconds"]) if "ttl_seconds" in request.query else None
        above = request.headers.get(wire.HEADER_PARENT)
        parent = None if above is None else key_from_hex(above)
        with self._service.admission.reserve(body_bytes(request, what=_CONTAINER, limit=limits.CONTAINER_BYTES_MAX)):
            body = await self._body(request, what=_CONTAINER, limit=limits.CONTAINER_BYTES_MAX)
            reached = await self._service.put(key, body, ack=ack, ttl_seconds=ttl_seconds, parent=parent)
        return _json(wire.PutReply(reached), status=201)

    async def _get_chunk(self, request: web.Request) -> web.StreamResponse:
        _only(request, "level", "layers")
        level = parse_level(request.query["level"]) if "level" in request.query else None
        layers = wire.parse_layers(request.query["layers"]) if "layers" in request.query else None
        async with self._service.reading(_key(request), level=level, layers=layers) as chunk:
            response = web.StreamResponse()
            response.content_type = wire.CONTAINER_TYPE
            response.content_length = chunk.total_bytes
            response.headers[wire.HEADER_TIER] = chunk.tier
            response.headers[wire.HEADER_LEVELS] = ",".join(item.name for item in chunk.header.levels)
            response.headers[wire.HEADER_TOKENS] = str(chunk.header.tokens)
            await write_parts(request, response, chunk.parts)
            self._metrics.add_sent(chunk.total_bytes)
        return response

    async def _head_chunk(self, request: web.Request) -> web.StreamResponse:
        _only(request)
        detail = await self._service.describe(_key(request))
        response = web.StreamResponse()
        response.content_type = wire.CONTAINER_TYPE
        response.content_length = detail.chunk.payload_bytes
        response.headers[wire.HEADER_TIER] = detail.chunk.tiers[0]
        response.headers[wire.HEADER_LEVELS] = ",".join(item.level.name for item in detail.levels)
        response.headers[wire.HEADER_TOKENS] = str(detail.tokens)
        return response

    async def _delete_chunk(self, request: web.Request) -> web.StreamResponse:
        _only(request)
        return _json(wire.DeleteReply(await self._service.delete(_key(request))))

    async def _describe_chunk(self, request: web.Request) -> web.StreamResponse:
        _only(request)
        return _json(await self._service.describe(_key(request)))

    async def _list_chunks(self, request: web.Request) -> web.StreamResponse:
        _only(request, "limit", "prefix")
        limit = _number(request, "limit", limits.LIST_CHUNKS_DEFAULT)
        return _json(await self._service.list_chunks(limit=limit, prefix=request.query.get("prefix", "")))

    async def _exists(self, request: web.Request) -> web.StreamResponse:
        question = await self._question(wire.KeysQuestion, request, limit=limits.KEYS_BODY_BYTES_MAX)
        return _json(wire.ExistsReply(tuple(await self._service.exists(wire.parse_keys(question.keys)))))

    async def _prefix(self, request: web.Request) -> web.StreamResponse:
        question = await self._question(wire.PrefixQuestion, request, limit=limits.JSON_BODY_BYTES_MAX)
        return _json(await self._service.longest_prefix(question))

    async def _put_profile(self, request: web.Request) -> web.StreamResponse:
        _only(request)
        digest = key_from_hex(request.match_info["digest"])
        with self._service.admission.reserve(body_bytes(request, what=_PROFILE, limit=limits.PROFILE_BYTES_MAX)):
            body = await self._body(request, what=_PROFILE, limit=limits.PROFILE_BYTES_MAX)
            await self._service.put_profile(digest, body)
        return _json(wire.ProfileReply(digest), status=201)

    async def _get_profile(self, request: web.Request) -> web.StreamResponse:
        _only(request)
        async with self._service.reading_profile(key_from_hex(request.match_info["digest"])) as data:
            response = web.StreamResponse()
            response.content_type = wire.PROFILE_TYPE
            response.content_length = len(data)
            await write_parts(request, response, (data,))
            self._metrics.add_sent(len(data))
        return response

    async def _stats(self, request: web.Request) -> web.StreamResponse:
        return _json(self._service.stats())

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return _json(self._service.health())

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        health = self._service.health()
        if self._service.admission.phase is not Phase.READY:
            raise Overloaded(f"daemon is {health.phase}, try again in a moment")
        return _json(health)

    async def _render_metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": METRICS_TYPE})

    async def _question(self, kind: type[Question], request: web.Request, *, limit: int) -> Question:
        _only(request)
        with self._service.admission.reserve(body_bytes(request, what="body", limit=limit)):
            return wire.decode(kind, await self._body(request, what="body", limit=limit))

    async def _body(self, request: web.Request, *, what: str, limit: int) -> memoryview:
        if request.headers.get("Expect"):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not begun
        body = await read_body(request, what=what, limit=limit)
        self._metrics.add_received(len(body))
        return body


async def _continue_later(request: web.Request) -> None:
    """Leave a client that waits for "100 Continue" waiting, until its headers have been judged."""


def _json(record: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=wire.encode(record), content_type=wire.JSON_TYPE)


def _key(request: web.Request) -> ContentKey:
    return key_from_hex(request.match_info["key"])


def _only(request: web.Request, *names: str) -> None:
    """Refuse a query parameter that means nothing here (a typo would read another level than was meant)."""
    for name in request.query:
        if name not in names or len(request.query.getall(name)) > 1:
            allowed = ", ".join(names) or "none"
            raise InvalidRequest(f"query parameter {name[:40]!r} is unknown or given twice; there are: {allowed}")


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequest(f"{name} is {text[:40]!r}, not a number")
    return int(text)
