"""The HTTP edge: a table of routes, each parses its request, calls the service once, and writes out what came back.

The table says what each route needs; the guard (:mod:`.http_guard`) refuses whatever it does not say.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from aiohttp import web

from .. import limits
from ..clients import wire
from ..codec.level import parse_level
from ..errors import InvalidRequest, Overloaded
from ..kvstore.key import ContentKey, key_from_hex
from ..kvstore.tier import Ack
from .admission import Phase
from .authenticator import Authenticator
from .caller import Caller, Scope
from .http_body import body_bytes, read_body, write_parts
from .http_guard import OPEN, Guard, Open, current_caller, stamp
from .metrics import METRICS_TYPE, Metrics
from .service import Service

__all__ = ["HttpApi", "Route"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CallerHandler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]
Question = TypeVar("Question")
_CONTAINER: Final = "container"
_PROFILE: Final = "profile"


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path, and the scope that its caller needs; ``OPEN`` needs no caller.

    ``admitted`` routes are served only while the daemon is ready, and counted as inside.
    """

    method: str
    path: str
    needs: Scope | Open
    handler: CallerHandler | Handler
    admitted: bool = True


class HttpApi:
    """Builds the aiohttp application of one service."""

    def __init__(
        self, service: Service, metrics: Metrics, authenticator: Authenticator, *, loopback: bool = True
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._authenticator = authenticator
        self._loopback = loopback
        self.routes = (
            Route("PUT", "/chunks/{key}", Scope.WRITE, self._put_chunk),
            Route("GET", "/chunks/{key}", Scope.READ, self._get_chunk),
            Route("HEAD", "/chunks/{key}", Scope.READ, self._head_chunk),
            Route("DELETE", "/chunks/{key}", Scope.WRITE, self._delete_chunk),
            Route("GET", "/chunks/{key}/info", Scope.READ, self._describe_chunk),
            Route("GET", "/chunks", Scope.READ, self._list_chunks),
            Route("POST", "/chunks/exists", Scope.READ, self._exists),
            Route("POST", "/prefix", Scope.READ, self._prefix),
            Route("PUT", "/profiles/{digest}", Scope.WRITE, self._put_profile),
            Route("GET", "/profiles/{digest}", Scope.READ, self._get_profile),
            Route("GET", "/tenant", Scope.READ, self._tenant, admitted=False),
            Route("GET", "/stats", Scope.ADMIN, self._stats, admitted=False),
            Route("GET", "/metrics", Scope.ADMIN, self._render_metrics, admitted=False),
            Route("GET", "/healthz", OPEN, self._health, admitted=False),
            Route("GET", "/readyz", OPEN, self._ready, admitted=False),
        )

    def application(self) -> web.Application:
        """The application: every route of the table, and the guard around all of them."""
        needs: dict[web.AbstractRoute, Scope | Open] = {}
        guard = Guard(self._metrics, self._authenticator, needs, self._loopback)
        app = web.Application(middlewares=[guard.middleware()], client_max_size=limits.PROFILE_BYTES_MAX)
        app.on_response_prepare.append(stamp)
        for route in self.routes:
            handler = self._handler(route)
            needs[app.router.add_route(route.method, route.path, handler, expect_handler=_continue_later)] = route.needs
        return app

    def _handler(self, route: Route) -> Handler:
        if route.needs is OPEN:
            return cast("Handler", route.handler)
        handler = cast("CallerHandler", route.handler)

        async def inside(request: web.Request) -> web.StreamResponse:
            caller = current_caller()
            if not route.admitted:
                return await handler(request, caller)
            with self._service.entering(caller):
                return await handler(request, caller)

        return inside

    async def _put_chunk(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request, "ack", "ttl_seconds")
        key = _key(request)
        ack = wire.parse_ack(request.query.get("ack", Ack.MEMORY.value))
        ttl_seconds = wire.parse_ttl(request.query["ttl_seconds"]) if "ttl_seconds" in request.query else None
        above = request.headers.get(wire.HEADER_PARENT)
        parent = None if above is None else key_from_hex(above)
        with self._service.reserving(caller, body_bytes(request, what=_CONTAINER, limit=limits.CONTAINER_BYTES_MAX)):
            body = await self._body(request, what=_CONTAINER, limit=limits.CONTAINER_BYTES_MAX)
            reached = await self._service.put(caller, key, body, ack=ack, ttl_seconds=ttl_seconds, parent=parent)
        return _json(wire.PutReply(reached), status=201)

    async def _get_chunk(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request, "level", "layers")
        level = parse_level(request.query["level"]) if "level" in request.query else None
        layers = wire.parse_layers(request.query["layers"]) if "layers" in request.query else None
        async with self._service.reading(caller, _key(request), level=level, layers=layers) as chunk:
            response = web.StreamResponse()
            response.content_type = wire.CONTAINER_TYPE
            response.content_length = chunk.total_bytes
            response.headers[wire.HEADER_TIER] = chunk.tier
            response.headers[wire.HEADER_LEVELS] = ",".join(item.name for item in chunk.header.levels)
            response.headers[wire.HEADER_TOKENS] = str(chunk.header.tokens)
            await write_parts(request, response, chunk.parts)
            self._metrics.add_sent(chunk.total_bytes)
        return response

    async def _head_chunk(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request)
        detail = await self._service.describe(caller, _key(request))
        response = web.StreamResponse()
        response.content_type = wire.CONTAINER_TYPE
        response.content_length = detail.chunk.payload_bytes
        response.headers[wire.HEADER_TIER] = detail.chunk.tiers[0]
        response.headers[wire.HEADER_LEVELS] = ",".join(item.level.name for item in detail.levels)
        response.headers[wire.HEADER_TOKENS] = str(detail.tokens)
        return response

    async def _delete_chunk(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request)
        return _json(wire.DeleteReply(await self._service.delete(caller, _key(request))))

    async def _describe_chunk(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request)
        return _json(await self._service.describe(caller, _key(request)))

    async def _list_chunks(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request, "limit", "prefix")
        limit = _number(request, "limit", limits.LIST_CHUNKS_DEFAULT)
        return _json(await self._service.list_chunks(caller, limit=limit, prefix=request.query.get("prefix", "")))

    async def _exists(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        question = await self._question(wire.KeysQuestion, request, caller, limit=limits.KEYS_BODY_BYTES_MAX)
        return _json(wire.ExistsReply(tuple(await self._service.exists(caller, wire.parse_keys(question.keys)))))

    async def _prefix(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        question = await self._question(wire.PrefixQuestion, request, caller, limit=limits.PREFIX_BODY_BYTES_MAX)
        return _json(await self._service.longest_prefix(caller, question))

    async def _put_profile(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request)
        digest = key_from_hex(request.match_info["digest"])
        with self._service.reserving(caller, body_bytes(request, what=_PROFILE, limit=limits.PROFILE_BYTES_MAX)):
            body = await self._body(request, what=_PROFILE, limit=limits.PROFILE_BYTES_MAX)
            await self._service.put_profile(caller, digest, body)
        return _json(wire.ProfileReply(digest), status=201)

    async def _get_profile(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request)
        async with self._service.reading_profile(caller, key_from_hex(request.match_info["digest"])) as data:
            response = web.StreamResponse()
            response.content_type = wire.PROFILE_TYPE
            response.content_length = len(data)
            await write_parts(request, response, (data,))
            self._metrics.add_sent(len(data))
        return response

    async def _tenant(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        _only(request)
        return _json(self._service.tenant(caller))

    async def _stats(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return _json(self._service.stats(caller))

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return _json(self._service.health())

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        health = self._service.health()
        if self._service.admission.phase is not Phase.READY:
            raise Overloaded(f"daemon is {health.phase}, try again in a moment")
        return _json(health)

    async def _render_metrics(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": METRICS_TYPE})

    async def _question(self, kind: type[Question], request: web.Request, caller: Caller, *, limit: int) -> Question:
        _only(request)
        size_bytes = body_bytes(request, what="body", limit=limit) * limits.JSON_PARSED_BYTES_PER_BYTE
        with self._service.reserving(caller, size_bytes):
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
