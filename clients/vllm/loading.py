"""The worker's loads: chunks from the daemon into the engine's blocks, behind its back and within a time limit.

Every part of a chunk is fetched, decoded and copied by a thread of a small pool. The engine asks after each step what
has ended, or, of a load that the step itself reads, waits for one layer after the other. A request whose time is up is
given up: no thread writes to its blocks from then on, and what was not written is reported, so that the engine computes
it. The time limit does not depend on the daemon: one that is frozen holds up threads of the pool for as long as the
client waits for it, but no request longer than its limit.

What another engine is still computing is awaited: a thread asks every few milliseconds which of it has come.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ...codec.container import Container
from ...errors import KvloomError
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Hit, Miss, Outcome, Unavailable
from .awaiting import Awaiting
from .decoding import ChunkDecoder
from .load_job import ChunkTimes, FinishedLoad, LoadJob
from .pages import ChunkArrays, KvPages
from .parts import LayerPart
from .plan import RequestLoad

__all__ = ["ChunkLoader"]

Get = Callable[[ContentKey], Outcome[Container]]


class ChunkLoader:
    """Loads for one worker of an engine, of rank ``rank``. The threads of the pool are its own; :meth:`close` it.

    ``exists`` is asked for what is awaited.
    """

    def __init__(
        self,
        pages: KvPages,
        parts: Sequence[LayerPart],
        get: Get,
        decoder: ChunkDecoder,
        *,
        exists: Callable[[Sequence[ContentKey]], list[bool]],
        rank: int = 0,
        threads: int = 1,
        seconds_max: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pages, self._parts = pages, tuple(parts)
        self._get, self._decoder, self._rank = get, decoder, rank
        self._seconds_max, self._clock = seconds_max, clock
        self._jobs: list[LoadJob] = []
        self._some_ended = threading.Event()
        self._rooms = threading.local()
        self._fetching = self._decoding = 0
        self._counting = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvloom-load")
        self._awaiting = Awaiting(exists)

    @property
    def busy(self) -> bool:
        """Whether a load is under way."""
        return bool(self._jobs)

    def start(self, load: RequestLoad) -> None:
        """Begin a load: part by part where a layer is waited for, else chunk by chunk."""
        job = LoadJob(load, len(self._parts), self._clock(), load.seconds_max or self._seconds_max)
        self._jobs.append(job)
        for item in job.order():
            self._pool.submit(self._run, job, *item)

    def wait(self, seconds_max: float) -> None:
        """Wait until a load has ended, at most so long."""
        self._some_ended.wait(seconds_max)

    def wait_for_layer(self, layer: int) -> None:
        """Wait until loads that this step reads have brought ``layer``, or failed; never longer than their limits."""
        part = next(part.index for part in self._parts if layer in part.layers)
        for job in self._jobs:
            if job.load.by_layer and not job.wait_part(part, job.deadline - self._clock()):
                job.give_up()

    def take_finished(self) -> list[FinishedLoad]:
        """The loads that have ended or whose time is up, each once; what this step has read has ended in any case."""
        self._some_ended.clear()
        now = self._clock()
        for job in self._jobs:
            if not job.done and (job.load.by_layer or now >= job.deadline):
                job.give_up()
        ended = [job for job in self._jobs if job.done]
        self._jobs = [job for job in self._jobs if job not in ended]
        return [job.result() for job in ended]

    def close(self) -> None:
        """Give up all loads; threads that wait for the daemon end by themselves."""
        for job in self._jobs:
            job.give_up()
        self._awaiting.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: LoadJob, index: int, part: int) -> None:
        times, later = None, False
        try:
            if job.wanted(index):
                times = self._load(job, index, self._parts[part])
                later = times is None and job.load.awaited and not job.silent and job.wanted(index)
        finally:
            if not later and job.end(index, part, times, self._clock()):
                self._some_ended.set()
        if later:
            key = job.load.chunks[index].keys[self._shard(self._parts[part])]
            self._awaiting.add(key, lambda: self._again(job, index, part), lambda: job.wanted(index))

    def _again(self, job: LoadJob, index: int, part: int) -> None:
        try:
            self._pool.submit(self._run, job, index, part)
        except RuntimeError:  # closed meanwhile: the job has been given up
            return

    def _shard(self, part: LayerPart) -> int:
        return self._rank * len(self._parts) + part.index

    def _load(self, job: LoadJob, index: int, part: LayerPart) -> ChunkTimes | None:
        """Bring a part of a chunk into its blocks; what that took, None where it did not come."""
        chunk = job.load.chunks[index]
        began = self._clock()
        fetching = self._enter("_fetching")
        try:
            outcome = self._get(chunk.keys[self._shard(part)])
        finally:
            self._leave("_fetching")
        came = self._clock()
        if isinstance(outcome, Unavailable):
            job.silent = True
        if not isinstance(outcome, Hit):
            if not isinstance(outcome, Miss):
                job.fail(index)
            return None
        container = outcome.value
        if container.header.tokens != chunk.tokens or container.header.first_position != chunk.start:
            job.fail(index)
            return None
        decoding = self._enter("_decoding")
        try:
            arrays = self._decoder.stored(container, part.layout) or self._decoded(container, part)
            if not job.begin_write():
                return None
            try:
                self._pages.copy_in(chunk, arrays, part.layers)
            finally:
                job.end_write()
        except KvloomError:
            job.fail(index)
            return None
        finally:
            self._leave("_decoding")
        written = self._clock()
        return ChunkTimes(
            chunk.link,
            len(container.data),
            came - began,
            fetching,
            chunk.tokens * part.layout.bytes_per_token,
            (written - came) / decoding,
        )

    def _decoded(self, container: Container, part: LayerPart) -> ChunkArrays:
        arrays = self._room(part, container.header.tokens)
        self._decoder.decode(container, arrays, part.layout)
        return arrays

    def _enter(self, what: str) -> int:
        """How many threads, this one included, do ``what`` now."""
        with self._counting:
            count: int = getattr(self, what) + 1
            setattr(self, what, count)
        return count

    def _leave(self, what: str) -> None:
        with self._counting:
            setattr(self, what, getattr(self, what) - 1)

    def _room(self, part: LayerPart, tokens: int) -> ChunkArrays:
        """Memory of this thread for a decoded part, kept for the next."""
        rooms: dict[int, ChunkArrays] = self._rooms.__dict__.setdefault("by_part", {})
        room = rooms.get(part.index)
        if room is None or room.keys[0].shape[1] < tokens:
            room = rooms[part.index] = ChunkArrays.empty(part.layout, tokens)
        return room.first(tokens)
