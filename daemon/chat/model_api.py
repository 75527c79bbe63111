"""OpenAI's chat completions over a model of our own: documents are blended, answers may come piece by piece."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ... import limits
from ...clients.rag.async_service import AsyncRagService
from ...clients.rag.decoding import Decoding
from ...clients.rag.documents import Document
from ...clients.rag.library import Library
from ...clients.rag.pipeline import Strategy
from ...clients.rag.service import RagService
from ...clients.rag.streaming import Answered
from ...errors import KvloomError, NotFound
from .documents import DocumentRoutes, read_object
from .guard import ChatGuard, error_body
from .request import ChatQuestion, parse_question

__all__ = ["ModelApi"]


class ModelApi:
    """Builds the application of one model, ``name``, over ``service``, whose library is ``library``."""

    def __init__(
        self,
        service: RagService,
        library: Library,
        guard: ChatGuard,
        *,
        name: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rag, self._library, self._guard = AsyncRagService(service), library, guard
        self._service, self._name, self._clock = service, name, clock

    def application(self) -> web.Application:
        """Routes and guard."""
        application = web.Application(
            middlewares=[self._guard.middleware()], client_max_size=limits.CHAT_BODY_BYTES_MAX
        )
        router = application.router
        router.add_get("/healthz", self._health)
        router.add_get("/v1/models", self._models)
        router.add_post("/v1/chat/completions", self._chat)
        DocumentRoutes(self._library, self._put, self._rag.delete_document).add_to(router)
        return application

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, _request: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "kvloom"}
        return web.json_response({"object": "list", "data": [model]})

    async def _put(self, name: str, document: Document) -> dict[str, Any]:
        change = await self._rag.put_documents({name: document})
        return {"ingest": asdict(change.summary), "deleted_chunks": change.deleted_chunks}

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        question = parse_question(await read_object(request, "chat request"))
        if question.model not in (None, self._name):
            raise NotFound(f"model {(question.model or '')[:80]!r} is not served here, {self._name!r} is")
        documents = [*await self._rag.documents(question.document_ids), *question.documents]
        options = {
            "strategy": Strategy(question.strategy),
            "tokens_max": question.tokens_max,
            "decoding": Decoding.at(question.temperature, top_p=question.top_p, seed=question.seed),
        }
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(self._clock()), "model": self._name}
        if question.stream:
            return await self._stream(request, question, documents, options, head)
        answered = await self._rag.answer(question.question, documents, **options)
        message = {"role": "assistant", "content": answered.answer.text}
        choice = {"index": 0, "message": message, "finish_reason": _reason(answered, question), "logprobs": None}
        body = {**head, "object": "chat.completion", "choices": [choice], **_told(answered)}
        return web.json_response(body)

    async def _stream(
        self,
        request: web.Request,
        question: ChatQuestion,
        documents: list[Document],
        options: dict[str, Any],
        head: dict[str, Any],
    ) -> web.StreamResponse:
        """Server-sent events; whoever goes away in the middle stops the model."""
        response: web.StreamResponse | None = None

        async def send(delta: dict[str, str], reason: str | None = None, **more: Any) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            await write({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

        async def write(event: dict[str, Any]) -> None:
            nonlocal response
            if response is None:  # not before there is something to say: until then an error has its own status
                response = web.StreamResponse(
                    headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
                )
                await response.prepare(request)
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        try:
            async with self._rag.stream(question.question, documents, **options) as stream:
                first = {"role": "assistant"}
                async for piece in stream:
                    await send({**first, "content": piece})
                    first = {}
                told = _told(stream.answered)
                await send(first, _reason(stream.answered, question), kvloom=told["kvloom"])
            if question.stream_usage:
                await write({**head, "object": "chat.completion.chunk", "choices": [], "usage": told["usage"]})
        except KvloomError as error:
            if response is None:
                raise
            await write(error_body(error))
        assert response is not None  # noqa: S101 - the end of the answer was sent at least
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _reason(answered: Answered, question: ChatQuestion) -> str:
    return "length" if len(answered.answer.token_ids) >= question.tokens_max else "stop"


def _told(answered: Answered) -> dict[str, Any]:
    """What an answer took, in OpenAI's words and in ours."""
    metrics = answered.metrics
    usage = {
        "prompt_tokens": metrics.prompt_tokens,
        "completion_tokens": metrics.answer_tokens,
        "total_tokens": metrics.prompt_tokens + metrics.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": metrics.loaded_tokens},
    }
    return {"usage": usage, "kvloom": asdict(metrics)}
