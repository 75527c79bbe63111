"""Ingests that nobody waits for: a queue by priority and one thread that works on it."""

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ... import limits
from ...errors import Overloaded
from ...kvstore.tier import Ack
from .documents import Document
from .progress import IngestCancelled, IngestProgress, IngestSummary

__all__ = ["IngestJob", "IngestQueue"]

Ingest = Callable[[Sequence[Document], Ack, int, Callable[[IngestProgress], None] | None], IngestSummary]


class IngestJob:
    """One ingest in the background. Safe to use from several threads."""

    def __init__(self, documents: Sequence[Document], ack: Ack, priority: int) -> None:
        self.documents, self.ack, self.priority = documents, ack, priority
        self.ended: Future[IngestSummary] = Future()
        """Set by the queue when the job has ended; raises what went wrong, :class:`IngestCancelled` where it was."""
        self._progress: IngestProgress | None = None
        self._cancelled = threading.Event()
        self._leaving = threading.Lock()
        self._left = False

    @property
    def progress(self) -> IngestProgress | None:
        """How far it is; None before the first document is stored."""
        return self._progress

    def wait(self, seconds_max: float | None = None) -> IngestSummary:
        """What it came to, once it has ended; :class:`TimeoutError` where that takes longer."""
        return self.ended.result(seconds_max)

    def cancel(self) -> None:
        """End it: at once where it waits, else after the document that is being prefilled; what was stored stays."""
        self._cancelled.set()
        if self.leave():
            self.ended.set_exception(IngestCancelled("the ingest was cancelled"))

    def leave(self) -> bool:
        """It waits no longer; False where it did not any more, or nobody waits for its end."""
        with self._leaving:
            left, self._left = self._left, True
        return not left and self.ended.set_running_or_notify_cancel()

    def note(self, progress: IngestProgress) -> None:
        """It has come so far; raises :class:`IngestCancelled` where it should not go on."""
        self._progress = progress
        self.check()

    def check(self) -> None:
        """Raise :class:`IngestCancelled` where it should not go on."""
        if self._cancelled.is_set():
            raise IngestCancelled("the ingest was cancelled")


class IngestQueue:
    """Runs ``ingest`` for one job after another, the smallest priority first, on a thread of its own."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, IngestJob]] = []
        self._numbers = itertools.count()
        self._running: IngestJob | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, documents: Sequence[Document], ack: Ack, priority: int) -> IngestJob:
        """Queue an ingest; raises :class:`Overloaded` where too many wait, or the queue is closed."""
        job = IngestJob(documents, ack, priority)
        with self._changed:
            if self._closed:
                raise Overloaded("the service is closed")
            if len(self._waiting) >= limits.INGESTS_QUEUED_MAX:
                self._drop_ended()
            if len(self._waiting) >= limits.INGESTS_QUEUED_MAX:
                raise Overloaded(f"{len(self._waiting)} ingests wait, the limit is {limits.INGESTS_QUEUED_MAX}")
            heapq.heappush(self._waiting, (priority, next(self._numbers), job))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="kvloom-ingest", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def close(self) -> None:
        """Cancel all jobs and wait for the document that is being prefilled, for a bounded time. Idempotent."""
        with self._changed:
            self._closed = True
            for _, _, job in self._waiting:
                job.cancel()
            if self._running is not None:
                self._running.cancel()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(limits.ENGINE_CLOSE_SECONDS_MAX)

    def _drop_ended(self) -> None:
        """Forget the jobs that were cancelled while they waited, so that others have their places."""
        self._waiting = [entry for entry in self._waiting if not entry[2].ended.done()]
        heapq.heapify(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                _, _, job = heapq.heappop(self._waiting)
                if not job.leave():
                    continue  # cancelled
                self._running = job
            try:
                job.ended.set_result(self._ingest(job.documents, job.ack, job.priority, job.note))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the job
                job.ended.set_exception(error)
            with self._changed:
                self._running = None
