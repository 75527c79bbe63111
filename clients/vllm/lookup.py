"""Asking the daemon which chunks it has, from the engine's scheduler: bounded, and not at all while it keeps silent.

A scheduler that waits holds up every request of the engine. One look-up is bounded by the client; a daemon that does
not answer within that is not asked again for a while, so that it costs one such wait in a while and not one a request.
"""

import time
from collections.abc import Callable, Sequence

from ...kvstore.key import ContentKey
from ..sequence import ShardedChunk
from ..silence import SILENT_SHARE, Silence
from .stats import Counts

__all__ = ["ChunkLookup"]


class ChunkLookup:
    """Which chunks are stored. ``exists`` answers for keys within ``seconds_max``, all false where nobody answers."""

    def __init__(
        self,
        exists: Callable[[Sequence[ContentKey]], list[bool]],
        seconds_max: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exists = exists
        self._seconds_max = seconds_max
        self._clock = clock
        self._silence = Silence(clock=clock)
        self._counts = Counts()

    @property
    def paused(self) -> bool:
        """Whether the daemon is not asked at the moment."""
        return self._silence.lasts

    def pause(self) -> None:
        """Do not ask for a while: the daemon kept silent."""
        self._silence.note()

    def stored(self, chunks: Sequence[ShardedChunk]) -> list[bool] | None:
        """For each chunk, whether all of its shards are stored; None where that could not be found out."""
        if not chunks:
            return []
        if self.paused:
            return None
        began = self._clock()
        found = self._exists([key for chunk in chunks for key in chunk.keys])
        seconds = self._clock() - began
        self._counts += Counts(lookups=1, lookup_seconds=seconds)
        if seconds >= SILENT_SHARE * self._seconds_max and not any(found):
            self.pause()
            return None
        self._silence.end()
        shards = len(chunks[0].keys)
        return [all(found[at : at + shards]) for at in range(0, len(found), shards)]

    def take_counts(self) -> Counts:
        """Look-ups since the last call, and what they took."""
        counts, self._counts = self._counts, Counts()
        return counts
