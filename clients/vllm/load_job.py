"""One request's load, shared by the threads that work on it and the engine's, which may give it up."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from .plan import PlacedChunk, RequestLoad

__all__ = ["ChunkTimes", "FinishedLoad", "LoadJob"]


@dataclass(frozen=True, slots=True)
class ChunkTimes:
    """What a part of a chunk took: ``size_bytes`` over ``link`` beside ``concurrent - 1`` others, then decoding.

    ``decode_seconds`` include copying, and are those of its share of the threads that did so at the same time.
    """

    link: str | None
    size_bytes: int
    load_seconds: float
    concurrent: int
    kv_bytes: int
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class FinishedLoad:
    """What came of a request's load. ``failed_start`` is where the first chunk that did not come begins, if any.

    ``failed_blocks`` are those that hold none of what was asked for, or only parts. ``silent`` says that nobody
    answered in time. ``by_layer``: the step that has just run read it.
    """

    request_id: str
    tokens: int
    bytes_read: int
    seconds: float
    failed_start: int | None
    failed_blocks: frozenset[int]
    silent: bool
    times: tuple[ChunkTimes, ...] = ()
    by_layer: bool = False


class LoadJob:
    """A load of ``parts`` parts of each chunk, which begins at ``began`` and may take ``seconds_max``."""

    def __init__(self, load: RequestLoad, parts: int, began: float, seconds_max: float) -> None:
        self.load, self.began, self.deadline = load, began, began + seconds_max
        self.silent = False
        self._ended = began
        self._parts = parts
        self._times: list[ChunkTimes] = []
        self._state = threading.Condition()
        self._waiting = {(index, part) for index in range(len(load.chunks)) for part in range(parts)}
        self._failed: set[int] = set()
        self._writing = 0
        self._given_up = False

    def order(self) -> Iterator[tuple[int, int]]:
        """Chunk and part of all that is to come, what is needed first first."""
        key = (lambda item: (item[1], item[0])) if self.load.by_layer else None
        yield from sorted(self._waiting, key=key)

    def wanted(self, index: int) -> bool:
        """Whether chunk ``index`` is still of use: it is not after it or an earlier one has failed."""
        with self._state:
            return not self._given_up and not any(failed <= index for failed in self._failed)

    def fail(self, index: int) -> None:
        """Chunk ``index`` will not come, however long it is waited for."""
        with self._state:
            self._failed.add(index)
            self._state.notify_all()

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

    def end(self, index: int, part: int, times: ChunkTimes | None, now: float) -> bool:
        """Part ``part`` of chunk ``index`` is there or will not come (None); whether it was the last."""
        with self._state:
            self._waiting.discard((index, part))
            self._ended = now
            if times is None:
                self._failed.add(index)
            else:
                self._times.append(times)
            self._state.notify_all()
            return not self._waiting

    def wait_part(self, part: int, seconds_max: float) -> bool:
        """Wait until ``part`` of every chunk before the first that failed has come.

        False where that takes longer than ``seconds_max``.
        """

        def came() -> bool:
            first = min(self._failed, default=len(self.load.chunks))
            return not any(of_part == part and index < first for index, of_part in self._waiting)

        with self._state:
            return self._state.wait_for(came, max(0.0, seconds_max))

    def give_up(self) -> None:
        """Let nobody write any more, and wait for whoever is writing: a copy in memory."""
        with self._state:
            self._given_up = True
            # A limit of this load's own says that computing is faster, or that another engine is late; not silence.
            self.silent = self.silent or (bool(self._waiting) and self.load.seconds_max is None)
            while self._writing:
                self._state.wait()
            self._failed |= {index for index, _ in self._waiting}
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
            sum(chunk.loaded_tokens for chunk in self.load.chunks[:first]),
            sum(times.size_bytes for times in self._times),
            self._ended - self.began,
            lost[0].start if lost else None,
            frozenset(block for chunk in lost for block in chunk.blocks),
            self.silent,
            tuple(self._times),
            self.load.by_layer,
        )
