"""Chunks in blocks: every token is in exactly one span, at the place the engine's arithmetic says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.vllm.blocks import block_spans, blocks_of
from kvloom.errors import InvalidRequest


@given(
    block_tokens=st.integers(1, 40),
    blocks=st.integers(1, 12),
    data=st.data(),
)
def test_spans_are_the_tokens_one_by_one(block_tokens: int, blocks: int, data: st.DataObject) -> None:
    table = data.draw(st.permutations(range(7, 7 + blocks)))
    start = data.draw(st.integers(0, blocks * block_tokens - 1))
    stop = data.draw(st.integers(start + 1, blocks * block_tokens))
    first = data.draw(st.integers(0, start))
    placed = [
        (span.at + step, span.block, span.offset + step)
        for span in block_spans(table, block_tokens, start, stop, first=first)
        for step in range(span.tokens)
    ]
    assert placed == [
        (token - first, table[token // block_tokens], token % block_tokens) for token in range(start, stop)
    ]


def test_a_chunk_may_begin_and_end_inside_a_block() -> None:
    assert blocks_of([5, 9, 2], 16, 10, 33) == {5, 9, 2}
    assert blocks_of([5, 9, 2], 16, 16, 32) == {9}


@pytest.mark.parametrize(("start", "stop", "first"), [(0, 33, 0), (-1, 4, None), (4, 4, None), (4, 8, 6), (40, 44, 0)])
def test_what_is_in_no_block_is_refused(start: int, stop: int, first: int | None) -> None:
    with pytest.raises(InvalidRequest, match="2 blocks of 16 tokens"):
        block_spans([0, 1], 16, start, stop, first=first)
