"""What every request to a chat server passes: no web pages, a key, a place inside, and errors as OpenAI writes them."""

import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from ... import limits
from ...errors import Forbidden, InvalidRequest, KvloomError, Overloaded, Unauthenticated
from ..http_guard import names_this_machine

__all__ = ["ChatGuard", "error_body"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_OPEN = frozenset({"/healthz"})
_log = structlog.get_logger("kvloom.chat")


def error_body(error: KvloomError) -> dict[str, object]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "code": error.code, "param": None}}


@dataclass(slots=True)
class ChatGuard:
    """Lets in whoever has ``key``, ``requests_max`` at a time."""

    key: str
    requests_max: int = limits.CHAT_REQUESTS_MAX
    _inside: int = 0

    def middleware(self) -> Middleware:
        """The one middleware of the application."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                self._admit(request)
            except KvloomError as error:
                return _refusal(request, error)
            self._inside += 1
            try:
                return await handler(request)
            except KvloomError as error:
                return _refusal(request, error)
            except web.HTTPException as error:
                line = f"{request.method} {request.path[:80]}: {error.reason.lower()}"
                return _refusal(request, InvalidRequest(line), error.status)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - the edge: whatever fails inside is logged and answered, never shown
                _log.error("request failed", method=request.method, path=request.path, exc_info=error)
                return _refusal(request, KvloomError("internal error; the server's log has it"))
            finally:
                self._inside -= 1

        return guarded

    def _admit(self, request: web.Request) -> None:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not names_this_machine(hosts[0]):
            raise Forbidden(f"Host is {', '.join(hosts)[:80]!r}, must be localhost or a loopback address")
        if "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none":
            raise Forbidden("web pages may not use this server")
        if request.path in _OPEN:
            return
        given = request.headers.getall("Authorization", [])
        scheme, _, text = (given[0] if len(given) == 1 else "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text.isascii() or not hmac.compare_digest(text, self.key):
            raise Unauthenticated("a key that holds is needed: Authorization: Bearer …")
        if self._inside >= self.requests_max:
            raise Overloaded(f"{self._inside} requests are being answered, the limit is {self.requests_max}")


def _refusal(request: web.Request, error: KvloomError, status: int | None = None) -> web.Response:
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if error.http_status in (429, 503):
        headers["Retry-After"] = "1" if error.retry_seconds is None else f"{ceil(error.retry_seconds)}"
    response = web.Response(
        status=status or error.http_status,
        body=json.dumps(error_body(error)).encode(),
        content_type="application/json",
        headers=headers,
    )
    if not request.content.is_eof():
        response.force_close()
    return response
