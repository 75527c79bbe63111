"""What the scheduler's half of the connector tells the workers' for one step. Plain data, sent between processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...kvstore.key import ContentKey
from ..sequence import ShardedChunk
from .blocks import BlockSpan, block_spans

__all__ = ["BlendChunk", "BlendLoad", "BlockTables", "PlacedChunk", "RequestLoad", "StepPlan", "StepPrefill", "place"]

_NO_BLOCK = 0
"""The block that stands in a table for tokens which no layer of the group looks at any more."""


@dataclass(frozen=True, slots=True)
class BlockTables:
    """A request's blocks by group of layers, and how many tokens a block of each group holds."""

    tables: tuple[Sequence[int], ...]
    block_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlacedChunk:
    """A chunk and where (some of) its tokens lie in the engine's blocks.

    ``keys`` and ``parents`` are by rank, and by part of the layers within a rank. ``spans`` are by group of layers; a
    group that looks at none of the tokens any more has none. ``link``: over which the chunk is expected to come.
    """

    keys: tuple[ContentKey, ...]
    parents: tuple[ContentKey, ...] | None
    start: int
    tokens: int
    spans: tuple[tuple[BlockSpan, ...], ...]
    link: str | None = None

    def parent_of(self, shard: int) -> ContentKey | None:
        """The key of the chunk before it."""
        return None if self.parents is None else self.parents[shard]

    @property
    def loaded_tokens(self) -> int:
        """How many of its tokens are written."""
        return max(sum(span.tokens for span in group) for group in self.spans)

    @property
    def blocks(self) -> frozenset[int]:
        """All of its blocks."""
        return frozenset(span.block for group in self.spans for span in group)


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """Chunks to load for a request, in their order, into blocks that are its own.

    ``seconds_max`` bounds this load where that is less than what any may take, or more, because another engine is still
    computing what is ``awaited``. ``by_layer``: the coming step reads the blocks, and waits for each layer's.
    """

    request_id: str
    chunks: tuple[PlacedChunk, ...]
    seconds_max: float | None = None
    awaited: bool = False
    by_layer: bool = False


@dataclass(frozen=True, slots=True)
class BlendChunk:
    """A stored chunk of ``tokens`` tokens of a document, computed from ``first_position`` on.

    Those from the ``skip``-th on stand in a prompt from ``start`` on.
    """

    key: ContentKey
    first_position: int
    tokens: int
    skip: int
    start: int


@dataclass(frozen=True, slots=True)
class BlendLoad:
    """A prompt to blend from ``chunks`` before the coming step; its first tokens' KV goes to ``target``.

    ``ratio`` of what is stored is computed again, None what the engine was told.
    """

    request_id: str
    token_ids: tuple[int, ...]
    chunks: tuple[BlendChunk, ...]
    target: PlacedChunk
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class StepPrefill:
    """The one prefill of a step: ``tokens`` after ``start`` others, in an engine with ``running`` requests."""

    tokens: int
    start: int
    running: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Loads to begin, chunks to save once the step is computed, and requests whose blocks are free after that.

    ``prefill`` is there where the time of the step says what computing costs. ``blends`` are computed before the step.
    """

    loads: tuple[RequestLoad, ...] = ()
    saves: tuple[PlacedChunk, ...] = ()
    released: tuple[str, ...] = ()
    prefill: StepPrefill | None = None
    blends: tuple[BlendLoad, ...] = ()


def place(
    chunk: ShardedChunk, blocks: BlockTables, *, start: int = 0, stop: int | None = None, link: str | None = None
) -> PlacedChunk:
    """``chunk`` in ``blocks``; only what of it lies in tokens ``[start, stop)`` of the sequence, and in a block."""
    begin, end = max(start, chunk.start), chunk.stop if stop is None else min(stop, chunk.stop)
    spans = tuple(
        tuple(span for span in block_spans(table, size, begin, end, first=chunk.start) if span.block != _NO_BLOCK)
        for table, size in zip(blocks.tables, blocks.block_tokens, strict=True)
    )
    return PlacedChunk(chunk.keys, chunk.parents, chunk.start, chunk.tokens, spans, link)
