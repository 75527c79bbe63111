"""The HTTP edge: a table of routes, each parses its request, calls the service once, and writes out what came back.

The table says what each route needs and what it answers; the guard (:mod:`.http_guard`) refuses whatever it does not
say, and the description that is served (:mod:`.openapi`) is made of it.
"""

from functools import cached_property
from typing import Final, TypeVar, cast

from aiohttp import web

from .. import limits
from ..clients import batches, leases, plan_wire, tenancy, wire
from ..clients.scrubs import ScrubReport
from ..errors import (
    CodecMismatch,
    InvalidData,
    InvalidRequest,
    KeyMismatch,
    LayoutMismatch,
    NotFound,
    Overloaded,
    PreconditionFailed,
    ProfileMismatch,
    RangeNotSatisfiable,
    StorageFull,
)
from ..kvstore.key import key_from_hex
from ..kvstore.tiered.pins import LEASE_ID_BYTES, LeaseId
from . import http_route as part
from .admission import Phase
from .authenticator import Authenticator
from .call import OPEN, Call
from .caller import Caller
from .dashboard.board import Board
from .dashboard.gate import Gate, cookie_name
from .dashboard.handlers import DashboardHandlers, dashboard_routes
from .http_chunks import ChunkHandlers
from .http_events import EVENTS_TYPE, stream_events
from .http_guard import Guard, current_caller, stamp
from .http_query import number, only, question
from .http_route import Answer, Body, CallerHandler, Handler, Route
from .metrics import METRICS_TYPE, Metrics
from .openapi import describe
from .service import Service

__all__ = ["HttpApi", "Route"]

Question = TypeVar("Question")
_PUT_REFUSALS: Final = (
    InvalidData,
    KeyMismatch,
    LayoutMismatch,
    CodecMismatch,
    ProfileMismatch,
    PreconditionFailed,
    StorageFull,
)


class HttpApi:
    """Builds the aiohttp application of one service."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        authenticator: Authenticator,
        *,
        loopback: bool = True,
        port: int | None = None,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._authenticator = authenticator
        self._loopback = loopback
        self._gate = Gate(authenticator, name=cookie_name(port))
        self.routes = (
            *_chunk_routes(ChunkHandlers(service, metrics)),
            *self._question_routes(),
            *self._report_routes(),
            *dashboard_routes(DashboardHandlers(Board(service), self._gate)),
        )

    def _question_routes(self) -> tuple[Route, ...]:
        keys = Body(record=wire.KeysQuestion)
        return (
            Route("GET", "/chunks/{key}/info", Call.DESCRIBE_CHUNK, self._describe,
                  (Answer(200, wire.ChunkDetail),), refusals=(NotFound,)),
            Route("GET", "/chunks", Call.LIST_CHUNKS, self._list,
                  (Answer(200, wire.ChunkList),), (part.LIMIT, part.PREFIX)),
            Route("DELETE", "/chunks", Call.DELETE_NAMESPACE, self._delete_namespace,
                  (Answer(200, leases.ErasedReply),)),
            Route("POST", "/chunks/exists", Call.EXISTS, self._exists, (Answer(200, wire.ExistsReply),), body=keys),
            Route("POST", "/chunks/delete", Call.DELETE_CHUNKS, self._delete_many,
                  (Answer(200, leases.DeleteManyReply),), body=keys),
            Route("POST", "/prefix", Call.LONGEST_PREFIX, self._prefix, (Answer(200, wire.PrefixCount),),
                  body=Body(record=wire.PrefixQuestion, limit_bytes=limits.PREFIX_BODY_BYTES_MAX),
                  refusals=(InvalidData,)),
            Route("POST", "/pins", Call.PIN, self._pin, (Answer(201, leases.PinReply),),
                  body=Body(record=leases.PinQuestion), refusals=(StorageFull,)),
            Route("DELETE", "/pins/{lease}", Call.RELEASE, self._release, (Answer(200, leases.ReleaseReply),)),
            Route("POST", "/hints", Call.HINT, self._hint, (Answer(200, leases.HintReply),),
                  body=Body(record=leases.HintQuestion)),
            Route("POST", "/prefetch", Call.PREFETCH, self._prefetch, (Answer(202, leases.PrefetchReply),), body=keys),
            Route("POST", "/plan", Call.PLAN, self._plan, (Answer(200, plan_wire.PlanReply),),
                  body=Body(record=plan_wire.PlanQuestion, limit_bytes=limits.PREFIX_BODY_BYTES_MAX),
                  refusals=(InvalidData,)),
            Route("POST", "/report", Call.REPORT, self._report, (Answer(200, plan_wire.ReportReply),),
                  body=Body(record=plan_wire.EngineReport)),
        )  # fmt: skip

    def _report_routes(self) -> tuple[Route, ...]:
        health = (Answer(200, wire.Health),)
        return (
            Route("GET", "/tenant", Call.TENANT, self._tenant, (Answer(200, tenancy.TenantStats),)),
            Route("GET", "/namespaces", Call.NAMESPACES, self._namespaces, (Answer(200, leases.NamespaceList),)),
            Route(
                "GET",
                "/events",
                Call.EVENTS,
                self._events,
                (Answer(200, media=EVENTS_TYPE),),
                headers=(part.LAST_EVENT_ID,),
                refusals=(Overloaded,),
            ),
            Route("POST", "/scrub", Call.SCRUB, self._start_scrub, (Answer(202, ScrubReport),), refusals=(NotFound,)),
            Route("GET", "/scrub", Call.SCRUB_REPORT, self._scrub, (Answer(200, ScrubReport),), refusals=(NotFound,)),
            Route("GET", "/stats", Call.STATS, self._stats, (Answer(200, wire.DaemonStats),)),
            Route("GET", "/metrics", Call.METRICS, self._render_metrics, (Answer(200, media=METRICS_TYPE),)),
            Route("GET", "/healthz", Call.HEALTH, self._health, health),
            Route("GET", "/readyz", Call.READY, self._ready, health, refusals=(Overloaded,)),
            Route("GET", "/openapi.json", Call.DESCRIPTION, self._description, (Answer(200, dict),)),
        )

    def application(self) -> web.Application:
        """The application: every route of the table, and the guard around all of them."""
        routes: dict[web.AbstractRoute, Route] = {}
        requests = self._service.journal.requests
        guard = Guard(self._metrics, self._authenticator, routes, self._gate, requests, self._loopback)
        app = web.Application(middlewares=[guard.middleware()], client_max_size=limits.PROFILE_BYTES_MAX)
        app.on_response_prepare.append(stamp)
        for route in self.routes:
            handler = self._handler(route)
            routes[app.router.add_route(route.method, route.path, handler, expect_handler=_continue_later)] = route
        return app

    @cached_property
    def description(self) -> bytes:
        """The routes as OpenAPI 3.1."""
        return wire.encode(describe(self.routes, cookie=self._gate.cookie))

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

    async def _describe(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        return _json(await self._service.describe(caller, key_from_hex(request.match_info["key"])))

    async def _list(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request, "limit", "prefix")
        limit = number(request, "limit", limits.LIST_CHUNKS_DEFAULT)
        return _json(await self._service.list_chunks(caller, limit=limit, prefix=request.query.get("prefix", "")))

    async def _exists(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        asked = await self._question(wire.KeysQuestion, request, caller)
        return _json(wire.ExistsReply(tuple(await self._service.exists(caller, wire.parse_keys(asked.keys)))))

    async def _delete_many(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        asked = await self._question(wire.KeysQuestion, request, caller)
        deleted = await self._service.delete_many(caller, wire.parse_keys(asked.keys))
        return _json(leases.DeleteManyReply(tuple(deleted)))

    async def _delete_namespace(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        return _json(leases.ErasedReply(await self._service.delete_namespace(caller)))

    async def _prefix(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        limit = limits.PREFIX_BODY_BYTES_MAX
        asked = await question(self._service, self._metrics, request, caller, wire.PrefixQuestion, limit=limit)
        return _json(await self._service.longest_prefix(caller, asked))

    async def _pin(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        asked = await self._question(leases.PinQuestion, request, caller)
        keys = wire.parse_keys(asked.keys)
        pinned = await self._service.pin(caller, keys, lease_seconds=asked.lease_seconds)
        return _json(leases.PinReply(pinned.lease, pinned.until_ms, pinned.pinned), status=201)

    async def _release(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        text = request.match_info["lease"]
        if len(text) != 2 * LEASE_ID_BYTES or not set(text) <= set("0123456789abcdef"):
            raise InvalidRequest(f"lease {text[:40]!r} is not {2 * LEASE_ID_BYTES} lower-case hexadecimal digits")
        return _json(leases.ReleaseReply(self._service.release(caller, LeaseId(bytes.fromhex(text)))))

    async def _hint(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        asked = await self._question(leases.HintQuestion, request, caller)
        keys = wire.parse_keys(asked.keys)
        self._service.hint(caller, keys, finished=asked.finished)
        return _json(leases.HintReply(len(keys)))

    async def _prefetch(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        asked = await self._question(wire.KeysQuestion, request, caller)
        accepted = await self._service.prefetch(caller, wire.parse_keys(asked.keys))
        return _json(leases.PrefetchReply(accepted), status=202)

    async def _plan(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        limit = limits.PREFIX_BODY_BYTES_MAX
        asked = await question(self._service, self._metrics, request, caller, plan_wire.PlanQuestion, limit=limit)
        return _json(await self._service.planning.plan(caller, asked))

    async def _report(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return _json(
            self._service.planning.report(caller, await self._question(plan_wire.EngineReport, request, caller))
        )

    async def _tenant(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        return _json(self._service.tenant(caller))

    async def _namespaces(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        return _json(self._service.namespaces(caller))

    async def _events(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        return await stream_events(self._service, request, caller)

    async def _start_scrub(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        return _json(self._service.start_scrub(caller), status=202)

    async def _scrub(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        only(request)
        return _json(self._service.scrub_report(caller))

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
        scrape = self._metrics.render(request.headers.get("Accept", METRICS_TYPE))
        return web.Response(body=scrape.body, headers={"Content-Type": scrape.content_type})

    async def _description(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return web.Response(body=self.description, content_type=wire.JSON_TYPE)

    async def _question(self, kind: type[Question], request: web.Request, caller: Caller) -> Question:
        return await question(self._service, self._metrics, request, caller, kind)


def _chunk_routes(chunks: ChunkHandlers) -> tuple[Route, ...]:
    reading = (part.IF_MATCH, part.IF_NONE_MATCH, part.RANGE, part.IF_RANGE)
    changing = (part.IF_MATCH, part.IF_NONE_MATCH)
    refusals = (NotFound, PreconditionFailed, RangeNotSatisfiable)
    head = (Answer(200, media=None, headers=part.CHUNK_HEADERS), part.CHUNK_ANSWERS[2])
    return (
        Route("PUT", "/chunks/{key}", Call.PUT_CHUNK, chunks.put, (Answer(201, wire.PutReply),),
              (part.ACK, part.TTL), (part.PARENT, *changing), part.CONTAINER, _PUT_REFUSALS),
        Route("GET", "/chunks/{key}", Call.GET_CHUNK, chunks.get, part.CHUNK_ANSWERS,
              (part.LEVEL, part.LAYERS), (*reading, part.VERIFIES), refusals=refusals),
        Route("HEAD", "/chunks/{key}", Call.HEAD_CHUNK, chunks.head, head,
              (part.LEVEL, part.LAYERS), changing, refusals=refusals[:2]),
        Route("DELETE", "/chunks/{key}", Call.DELETE_CHUNK, chunks.delete, (Answer(200, wire.DeleteReply),),
              headers=changing, refusals=(PreconditionFailed,)),
        Route("PUT", "/chunks", Call.PUT_CHUNKS, chunks.put_many, (Answer(200, batches.PutManyReply),),
              (part.ACK,), body=part.BATCH),
        Route("POST", "/chunks/get", Call.GET_CHUNKS, chunks.get_many, (Answer(200, media=batches.BATCH_TYPE),),
              body=Body(record=leases.BatchQuestion)),
        Route("PUT", "/profiles/{digest}", Call.PUT_PROFILE, chunks.put_profile, (Answer(201, wire.ProfileReply),),
              body=part.PROFILE, refusals=(InvalidData, KeyMismatch, StorageFull)),
        Route("GET", "/profiles/{digest}", Call.GET_PROFILE, chunks.get_profile, part.PROFILE_ANSWERS,
              headers=reading, refusals=refusals),
    )  # fmt: skip


async def _continue_later(request: web.Request) -> None:
    """Leave a client that waits for "100 Continue" waiting, until its headers have been judged."""


def _json(record: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=wire.encode(record), content_type=wire.JSON_TYPE)
