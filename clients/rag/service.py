"""A pipeline that many may use at once: answers go before ingests, ingests go on where they stopped.

The model runs for one caller at a time. An answer that is asked for while documents are ingested waits for the one
document that is being prefilled, not for all of them.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from ...errors import InvalidRequest
from ...kvstore.tier import Ack
from ..client import KvloomClient
from .advised import PlanPreview
from .background import IngestJob, IngestQueue
from .decoding import GREEDY, Decoding
from .documents import Document
from .library import DocumentVersion, Library
from .metrics import AnswerMetrics
from .pipeline import RagPipeline, Strategy
from .progress import IngestProgress, IngestSummary
from .streaming import Answered, AnswerStream
from .turns import ANSWER_PRIORITY, INGEST_PRIORITY, Turns

__all__ = ["LibraryChange", "RagService"]

OnProgress = Callable[[IngestProgress], None]


@dataclass(frozen=True, slots=True)
class LibraryChange:
    """What bringing a library up to date did; ``deleted_chunks`` belonged to versions that are no longer kept."""

    versions: tuple[DocumentVersion, ...]
    summary: IngestSummary
    deleted_chunks: int


class RagService:
    """Answers, ingests and documents by name over one pipeline. Safe to use from several threads; :meth:`close` it.

    ``client`` is the pipeline's. With ``library`` documents have names and versions; the caller closes it.
    """

    def __init__(
        self,
        pipeline: RagPipeline,
        client: KvloomClient,
        *,
        library: Library | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pipeline, self.library = pipeline, library
        self._client, self._clock = client, clock
        self._turns = Turns()
        self._queue = IngestQueue(self._ingest)

    def close(self) -> None:
        """Cancel what is ingested in the background and end its thread; the pipeline stays the caller's."""
        self._queue.close()

    def __enter__(self) -> "RagService":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        strategy: Strategy = Strategy.BLEND,
        tokens_max: int = 128,
        decoding: Decoding = GREEDY,
        priority: int = ANSWER_PRIORITY,
    ) -> Answered:
        """As :meth:`RagPipeline.generate`, with what it cost."""
        asked = self._clock()
        with self._turns.take(priority):
            began = self._clock()
            answer = self.pipeline.generate(
                question, documents, strategy=strategy, tokens_max=tokens_max, decoding=decoding
            )
            ended = self._clock()
        metrics = AnswerMetrics.of(answer, waited_seconds=began - asked, total_seconds=ended - began)
        return Answered(answer, metrics)

    def stream(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        strategy: Strategy = Strategy.BLEND,
        tokens_max: int = 128,
        decoding: Decoding = GREEDY,
        priority: int = ANSWER_PRIORITY,
    ) -> AnswerStream:
        """The same, piece by piece: text as soon as there is some."""

        def run(tell: Callable[[int], None]) -> Answered:
            def on_token(token: int) -> None:
                decoding.on_token(token)
                tell(token)

            return self.answer(
                question,
                documents,
                strategy=strategy,
                tokens_max=tokens_max,
                decoding=replace(decoding, on_token=on_token),
                priority=priority,
            )

        return AnswerStream(self.pipeline.tokenizer, run)

    def ingest(
        self,
        documents: Iterable[Document],
        *,
        ack: Ack = Ack.DISK,
        priority: int = INGEST_PRIORITY,
        on_progress: OnProgress | None = None,
    ) -> IngestSummary:
        """Have the KV of ``documents`` stored; equal ones are one, and what is stored already is not prefilled.

        After each document whoever is more urgent than ``priority`` goes first. Interrupted (an exception of
        ``on_progress`` or of the daemon), it may be called again: it goes on with what is not stored.
        """
        return self._ingest(list(documents), ack, priority, on_progress)

    def ingest_later(
        self, documents: Iterable[Document], *, ack: Ack = Ack.DISK, priority: int = INGEST_PRIORITY
    ) -> IngestJob:
        """Ingest on the service's own thread; jobs of smaller ``priority`` go first. Raises :class:`Overloaded`."""
        return self._queue.submit(list(documents), ack, priority)

    def preview(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        strategy: Strategy = Strategy.BLEND,
        prefetch: bool = False,
    ) -> PlanPreview | None:
        """As :meth:`RagPipeline.preview`, without a turn: while another question is being answered."""
        return self.pipeline.preview(question, documents, strategy=strategy, prefetch=prefetch)

    def warm(self, documents: Sequence[Document]) -> int:
        """Get ready for questions over ``documents``: their chunks come to the daemon's memory or the pool.

        The prefix is loaded, too. For how many chunks that is under way or not needed; what is not stored is not
        computed.
        """
        with self._turns.take(INGEST_PRIORITY):
            keys = [key for item in dict.fromkeys(documents) for key in self.pipeline.document_keys(item)]
        return self._client.prefetch(keys) if keys else 0

    def put_documents(
        self,
        documents: Mapping[str, Document],
        *,
        ack: Ack = Ack.DISK,
        priority: int = INGEST_PRIORITY,
        on_progress: OnProgress | None = None,
    ) -> LibraryChange:
        """Make each document the newest version of its name, and have new and changed ones prefilled.

        Chunks of versions that are no longer kept, and that no other document shares, are deleted.
        """
        library = self._named()
        versions = tuple(library.put(name, document) for name, document in documents.items())
        summary = self._ingest(list(documents.values()), ack, priority, on_progress)
        return LibraryChange(versions, summary, self._delete_unreferenced(library))

    def sync_documents(
        self, documents: Mapping[str, Document], *, on_progress: OnProgress | None = None
    ) -> LibraryChange:
        """The same, and forget every name that is not among ``documents``."""
        library = self._named()
        after = ""
        while names := library.names(after=after):
            after = names[-1]
            for name in names:
                if name not in documents:
                    library.delete(name)
        return self.put_documents(documents, on_progress=on_progress)

    def delete_document(self, name: str) -> int:
        """Forget a document, its versions, and its chunks where no other document shares them; how many versions."""
        library = self._named()
        versions = library.delete(name)
        self._delete_unreferenced(library)
        return versions

    def documents(self, names: Iterable[str]) -> list[Document]:
        """The newest version of each name; raises :class:`NotFound`."""
        library = self._named()
        return [library.get(name) for name in names]

    def _named(self) -> Library:
        if self.library is None:
            raise InvalidRequest("this service has no library, so documents have no names")
        return self.library

    def _delete_unreferenced(self, library: Library) -> int:
        deleted = 0
        while keys := library.unreferenced():
            deleted += sum(self._client.delete_many(keys))
            library.forget(keys)
        return deleted

    def _ingest(
        self, documents: Sequence[Document], ack: Ack, priority: int, on_progress: OnProgress | None
    ) -> IngestSummary:
        """Ingest each document once, giving way to whoever is more urgent after each."""
        unique = list(dict.fromkeys(documents))
        began, done = self._clock(), 0

        def next_one(document: Document) -> None:
            nonlocal done
            done += 1
            if self.library is not None:
                self.library.note_chunks(document, self.pipeline.document_keys(document))
            if on_progress is not None:
                on_progress(IngestProgress(done, len(unique), self._clock() - began, document))
            self._turns.give_way(priority)

        if not unique:
            return IngestSummary(0, 0, 0, 0, 0, 0.0)
        with self._turns.take(priority):
            report = self.pipeline.ingest(unique, ack=ack, on_document=next_one)
        return IngestSummary(
            documents=len(unique),
            duplicates=len(documents) - len(unique),
            already_stored=report.already_stored,
            stored_tokens=report.stored_tokens,
            stored_bytes=report.stored_bytes,
            seconds=self._clock() - began,
        )
