"""The worker's saves: chunks copied out of the engine's blocks at the end of a step, encoded and sent behind its back.

The copy is made while the engine waits, because its blocks are its own again afterwards; all the rest is a thread's
work at low priority. What would make the queue longer than its limit is not copied and not stored: the engine never
waits for a daemon.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ... import codec, limits
from ...codec.layout import Layout
from ...codec.level import Level
from ...codec.profiles import AnyProfile
from ...errors import KvloomError
from ...kvstore.key import ContentKey
from .pages import ChunkArrays, KvPages
from .plan import PlacedChunk
from .stats import Counts

__all__ = ["ChunkSaver"]

_NICENESS = 10
Put = Callable[[ContentKey, bytes, ContentKey | None], object]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A chunk's KV, to be encoded under ``key``."""

    key: ContentKey
    parent: ContentKey | None
    start: int
    arrays: ChunkArrays
    size_bytes: int


class ChunkSaver:
    """Saves for one worker, of rank ``rank``, at ``levels``; ``put`` stores a container under a key, after a parent."""

    def __init__(
        self,
        pages: KvPages,
        layout: Layout,
        levels: Collection[Level],
        put: Put,
        *,
        profile: AnyProfile | None = None,
        rank: int = 0,
        queue_bytes_max: int = limits.ENGINE_SAVE_QUEUE_BYTES_DEFAULT,
    ) -> None:
        self._pages, self._layout, self._levels, self._put = pages, layout, frozenset(levels), put
        self._profile, self._rank, self._queue_bytes_max = profile, rank, queue_bytes_max
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._counts = Counts()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="kvloom-save", daemon=True)
        self._thread.start()

    def save(self, chunk: PlacedChunk) -> bool:
        """Copy a chunk and queue it; False, and nothing done, where the queue is full."""
        size_bytes = chunk.tokens * self._layout.bytes_per_token
        with self._changed:
            if self._closing or self._queue_bytes + size_bytes > self._queue_bytes_max:
                self._counts += Counts(dropped_saves=1)
                return False
            self._queue_bytes += size_bytes
        arrays = ChunkArrays.empty(self._layout, chunk.tokens)
        self._pages.copy_out(chunk.spans, arrays)
        waiting = _Waiting(chunk.keys[self._rank], chunk.parent_of(self._rank), chunk.start, arrays, size_bytes)
        with self._changed:
            self._queue.append(waiting)
            self._changed.notify_all()
        return True

    def take_counts(self) -> Counts:
        """What was saved, and what was not, since the last call."""
        with self._changed:
            counts, self._counts = self._counts, Counts()
        return counts

    def drain(self, seconds_max: float) -> bool:
        """Wait until nothing waits to be stored, at most so long; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue_bytes, seconds_max)

    def close(self, seconds_max: float = limits.ENGINE_CLOSE_SECONDS_MAX) -> None:
        """Send what waits, for at most so long, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds_max)

    def _work(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # of this thread only, on Linux
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                waiting = self._queue.popleft()
            counts = self._store(waiting)
            with self._changed:
                self._queue_bytes -= waiting.size_bytes
                self._counts += counts
                self._changed.notify_all()

    def _store(self, waiting: _Waiting) -> Counts:
        keys, values = waiting.arrays.numpy
        try:
            blob = codec.encode(
                keys,
                values,
                layout=self._layout,
                profile=self._profile,
                first_position=waiting.start,
                levels=self._levels,
                content_key=waiting.key,
            )
            self._put(waiting.key, blob, waiting.parent)
        except KvloomError:
            return Counts(failed_saves=1)
        return Counts(saves=1, saved_tokens=int(keys[0].shape[1]), saved_bytes=len(blob))
