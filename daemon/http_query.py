"""Parameters and JSON bodies of HTTP requests, as what the service takes."""

from typing import TypeVar

from aiohttp import web

from .. import limits
from ..clients import wire
from ..errors import InvalidRequest
from .caller import Caller
from .http_body import body_bytes, continue_now, read_body
from .metrics import Metrics
from .service import Service

__all__ = ["number", "only", "question"]

Question = TypeVar("Question")


def only(request: web.Request, *names: str) -> None:
    """Refuse a query parameter that means nothing here (a typo would read another level than was meant)."""
    for name in request.query:
        if name not in names or len(request.query.getall(name)) > 1:
            allowed = ", ".join(names) or "none"
            raise InvalidRequest(f"query parameter {name[:40]!r} is unknown or given twice; there are: {allowed}")


def number(request: web.Request, name: str, default: int) -> int:
    """A parameter that is a number."""
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequest(f"{name} is {text[:40]!r}, not a number")
    return int(text)


async def question(
    service: Service,
    metrics: Metrics,
    request: web.Request,
    caller: Caller,
    kind: type[Question],
    *,
    limit: int = limits.KEYS_BODY_BYTES_MAX,
) -> Question:
    """The record in a request's body, which is at most ``limit`` bytes long."""
    only(request)
    size_bytes = body_bytes(request, what="body", limit=limit) * limits.JSON_PARSED_BYTES_PER_BYTE
    with service.reserving(caller, size_bytes):
        await continue_now(request)
        body = await read_body(request, what="body", limit=limit)
        metrics.add_received(len(body))
        return wire.decode(kind, body)
