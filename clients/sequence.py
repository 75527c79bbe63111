"""The chunks of one sequence of tokens, named for every shard of a model. Pure: keys come from ``kvstore/key.py``.

With tensor parallelism every rank holds some heads of each token, under a key of its own; a chunk is there when all
of its shards are. Images and sounds belong to the chunks whose tokens stand for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..kvstore.key import ContentKey, ContextMarker, ModelIdentity, content_key

__all__ = ["Feature", "SequenceChunks", "ShardedChunk"]


@dataclass(frozen=True, slots=True)
class Feature:
    """What the tokens ``[start, stop)`` of a prompt stand for: the digest of an image, a sound or a video."""

    digest: bytes
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ShardedChunk:
    """Tokens ``[start, stop)`` of a sequence: ``keys`` by shard, and ``parents``, of the chunk before it, if any."""

    keys: tuple[ContentKey, ...]
    parents: tuple[ContentKey, ...] | None
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many."""
        return self.stop - self.start


class SequenceChunks:
    """The chunks of a sequence that grows. ``identities`` are those of the model's shards, in the order of ranks."""

    def __init__(
        self, identities: Sequence[ModelIdentity], chunk_tokens: int, features: Sequence[Feature] = ()
    ) -> None:
        self._identities = tuple(identities)
        self._chunk_tokens = chunk_tokens
        self._features = tuple(features)
        self._full: list[ShardedChunk] = []

    def full(self, tokens: Sequence[int] | NDArray[np.int64]) -> list[ShardedChunk]:
        """The full chunks of ``tokens``, which begin as those of every earlier call did."""
        size = self._chunk_tokens
        begun = len(self._full) * size
        array = np.asarray(tokens[begun:])
        for start in range(begun, len(tokens) - size + 1, size):
            self._full.append(self._chunk(array[start - begun : start - begun + size], start, self._before(start)))
        return self._full[: len(tokens) // size]

    def tail(self, tokens: Sequence[int] | NDArray[np.int64], stop: int) -> ShardedChunk | None:
        """The unfinished chunk that ends at ``stop``; None where a full one does."""
        start = stop - stop % self._chunk_tokens
        if start == stop:
            return None
        self.full(tokens[:start])
        return self._chunk(np.asarray(tokens[start:stop]), start, self._before(start))

    def tails(self, tokens: Sequence[int] | NDArray[np.int64], start: int, stops: range) -> list[ShardedChunk]:
        """Unfinished chunks that begin where full chunks end, at ``start``, one for each of ``stops``."""
        self.full(tokens[:start])
        before, array = self._before(start), np.asarray(tokens[start : stops.stop])
        return [self._chunk(array[: stop - start], start, before) for stop in stops]

    def _before(self, start: int) -> ShardedChunk | None:
        return self._full[start // self._chunk_tokens - 1] if start else None

    def _chunk(self, tokens: NDArray[np.int64], start: int, before: ShardedChunk | None) -> ShardedChunk:
        stop = start + len(tokens)
        digests = tuple(item.digest for item in self._features if item.start < stop and start < item.stop)
        keys = []
        for shard, identity in enumerate(self._identities):
            named = replace(identity, multimodal=digests) if digests else identity
            keys.append(content_key(named, tokens, ContextMarker.START if before is None else before.keys[shard]))
        return ShardedChunk(tuple(keys), None if before is None else before.keys, start, stop)
