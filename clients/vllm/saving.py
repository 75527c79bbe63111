"""The worker's saves: chunks copied out of the engine's blocks as a step has computed them, encoded and sent behind it.

The copy is made while the engine waits, because its blocks are its own again afterwards; all the rest is a thread's
work at low priority. What would make the queue longer than its limit is not copied and not stored: the engine never
waits for a daemon.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ... import codec, limits
from ...codec.layout import Layout
from ...codec.level import Level
from ...codec.profiles import AnyProfile
from ...errors import KvloomError
from ...kvstore.key import ContentKey
from .pages import ChunkArrays, KvPages
from .parts import LayerPart
from .plan import PlacedChunk
from .stats import Counts

__all__ = ["ChunkSaver"]

_NICENESS = 10
Put = Callable[[ContentKey, bytes, ContentKey | None], object]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A part of a chunk's KV, to be encoded under ``key``. ``tokens``: those that the chunk counts for, once."""

    key: ContentKey
    parent: ContentKey | None
    start: int
    layout: Layout
    arrays: ChunkArrays
    size_bytes: int
    tokens: int


class ChunkSaver:
    """Saves for one worker, of rank ``rank``, at ``levels``; ``put`` stores a container under a key, after a parent.

    ``parts`` are the parts in which its layers are stored.
    """

    def __init__(
        self,
        pages: KvPages,
        parts: Sequence[LayerPart],
        levels: Collection[Level],
        put: Put,
        *,
        profile: AnyProfile | None = None,
        rank: int = 0,
        queue_bytes_max: int = limits.ENGINE_SAVE_QUEUE_BYTES_DEFAULT,
    ) -> None:
        self._pages, self._parts, self._levels, self._put = pages, tuple(parts), frozenset(levels), put
        self._profile, self._rank, self._queue_bytes_max = profile, rank, queue_bytes_max
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._counts = Counts()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="kvloom-save", daemon=True)
        self._thread.start()

    def save(self, chunk: PlacedChunk, part: LayerPart) -> bool:
        """Copy a part of a chunk and queue it; False, and nothing done, where the queue is full.

        It counts as a save when it is the chunk's last.
        """
        size_bytes = chunk.tokens * part.layout.bytes_per_token
        with self._changed:
            if self._closing or self._queue_bytes + size_bytes > self._queue_bytes_max:
                self._counts += Counts(dropped_saves=1)
                return False
            self._queue_bytes += size_bytes
        arrays = ChunkArrays.empty(part.layout, chunk.tokens)
        self._pages.copy_out(chunk, arrays, part.layers)
        shard = self._rank * len(self._parts) + part.index
        last = part.index == len(self._parts) - 1
        waiting = _Waiting(
            chunk.keys[shard],
            chunk.parent_of(shard),
            chunk.start,
            part.layout,
            arrays,
            size_bytes,
            chunk.tokens if last else 0,
        )
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
                layout=waiting.layout,
                profile=self._profile,
                first_position=waiting.start,
                levels=self._levels,
                content_key=waiting.key,
            )
            self._put(waiting.key, blob, waiting.parent)
        except KvloomError:
            return Counts(failed_saves=1)
        return Counts(saves=int(waiting.tokens > 0), saved_tokens=waiting.tokens, saved_bytes=len(blob))
