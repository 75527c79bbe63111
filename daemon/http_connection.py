"""A connection of the HTTP edge: how long a stranger may take, and how what is no HTTP is refused.

Whoever connects has a few seconds to send a request with a key; until then the connection is a stranger's, of which
there may be few. A head that has begun must come to its end as soon. After that, what a tenant's connections may do is
the admission's business, and an idle one is kept for the keep-alive time.
"""

import asyncio

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from .. import __version__, limits
from ..clients import wire
from ..errors import InvalidRequest, KvloomError, Overloaded
from .admission import Admission
from .caller import Caller

__all__ = ["SERVER", "GuardedProtocol", "json_error"]

SERVER = f"kvloom/{__version__}"
_log = structlog.get_logger("kvloom.http")


def json_error(status: int, code: str, message: str, headers: dict[str, str]) -> web.Response:
    """An error as every edge says it: a code for programs and a line for people."""
    body = wire.encode(wire.ErrorBody(code, message))
    return web.Response(status=status, body=body, content_type=wire.JSON_TYPE, headers=headers)


class GuardedProtocol(RequestHandler):
    """One connection, counted as a stranger's or as its tenant's for as long as it lasts."""

    __slots__ = ("_admission", "_asyncio_loop", "_head_timer", "_patience", "_tenant")

    def __init__(self, server: Server, admission: Admission, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.KEEPALIVE_SECONDS_MAX,
            lingering_time=limits.REFUSED_BODY_SECONDS_MAX,
            max_line_size=limits.REQUEST_LINE_BYTES_MAX,
            max_headers=limits.REQUEST_HEADERS_MAX,
            max_field_size=limits.REQUEST_HEADER_BYTES_MAX,
            read_bufsize=limits.STREAM_FRAME_BYTES,
            auto_decompress=False,
        )
        self._admission = admission
        self._asyncio_loop = loop
        self._tenant: str | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def is_admitted(self) -> bool:
        """Whether a key has come over this connection."""
        return self._tenant is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, unless there are too many: then it is told so and closed."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            # What the event loop receives at a time; every other connection has its turn before the next. With a
            # quarter of this, its own default, bodies that come hardly get on beside many that go.
            transport.max_size = limits.STREAM_FRAME_BYTES
        try:
            self._admission.connect(None)
        except Overloaded as error:
            if isinstance(transport, asyncio.WriteTransport):
                transport.write(_raw_refusal(error))
            self.force_close()
            return
        self._patience = self._asyncio_loop.call_later(limits.STRANGER_SECONDS_MAX, self._lose_patience)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give back the connection's place."""
        if self._patience is not None:
            self._admission.disconnect(self._tenant)
        self._stop(self._patience)
        self._stop(self._head_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what came, and see to it that a head which has begun ends."""
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._stop(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self._asyncio_loop.call_later(limits.HEAD_SECONDS_MAX, self._give_up)

    def admit(self, caller: Caller) -> None:
        """A key has come: count the connection as its tenant's; :class:`TenantOverloaded` where that has too many."""
        if self._tenant == caller.tenant or self._patience is None:
            return
        self._admission.connect(caller.tenant)
        self._admission.disconnect(self._tenant)
        self._tenant = caller.tenant
        self._patience.cancel()

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
        response = json_error(status, error.code, message, {"Server": SERVER})
        response.force_close()
        return response

    def _lose_patience(self) -> None:
        """Give up, but look at what has come first, once: it may have lain there while the process stood still."""
        if self._messages or self._current_request is not None:
            self._patience = self._asyncio_loop.call_later(limits.STRANGER_JUDGED_SECONDS_MAX, self._give_up)
        else:
            self._give_up()

    def _give_up(self) -> None:
        """Close the connection at once, whatever is half sent."""
        if self.transport is not None:
            self.transport.abort()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def _raw_refusal(error: KvloomError) -> bytes:
    """The answer to a connection that is closed before it asks anything."""
    body = wire.encode(wire.ErrorBody(error.code, str(error)))
    head = (
        f"HTTP/1.1 {error.http_status} Overloaded\r\nServer: {SERVER}\r\nContent-Type: {wire.JSON_TYPE}\r\n"
        f"Retry-After: 1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
