"""Documents by name over HTTP: the same routes before a model of ours and before a vLLM."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ... import limits
from ...clients.rag.documents import Document
from ...clients.rag.library import DocumentVersion, Library, check_name
from ...errors import InvalidRequest, NotFound
from ..http_body import body_bytes, read_body
from .request import parse_document, parse_object

__all__ = ["DocumentRoutes", "read_object"]

OnPut = Callable[[str, Document], Awaitable[dict[str, Any]]]
OnDelete = Callable[[str], Awaitable[int]]


async def read_object(request: web.Request, what: str) -> dict[str, Any]:
    """The JSON object of a request's body, within :data:`limits.CHAT_BODY_BYTES_MAX`."""
    body_bytes(request, what=what, limit=limits.CHAT_BODY_BYTES_MAX)
    return parse_object(await read_body(request, what=what, limit=limits.CHAT_BODY_BYTES_MAX))


class DocumentRoutes:
    """``/v1/documents`` over ``library``; ``on_put`` makes one known and says more of it, ``on_delete`` forgets."""

    def __init__(self, library: Library, on_put: OnPut, on_delete: OnDelete) -> None:
        self._library, self._on_put, self._on_delete = library, on_put, on_delete

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/documents", self._list)
        router.add_put("/v1/documents/{name}", self._put)
        router.add_get("/v1/documents/{name}", self._get)
        router.add_delete("/v1/documents/{name}", self._delete)

    async def _list(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "")
        text = request.query.get("limit", str(limits.LIST_CHUNKS_DEFAULT))
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= limits.LIST_CHUNKS_MAX):
            raise InvalidRequest(f"limit is {text[:40]!r}, must be 1 to {limits.LIST_CHUNKS_MAX}")
        names = await asyncio.to_thread(self._library.names, after=after, limit=int(text))
        return web.json_response({"object": "list", "data": [{"id": name, "object": "document"} for name in names]})

    async def _put(self, request: web.Request) -> web.Response:
        name = check_name(request.match_info["name"])
        document = parse_document(await read_object(request, "document"))
        told = await self._on_put(name, document)
        versions = await asyncio.to_thread(self._library.versions, name)
        return web.json_response({**_described(name, versions), **told})

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        document = await asyncio.to_thread(self._library.get, name)
        versions = await asyncio.to_thread(self._library.versions, name)
        body = {**_described(name, versions), "title": document.title, "text": document.text}
        return web.Response(body=json.dumps(body).encode(), content_type="application/json")

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not await self._on_delete(name):
            raise NotFound(f"there is no document {name[:80]!r}")
        return web.json_response({"id": name, "object": "document", "deleted": True})


def _described(name: str, versions: list[DocumentVersion]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "document",
        "versions": [{"number": item.number, "created": int(item.made_seconds)} for item in versions],
    }
