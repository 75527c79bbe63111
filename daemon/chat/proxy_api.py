"""A proxy before a vLLM that uses kvloom: chat requests may name documents, everything else passes as it is.

Documents are put first, in the order named, so that requests over the same ones share a prefix whose KV the engine
loads; putting a document has the engine compute that prefix once.
"""

import asyncio
import json
import re
from typing import Any, Final

import aiohttp
from aiohttp import web
from yarl import URL

from ... import limits
from ...clients.rag.documents import Document
from ...clients.rag.library import Library
from ...errors import InvalidRequest, StorageUnavailable
from ..http_body import body_bytes, read_body
from .documents import DocumentRoutes
from .guard import ChatGuard
from .request import document_ids, parse_object, with_documents

__all__ = ["ProxyApi"]

_PATH: Final = re.compile(r"/v1/[A-Za-z0-9_/.:-]{1,200}", re.ASCII)
_CHAT: Final = "/v1/chat/completions"
_OURS: Final = frozenset(
    {
        "host", "authorization", "connection", "keep-alive", "proxy-authorization", "proxy-authenticate", "te",
        "trailer", "transfer-encoding", "upgrade", "content-length", "expect", "cookie", "set-cookie",
        "content-encoding",
    }
)  # fmt: skip
"""Headers of one connection, or of one side's credentials: never passed on."""


class ProxyApi:
    """Builds the application before the engine at ``upstream`` (``http://host:port``), which takes ``upstream_key``."""

    def __init__(self, library: Library, guard: ChatGuard, *, upstream: str, upstream_key: str | None = None) -> None:
        url = URL(upstream)
        if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/") or url.query:
            raise InvalidRequest(f"upstream is {upstream[:80]!r}, must be http://host:port")
        self._library, self._guard, self._upstream = library, guard, url.origin()
        self._credentials = {} if upstream_key is None else {"Authorization": f"Bearer {upstream_key}"}
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        """Routes and guard; a client session lives as long as it."""
        application = web.Application(
            middlewares=[self._guard.middleware()], client_max_size=limits.CHAT_BODY_BYTES_MAX
        )
        application.cleanup_ctx.append(self._connected)
        application.router.add_get("/healthz", self._health)
        DocumentRoutes(self._library, self._put, self._delete).add_to(application.router)
        application.router.add_route("*", "/{path:.*}", self._pass)
        return application

    async def _connected(self, _application: web.Application) -> Any:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.CONNECT_SECONDS_MAX, sock_read=limits.CHAT_UPSTREAM_SECONDS_MAX
        )
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
            trust_env=False,
        )
        yield
        await self._session.close()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _put(self, name: str, document: Document) -> dict[str, Any]:
        """Keep the document, and have the engine compute it; where the engine is away the next question does."""
        await asyncio.to_thread(self._library.put, name, document)
        try:
            return {"prefilled_tokens": await self._prefill(document)}
        except StorageUnavailable as error:
            return {"prefilled_tokens": 0, "prefill_failed": str(error)}

    async def _prefill(self, document: Document) -> int:
        models = await self._ask("GET", "/v1/models", None)
        served = models.get("data")
        if not isinstance(served, list) or not served or not isinstance(served[0], dict):
            raise StorageUnavailable("the engine serves no model")
        body = {"model": served[0].get("id"), "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
        usage = (await self._ask("POST", _CHAT, with_documents(body, [document]))).get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return tokens if isinstance(tokens, int) else 0

    async def _delete(self, name: str) -> int:
        deleted = await asyncio.to_thread(self._library.delete, name)
        await asyncio.to_thread(self._library.forget, ())
        return deleted

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        """Ask the engine the same, less the names, and hand on what it says while it says it."""
        path = request.rel_url.raw_path
        if not _PATH.fullmatch(path) or ".." in path:
            raise InvalidRequest(f"path {path[:80]!r} is not one of the engine's /v1 interface")
        body_bytes(request, what="request", limit=limits.CHAT_BODY_BYTES_MAX)
        body = bytes(await read_body(request, what="request", limit=limits.CHAT_BODY_BYTES_MAX))
        if path == _CHAT and request.method == "POST":
            body = await self._translated(body)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _OURS]
        url = self._upstream.join(URL(str(request.rel_url), encoded=True))
        try:
            async with self._connection().request(
                request.method, url, data=body or None, headers=[*headers, *self._credentials.items()],
                allow_redirects=False,
            ) as answer:  # fmt: skip
                return await _handed_on(request, answer)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise StorageUnavailable(
                f"the engine does not answer: {str(error)[:120] or type(error).__name__}"
            ) from error

    async def _translated(self, body: bytes) -> bytes:
        """The request with the texts of the documents that it names; the very bytes where it names none."""
        if b"document_ids" not in body:
            return body
        parsed = parse_object(body)
        names = document_ids(parsed)
        documents = [await asyncio.to_thread(self._library.get, name) for name in names]
        if documents:
            parsed = with_documents(parsed, documents)
        parsed.pop("document_ids", None)
        return json.dumps(parsed).encode()

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """A question of our own."""
        try:
            async with self._connection().request(
                method, self._upstream.join(URL(path)), json=body, headers=self._credentials, allow_redirects=False
            ) as answer:
                data = await _whole(answer)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise StorageUnavailable(
                f"the engine does not answer: {str(error)[:120] or type(error).__name__}"
            ) from error
        if answer.status != 200:
            raise StorageUnavailable(f"the engine answers {method} {path} with status {answer.status}")
        try:
            return parse_object(data)
        except InvalidRequest as error:
            raise StorageUnavailable(f"the engine's answer to {method} {path} cannot be read: {error}") from error

    def _connection(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the application has not been started")
        return self._session


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in answer.content.iter_any():
        data += part
        if len(data) > limits.CHAT_BODY_BYTES_MAX:
            raise StorageUnavailable(f"the engine's answer has over {limits.CHAT_BODY_BYTES_MAX} bytes, the limit")
    return bytes(data)


async def _handed_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.headers.items():
        if name.lower() not in _OURS or name.lower() == "content-encoding":
            response.headers.add(name, value)
    await response.prepare(request)
    try:
        async for data in answer.content.iter_any():
            await response.write(data)
    except (TimeoutError, aiohttp.ClientPayloadError) as error:  # too late for a status: the connection ends instead
        raise ConnectionAbortedError("the engine stopped in the middle of its answer") from error
    await response.write_eof()
    return response
