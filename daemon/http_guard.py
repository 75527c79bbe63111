"""What every HTTP request passes on its way in and out: its id, who asks, its error as one line, its figures.

Nothing is served to whoever has no credential, but what the route table marks as open. Before that, three checks keep
web pages out: on loopback the Host header must be a name of this machine (a page that rebinds its own DNS name to
127.0.0.1 still sends that name), a request that carries an Origin is refused, and so is one that the browser itself
marks as made by another site. The dashboard's own page is let through to the dashboard's own routes, and whoever
follows a link to the page gets it: there is nothing in it.
"""

import ipaddress
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from .. import limits
from ..clients import wire
from ..errors import (
    Forbidden,
    InvalidRequest,
    KvloomError,
    NotFound,
    TenantOverloaded,
    TooManyAttempts,
    Unauthenticated,
)
from ..tracing import Role, span
from .authenticator import Authenticator
from .call import KEY, OPEN, SESSION, Call, Door
from .caller import Caller, Scope
from .dashboard.gate import Gate
from .http_connection import SERVER, GuardedProtocol, json_error
from .http_route import Route
from .journal.slow_requests import SlowRequests
from .metrics import Metrics

__all__ = ["OPEN", "Guard", "current_caller", "names_this_machine", "stamp"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{limits.REQUEST_ID_CHARACTERS_MAX}}}")
_REQUEST_ID_NAME: Final = "request_id"
_caller: Final[ContextVar[Caller | None]] = ContextVar("kvloom_caller", default=None)
_RETRY_SECONDS: Final = "1"
_log = structlog.get_logger("kvloom.http")


@dataclass(frozen=True, slots=True)
class Guard:
    """Checks every request, finds its caller, turns every error into its JSON line, counts and logs.

    ``routes`` has every route there is; whatever is not in it is refused like the rest, so what a path leads to is told
    to callers only. On ``loopback`` the Host must name this machine.
    """

    metrics: Metrics
    authenticator: Authenticator
    routes: Mapping[web.AbstractRoute, Route]
    gate: Gate
    requests: SlowRequests
    loopback: bool

    def middleware(self) -> Middleware:
        """The one middleware of the application."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            started = time.perf_counter()
            request_id = _request_id(request)
            structlog.contextvars.clear_contextvars()
            structlog.contextvars.bind_contextvars(**{_REQUEST_ID_NAME: request_id})
            route = _route(request)
            work = self.requests.begin()
            with span(f"{request.method} {route}", role=Role.SERVER, carrier=request.headers) as answering:
                if answering.trace_id:
                    structlog.contextvars.bind_contextvars(trace_id=answering.trace_id)
                response = await self._answer(request, handler)
                answering.set("http.response.status_code", response.status)
                if response.status >= 500:
                    answering.fail(f"status {response.status}")
            seconds = time.perf_counter() - started
            self.metrics.observe_request(request.method, route, response.status, seconds)
            known = self.routes.get(request.match_info.route)
            if known is not None:
                self.requests.finish(work, request_id, "http", known.call.name.lower(), str(response.status), seconds)
            _log.debug("request", method=request.method, path=request.path, status=response.status, seconds=seconds)
            return response

        return guarded

    def _admit(self, request: web.Request) -> None:
        """Find out who calls and whether he may; raises the refusal."""
        _caller.set(None)  # a connection's requests run in one context
        route = self.routes.get(request.match_info.route)
        _check_headers(request, route, loopback=self.loopback)
        need = None if route is None else route.needs
        if need is OPEN:
            return
        caller = self._find(request, need)
        if isinstance(request.protocol, GuardedProtocol):
            request.protocol.admit(caller)
        _caller.set(caller)
        if isinstance(need, Scope):
            caller.require(need)

    def _find(self, request: web.Request, need: Scope | Door | None) -> Caller:
        """Who calls: by his key, or by the cookie of his session where the route takes one."""
        keys = request.headers.getall("Authorization", [])
        if need is KEY:
            return self.gate.by_key(request, lambda: self.authenticator.by_header(keys))
        cookie = request.cookies.get(self.gate.cookie) if need is SESSION and not keys else None
        if cookie is not None:
            with suppress(Unauthenticated):  # whoever may come in without a key may do so with an old cookie, too
                return self.gate.by_cookie(cookie)
        return self.authenticator.by_header(keys)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._admit(request)
            return await handler(request)
        except KvloomError as error:
            # A miss is an everyday answer, and strangers must not fill the log.
            say = _log.debug if isinstance(error, NotFound | Unauthenticated) else _log.info
            say("refused", method=request.method, path=request.path, error=error.code, message=str(error))
            response = _error_response(error)
            if isinstance(error, Unauthenticated | TenantOverloaded | TooManyAttempts) and _is_stranger(request):
                response.force_close()
            return _closing(request, response)
        except web.HTTPException as error:
            line = f"{request.method} {request.path[:80]}: {error.reason.lower()}"
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _closing(request, json_error(error.status, InvalidRequest.code, line, allow))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge: whatever fails inside is logged and answered, never shown
            _log.error("request failed", method=request.method, path=request.path, exc_info=error)
            return _closing(
                request, _error_response(KvloomError("internal error; the daemon's log has it by this request id"))
            )


def current_caller() -> Caller:
    """Who asks: found before any handler runs, on every route that is not open."""
    caller = _caller.get()
    if caller is None:
        raise Unauthenticated("a key is needed")
    return caller


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """Name the server and repeat the request's id; a signal handler, called for every answer."""
    response.headers["Server"] = SERVER
    request_id = structlog.contextvars.get_contextvars().get(_REQUEST_ID_NAME)
    if request_id is not None:
        response.headers[wire.HEADER_REQUEST_ID] = request_id


def _error_response(error: KvloomError) -> web.Response:
    """The error as the edge says it: its own status, its own code, its one line."""
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if error.http_status in (429, 503):
        headers["Retry-After"] = _RETRY_SECONDS if error.retry_seconds is None else f"{ceil(error.retry_seconds)}"
    return json_error(error.http_status, error.code, str(error), headers)


def _is_stranger(request: web.Request) -> bool:
    return isinstance(request.protocol, GuardedProtocol) and not request.protocol.is_admitted


def _closing(request: web.Request, response: web.Response) -> web.Response:
    """Close the connection after the answer where the request's body was not read to its end."""
    if not request.content.is_eof():
        response.force_close()
    return response


def _check_headers(request: web.Request, route: Route | None, *, loopback: bool) -> None:
    header_bytes = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
    if header_bytes > limits.REQUEST_HEADER_BYTES_MAX:
        raise InvalidRequest(f"headers have {header_bytes} bytes, the limit is {limits.REQUEST_HEADER_BYTES_MAX}")
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or (loopback and not names_this_machine(hosts[0])):
        raise Forbidden(f"Host is {', '.join(hosts)[:80]!r}, must be localhost or a loopback address")
    if "Origin" in request.headers and not (route is not None and _is_of_own_page(request, route, hosts[0])):
        raise Forbidden(f"Origin is {request.headers['Origin'][:80]!r}, web pages may not use this daemon")
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("none", "same-origin") and not (route is not None and _follows_a_link(request, route)):
        raise Forbidden(f"Sec-Fetch-Site is {site[:80]!r}, web pages may not use this daemon")


def _is_of_own_page(request: web.Request, route: Route, host: str) -> bool:
    """Whether the dashboard's page, as this daemon served it, asks for what is there for it.

    Browsers say where from when they load a script that is a module, and with everything that is no GET.
    """
    is_for_page = route.needs in (KEY, SESSION) or route.call is Call.DASHBOARD_FILE
    return is_for_page and request.headers.getall("Origin") == [f"{request.scheme}://{host}".lower()]


def _follows_a_link(request: web.Request, route: Route) -> bool:
    """Whether a browser is to show the dashboard's page itself, as its user wants; no other page gets to see it."""
    mode, dest = (request.headers.get(f"Sec-Fetch-{name}", "") for name in ("Mode", "Dest"))
    return route.call is Call.DASHBOARD and (mode, dest) == ("navigate", "document")


@lru_cache(maxsize=64)
def names_this_machine(host: str) -> bool:
    """Whether a Host header is a loopback address or localhost, with or without a port."""
    name = re.sub(r":\d{1,5}$", "", host, flags=re.ASCII)
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name).is_loopback
    except ValueError:
        return False


def _request_id(request: web.Request) -> str:
    given = request.headers.get(wire.HEADER_REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical
