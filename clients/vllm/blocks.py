"""Where the tokens of a chunk lie in an engine's blocks. Pure arithmetic.

An engine cuts a sequence into blocks of ``block_tokens`` and keeps block ``i`` of it wherever the ``i``-th id of the
request's table says; a chunk is any run of its tokens. Neither length has to divide the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InvalidRequest

__all__ = ["BlockSpan", "block_spans", "blocks_of"]


@dataclass(frozen=True, slots=True)
class BlockSpan:
    """``tokens`` tokens: those of the chunk from ``at`` on are those of block ``block`` from ``offset`` on."""

    block: int
    offset: int
    at: int
    tokens: int


def block_spans(
    table: Sequence[int], block_tokens: int, start: int, stop: int, *, first: int | None = None
) -> list[BlockSpan]:
    """Where tokens ``[start, stop)`` of a sequence lie; ``at`` counts from ``first`` (default ``start``).

    Raises :class:`InvalidRequest` where ``table`` has no block for some of them.
    """
    base = start if first is None else first
    if not 0 <= base <= start < stop or block_tokens < 1 or stop > len(table) * block_tokens:
        raise InvalidRequest(
            f"tokens {start} to {stop} (from {base} on) are not in {len(table)} blocks of {block_tokens} tokens"
        )
    spans: list[BlockSpan] = []
    while start < stop:
        index, offset = divmod(start, block_tokens)
        tokens = min(block_tokens - offset, stop - start)
        spans.append(BlockSpan(table[index], offset, start - base, tokens))
        start += tokens
    return spans


def blocks_of(table: Sequence[int], block_tokens: int, start: int, stop: int) -> set[int]:
    """The blocks that hold any of tokens ``[start, stop)``."""
    return {span.block for span in block_spans(table, block_tokens, start, stop)}
