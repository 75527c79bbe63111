"""A connection of the HTTP edge: refuses what does not parse as HTTP in the same words as everything else."""

import asyncio

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .. import __version__, limits
from ..clients import wire
from ..errors import InvalidRequest, KvloomError

__all__ = ["SERVER", "GuardedProtocol", "json_error"]

SERVER = f"kvloom/{__version__}"
_log = structlog.get_logger("kvloom.http")


def json_error(status: int, code: str, message: str, headers: dict[str, str]) -> web.Response:
    """An error as every edge says it: a code for programs and a line for people."""
    body = wire.encode(wire.ErrorBody(code, message))
    return web.Response(status=status, body=body, content_type=wire.JSON_TYPE, headers=headers)


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
        response = json_error(status, error.code, message, {"Server": SERVER})
        response.force_close()
        return response
