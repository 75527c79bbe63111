"""What the scheduler's half of the connector tells the workers' for one step. Plain data, sent between processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...kvstore.key import ContentKey
from .blocks import BlockSpan, block_spans
from .sequence import ShardedChunk

__all__ = ["PlacedChunk", "RequestLoad", "StepPlan", "place"]


@dataclass(frozen=True, slots=True)
class PlacedChunk:
    """A chunk and where (some of) its tokens lie in the engine's blocks. ``keys`` and ``parents`` are by rank."""

    keys: tuple[ContentKey, ...]
    parents: tuple[ContentKey, ...] | None
    start: int
    tokens: int
    spans: tuple[BlockSpan, ...]

    def parent_of(self, rank: int) -> ContentKey | None:
        """The key of the chunk before it."""
        return None if self.parents is None else self.parents[rank]


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """Chunks to load for a request, in their order, into blocks that are its own."""

    request_id: str
    chunks: tuple[PlacedChunk, ...]

    @property
    def tokens(self) -> int:
        """How many are written."""
        return sum(span.tokens for chunk in self.chunks for span in chunk.spans)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Loads to begin, chunks to save once the step is computed, and requests whose blocks are free after that."""

    loads: tuple[RequestLoad, ...] = ()
    saves: tuple[PlacedChunk, ...] = ()
    released: tuple[str, ...] = ()


def place(
    chunk: ShardedChunk, table: Sequence[int], block_tokens: int, *, start: int = 0, stop: int | None = None
) -> PlacedChunk:
    """``chunk`` in the blocks of ``table``; only what of it lies in tokens ``[start, stop)`` of the sequence."""
    last = chunk.stop if stop is None else min(stop, chunk.stop)
    spans = block_spans(table, block_tokens, max(start, chunk.start), last, first=chunk.start)
    return PlacedChunk(chunk.keys, chunk.parents, chunk.start, chunk.tokens, tuple(spans))
