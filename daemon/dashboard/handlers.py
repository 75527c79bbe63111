"""The dashboard over HTTP: its page and files for anybody, login, logout, and what the page asks for."""

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from ... import limits
from ...clients import wire
from ...errors import NotFound, Overloaded, TooManyAttempts
from ...kvstore.key import key_from_hex
from .. import http_route as part
from ..call import Call
from ..caller import Caller, Scope
from ..http_conditions import Conditions, Verdict
from ..http_query import number, only
from ..http_route import Answer, Route
from .board import Board
from .gate import PATH, Gate
from .pages import HEADERS, IMAGE_TYPE, PAGE, PAGE_TYPE, SCRIPT_TYPE, STYLE_TYPE, static_file
from .records import ChunkMap, Login, State

__all__ = ["DashboardHandlers", "dashboard_routes"]

_NO_STORE: Final = {**HEADERS, "Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class DashboardHandlers:
    """What serves the routes below ``/dashboard``."""

    board: Board
    gate: Gate

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The page."""
        only(request)
        return _file(request, PAGE)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """What the page loads."""
        only(request)
        return _file(request, request.match_info["file"])

    async def log_in(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Begin a session of whoever has sent a key, which the guard has looked at."""
        only(request)
        response = web.Response(status=201, content_type=wire.JSON_TYPE, headers=_NO_STORE)
        seconds = self.gate.begin(request, response, caller)
        scopes = tuple(scope for scope in Scope if scope in caller.scopes)
        response.body = wire.encode(Login(caller.tenant, scopes, seconds))
        return response

    async def log_out(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """End the session that the cookie names."""
        only(request)
        response = web.Response(status=204, headers=_NO_STORE)
        self.gate.end(request, response)
        return response

    async def state(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """What the page shows."""
        only(request, "since")
        return _json(self.board.state(caller, number(request, "since", 0)))

    async def chunk(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """What the inspector shows."""
        only(request)
        return _json(await self.board.chunk(caller, key_from_hex(request.match_info["key"])))


def dashboard_routes(handlers: DashboardHandlers) -> tuple[Route, ...]:
    """The routes; those that change something need a key, or end what the cookie itself names."""
    files = (STYLE_TYPE, IMAGE_TYPE)
    tagged = (part.TAG,)
    return (
        Route("GET", PATH, Call.DASHBOARD, handlers.page,
              (Answer(200, media=PAGE_TYPE, headers=tagged), Answer(304, media=None, headers=tagged)),
              headers=(part.IF_NONE_MATCH,)),
        Route("GET", f"{PATH}/static/{{file}}", Call.DASHBOARD_FILE, handlers.file,
              (Answer(200, media=SCRIPT_TYPE, headers=tagged, media_too=files),
               Answer(304, media=None, headers=tagged)),
              headers=(part.IF_NONE_MATCH,), refusals=(NotFound,)),
        Route("POST", f"{PATH}/session", Call.LOG_IN, handlers.log_in, (Answer(201, Login),),
              refusals=(TooManyAttempts, Overloaded)),
        Route("DELETE", f"{PATH}/session", Call.LOG_OUT, handlers.log_out, (Answer(204, media=None),)),
        Route("GET", f"{PATH}/state", Call.DASHBOARD_STATE, handlers.state, (Answer(200, State),), (part.SINCE,)),
        Route("GET", f"{PATH}/chunks/{{key}}", Call.DASHBOARD_CHUNK, handlers.chunk, (Answer(200, ChunkMap),),
              refusals=(NotFound,)),
    )  # fmt: skip


def _file(request: web.Request, name: str) -> web.Response:
    found = static_file(name)
    if found is None:
        raise NotFound(f"the dashboard has no file {name[: limits.REQUEST_ID_CHARACTERS_MAX]!r}")
    headers = {**HEADERS, "ETag": found.tag}
    conditions = Conditions(none_match=request.headers.get("If-None-Match"))
    if conditions.judge(found.tag, reading=True) is Verdict.NOT_MODIFIED:
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.data, content_type=found.media, charset="utf-8", headers=headers)


def _json(record: object) -> web.Response:
    return web.Response(body=wire.encode(record), content_type=wire.JSON_TYPE, headers=_NO_STORE)
