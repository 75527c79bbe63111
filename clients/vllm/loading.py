"""The worker's loads: chunks from the daemon into the engine's blocks, behind its back and within a time limit.

Every chunk is fetched, decoded and copied by a thread of a small pool. The engine asks after each step what has ended.
A request whose time is up is given up: no thread writes to its blocks from then on, and what was not written is
reported, so that the engine computes it. The time limit does not depend on the daemon: one that is frozen holds up
threads of the pool for as long as the client waits for it, but no request longer than its limit.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ... import codec
from ...codec.container import Container, generic_digest
from ...codec.layout import Layout
from ...codec.level import EXACT, Level
from ...codec.profiles import AnyProfile
from ...errors import KvloomError
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Hit, Outcome, Unavailable
from .pages import ChunkArrays, KvPages
from .plan import PlacedChunk, RequestLoad

__all__ = ["ChunkLoader", "FinishedLoad"]

Get = Callable[[ContentKey], Outcome[Container]]
FindProfile = Callable[[bytes], AnyProfile | None]


@dataclass(frozen=True, slots=True)
class FinishedLoad:
    """What came of a request's load. ``failed_start`` is where the first chunk that did not come begins, if any.

    ``failed_blocks`` are those that hold none of what was asked for, or only parts. ``silent`` says that nobody
    answered in time.
    """

    request_id: str
    tokens: int
    bytes_read: int
    seconds: float
    failed_start: int | None
    failed_blocks: frozenset[int]
    silent: bool


class _Job:
    """One request's load, shared by the threads that work on it and the engine's, which may give it up."""

    def __init__(self, load: RequestLoad, began: float, seconds_max: float) -> None:
        self.load, self.began, self.deadline = load, began, began + seconds_max
        self.bytes_read = 0
        self.silent = False
        self.ended = began
        self._state = threading.Condition()
        self._waiting = set(range(len(load.chunks)))
        self._failed: set[int] = set()
        self._writing = 0
        self._given_up = False

    def wanted(self, index: int) -> bool:
        """Whether chunk ``index`` is still of use: it is not after an earlier one has failed."""
        with self._state:
            return not self._given_up and not any(failed < index for failed in self._failed)

    def begin_write(self) -> bool:
        """Whether the blocks may be written to; if so, :meth:`end_write` must follow."""
        with self._state:
            self._writing += not self._given_up
            return not self._given_up

    def end_write(self) -> None:
        """The blocks are written."""
        with self._state:
            self._writing -= 1
            self._state.notify_all()

    def end(self, index: int, bytes_read: int | None, now: float) -> bool:
        """Chunk ``index`` is there (``bytes_read``) or will not come (None); whether it was the last."""
        with self._state:
            self._waiting.discard(index)
            self.ended = now
            if bytes_read is None:
                self._failed.add(index)
            else:
                self.bytes_read += bytes_read
            return not self._waiting

    def give_up(self) -> None:
        """Let nobody write any more, and wait for whoever is writing: a copy in memory."""
        with self._state:
            self._given_up = True
            self.silent = self.silent or bool(self._waiting)
            while self._writing:
                self._state.wait()
            self._failed |= self._waiting
            self._waiting = set()

    @property
    def done(self) -> bool:
        """Whether nothing is left to come."""
        with self._state:
            return not self._waiting

    def result(self) -> FinishedLoad:
        """What came of it, once it is done."""
        first = min(self._failed, default=None)
        lost: tuple[PlacedChunk, ...] = () if first is None else self.load.chunks[first:]
        return FinishedLoad(
            self.load.request_id,
            sum(span.tokens for chunk in self.load.chunks[:first] for span in chunk.spans),
            self.bytes_read,
            self.ended - self.began,
            lost[0].start if lost else None,
            frozenset(span.block for chunk in lost for span in chunk.spans),
            self.silent,
        )


class ChunkLoader:
    """Loads for one worker of an engine, of rank ``rank``. The threads of the pool are its own; :meth:`close` it."""

    def __init__(
        self,
        pages: KvPages,
        layout: Layout,
        level: Level,
        get: Get,
        find_profile: FindProfile,
        *,
        rank: int = 0,
        threads: int = 1,
        seconds_max: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pages, self._layout, self._level = pages, layout, level
        self._get, self._find_profile, self._rank = get, find_profile, rank
        self._seconds_max, self._clock = seconds_max, clock
        self._generic = generic_digest(layout)  # of the profile that everybody has
        self._jobs: list[_Job] = []
        self._some_ended = threading.Event()
        self._rooms = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvloom-load")

    @property
    def busy(self) -> bool:
        """Whether a load is under way."""
        return bool(self._jobs)

    def start(self, load: RequestLoad) -> None:
        """Begin a load."""
        job = _Job(load, self._clock(), self._seconds_max)
        self._jobs.append(job)
        for index in range(len(load.chunks)):
            self._pool.submit(self._run, job, index)

    def wait(self, seconds_max: float) -> None:
        """Wait until a load has ended, at most so long."""
        self._some_ended.wait(seconds_max)

    def take_finished(self) -> list[FinishedLoad]:
        """The loads that have ended or whose time is up, each once."""
        self._some_ended.clear()
        now = self._clock()
        for job in self._jobs:
            if not job.done and now >= job.deadline:
                job.give_up()
        ended = [job for job in self._jobs if job.done]
        self._jobs = [job for job in self._jobs if job not in ended]
        return [job.result() for job in ended]

    def close(self) -> None:
        """Give up all loads; threads that wait for the daemon end by themselves."""
        for job in self._jobs:
            job.give_up()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: _Job, index: int) -> None:
        bytes_read = None
        try:
            if job.wanted(index):
                bytes_read = self._load(job, job.load.chunks[index])
        finally:
            if job.end(index, bytes_read, self._clock()):
                self._some_ended.set()

    def _load(self, job: _Job, chunk: PlacedChunk) -> int | None:
        """Bring one chunk into its blocks; the bytes that came for it, None where it did not."""
        outcome = self._get(chunk.keys[self._rank])
        if isinstance(outcome, Unavailable):
            job.silent = True
        if not isinstance(outcome, Hit) or outcome.value.header.tokens != chunk.tokens:
            return None
        container = outcome.value
        if container.header.first_position != chunk.start:
            return None
        arrays = self._room(chunk.tokens)
        keys, values = arrays.numpy
        digest = container.header.profile_digest
        profile = None if self._level == EXACT or digest == self._generic else self._find_profile(digest)
        try:
            codec.decode_into(container, keys, values, profile=profile, level=self._level, layout=self._layout)
        except KvloomError:
            return None
        if not job.begin_write():
            return None
        try:
            self._pages.copy_in(chunk.spans, arrays)
        finally:
            job.end_write()
        return len(container.data)

    def _room(self, tokens: int) -> ChunkArrays:
        """Memory of this thread for a decoded chunk, kept for the next."""
        room: ChunkArrays | None = getattr(self._rooms, "arrays", None)
        if room is None or room.keys[0].shape[1] < tokens:
            room = self._rooms.arrays = ChunkArrays.empty(self._layout, tokens)
        return room.first(tokens)
