"""What every HTTP request passes on its way in and out: its id, who may ask, its error as one line, its figures.

On loopback there are no credentials yet, so three checks keep web pages out: the Host header must be a name of this
machine (a page that rebinds its own DNS name to 127.0.0.1 still sends that name), a request that carries an Origin is
refused, and so is one that the browser itself marks as made by another site.
"""

import asyncio
import ipaddress
import os
import re
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from aiohttp.web_protocol import RequestHandler

from .. import __version__, limits
from ..clients import wire
from ..errors import Forbidden, InvalidRequest, KvloomError, NotFound
from .metrics import Metrics

__all__ = ["GuardedProtocol", "error_response", "guard", "stamp"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{limits.REQUEST_ID_CHARACTERS_MAX}}}")
_REQUEST_ID_NAME: Final = "request_id"
_SERVER: Final = f"kvloom/{__version__}"
_RETRY_SECONDS: Final = "1"
_log = structlog.get_logger("kvloom.http")


def guard(metrics: Metrics) -> Middleware:
    """The one middleware: checks, handles, turns every error into its JSON line, counts and logs."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        request_id = _request_id(request)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**{_REQUEST_ID_NAME: request_id})
        response = await _answer(request, handler)
        seconds = time.perf_counter() - started
        metrics.observe_request(request.method, _route(request), response.status, seconds)
        _log.debug("request", method=request.method, path=request.path, status=response.status, seconds=seconds)
        return response

    return middleware


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """Name the server and repeat the request's id; a signal handler, called for every answer."""
    response.headers["Server"] = _SERVER
    request_id = structlog.contextvars.get_contextvars().get(_REQUEST_ID_NAME)
    if request_id is not None:
        response.headers[wire.HEADER_REQUEST_ID] = request_id


def error_response(error: KvloomError) -> web.Response:
    """The error as the edge says it: its own status, its own code, its one line."""
    headers = {"Retry-After": _RETRY_SECONDS} if error.http_status == 503 else {}
    return _json_error(error.http_status, error.code, str(error), headers)


class GuardedProtocol(RequestHandler):
    """A connection: refuses what does not parse as HTTP with the same JSON line as everything else."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if self._manager is not None and len(self._manager.connections) > limits.CONNECTIONS_MAX:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer for aiohttp's parser (400) or for an error that escaped every handler (500)."""
        if request.writer.output_size > 0:
            raise ConnectionAbortedError("the reply had begun already")
        if status >= 500:
            _log.error("request failed", exc_info=exc)
        line = " ".join((message or "").split())[:300]
        error = InvalidRequest if status < 500 else KvloomError
        message = f"request is not HTTP that kvloom accepts: {line}"
        response = _json_error(status, error.code, message, {"Server": _SERVER})
        response.force_close()
        return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        _check_headers(request)
        return await handler(request)
    except KvloomError as error:
        say = _log.debug if isinstance(error, NotFound) else _log.info  # a miss is an everyday answer
        say("refused", method=request.method, path=request.path, error=error.code, message=str(error))
        return _closing(request, error_response(error))
    except web.HTTPException as error:
        line = f"{request.method} {request.path[:80]}: {error.reason.lower()}"
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _closing(request, _json_error(error.status, InvalidRequest.code, line, allow))
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge: whatever fails inside is logged and answered, never shown
        _log.error("request failed", method=request.method, path=request.path, exc_info=error)
        return _closing(
            request, error_response(KvloomError("internal error; the daemon's log has it by this request id"))
        )


def _closing(request: web.Request, response: web.Response) -> web.Response:
    """Close the connection after the answer where the request's body was not read to its end."""
    if not request.content.is_eof():
        response.force_close()
    return response


def _json_error(status: int, code: str, message: str, headers: dict[str, str]) -> web.Response:
    body = wire.encode(wire.ErrorBody(code, message))
    return web.Response(status=status, body=body, content_type=wire.JSON_TYPE, headers=headers)


def _check_headers(request: web.Request) -> None:
    header_bytes = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
    if header_bytes > limits.REQUEST_HEADER_BYTES_MAX:
        raise InvalidRequest(f"headers have {header_bytes} bytes, the limit is {limits.REQUEST_HEADER_BYTES_MAX}")
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or not _names_this_machine(hosts[0]):
        raise Forbidden(f"Host is {', '.join(hosts)[:80]!r}, must be localhost or a loopback address")
    if "Origin" in request.headers:
        raise Forbidden(f"Origin is {request.headers['Origin'][:80]!r}, web pages may not use this daemon")
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("none", "same-origin"):
        raise Forbidden(f"Sec-Fetch-Site is {site[:80]!r}, web pages may not use this daemon")


@lru_cache(maxsize=64)
def _names_this_machine(host: str) -> bool:
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
