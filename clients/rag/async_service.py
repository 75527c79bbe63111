"""The service for programs with an event loop: the same calls, awaited; the model runs on threads."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

from .advised import PlanPreview
from .background import IngestJob
from .documents import Document
from .progress import IngestSummary
from .service import LibraryChange, RagService
from .streaming import Answered, AnswerStream

__all__ = ["AsyncAnswerStream", "AsyncRagService"]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncAnswerStream:
    """The pieces of one answer, for ``async for``; then :attr:`answered`. Made by :meth:`AsyncRagService.stream`."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    @property
    def answered(self) -> Answered:
        """As :attr:`AnswerStream.answered`."""
        return self._stream.answered

    def __aiter__(self) -> "AsyncAnswerStream":
        return self

    async def __anext__(self) -> str:
        piece = await asyncio.to_thread(next, self._stream, None)
        if piece is None:
            raise StopAsyncIteration
        return piece


class AsyncRagService:
    """:class:`RagService`, awaited. Cancelling an answer that is not streamed lets the model finish it unheard."""

    def __init__(self, service: RagService) -> None:
        self.service = service

    async def close(self) -> None:
        """As :meth:`RagService.close`."""
        await asyncio.to_thread(self.service.close)

    async def answer(self, question: str, documents: Sequence[Document], **options: Any) -> Answered:
        """As :meth:`RagService.answer`."""
        return await _on_thread(self.service.answer, question, documents, **options)

    @asynccontextmanager
    async def stream(
        self, question: str, documents: Sequence[Document], **options: Any
    ) -> AsyncIterator[AsyncAnswerStream]:
        """As :meth:`RagService.stream`; the model stops when the block ends, however it does."""
        stream = self.service.stream(question, documents, **options)
        try:
            yield AsyncAnswerStream(stream)
        finally:
            await asyncio.shield(asyncio.to_thread(stream.close))

    async def ingest(self, documents: Iterable[Document], **options: Any) -> IngestSummary:
        """Ingest behind the loop's back; cancelling this cancels the ingest, and what was stored stays."""
        job: IngestJob = self.service.ingest_later(documents, **options)
        try:
            return await asyncio.wrap_future(job.ended)
        finally:
            job.cancel()

    async def preview(self, question: str, documents: Sequence[Document], **options: Any) -> PlanPreview | None:
        """As :meth:`RagService.preview`."""
        return await _on_thread(self.service.preview, question, documents, **options)

    async def warm(self, documents: Sequence[Document]) -> int:
        """As :meth:`RagService.warm`."""
        return await _on_thread(self.service.warm, documents)

    async def put_documents(self, documents: Mapping[str, Document], **options: Any) -> LibraryChange:
        """As :meth:`RagService.put_documents`."""
        return await _on_thread(self.service.put_documents, documents, **options)

    async def sync_documents(self, documents: Mapping[str, Document], **options: Any) -> LibraryChange:
        """As :meth:`RagService.sync_documents`."""
        return await _on_thread(self.service.sync_documents, documents, **options)

    async def delete_document(self, name: str) -> int:
        """As :meth:`RagService.delete_document`."""
        return await _on_thread(self.service.delete_document, name)

    async def documents(self, names: Iterable[str]) -> list[Document]:
        """As :meth:`RagService.documents`."""
        return await _on_thread(self.service.documents, names)


async def _on_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.to_thread(partial(call, *args, **kwargs))
