"""Requests: only prompts whose parts fit together can be said."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the blend package imports torch")

from kvloom.blend import BlendReport, BlendRequest, BlendTimings, PlacedChunk
from kvloom.errors import EmptyChunk, InvalidRequest, TooManyItems
from kvloom.limits import PREFIX_TOKENS_MAX

TOKENS = np.arange(20)


def chunk(start, tokens):
    return PlacedChunk(start, tokens, (), ())


def test_owners_are_told_for_the_tokens_after_the_prefix():
    request = BlendRequest(TOKENS, 4, (chunk(0, 4), chunk(4, 3), chunk(9, 5)))
    assert request.owners().tolist() == [1, 1, 1, -1, -1, 2, 2, 2, 2, 2, -1, -1, -1, -1, -1, -1]


def test_a_chunk_may_reach_past_the_exact_prefix():
    assert BlendRequest(TOKENS, 4, (chunk(0, 10),)).owners().tolist() == [0] * 6 + [-1] * 10


def test_a_prompt_without_chunks_is_all_fresh():
    assert (BlendRequest(TOKENS, 0, ()).owners() == -1).all()


@pytest.mark.parametrize(
    ("prefix", "chunks", "message"),
    [
        (0, ((0, 5), (4, 3)), "chunk at 4 begins before 5"),
        (0, ((8, 4), (0, 4)), "chunk at 0 begins before 12"),
        (0, ((5, 15),), "reach to 20 of 20 tokens; the last"),
        (20, ((0, 19),), "exact prefix has 20 tokens of 20"),
        (-1, (), "exact prefix has -1"),
        (6, ((0, 4),), "exact prefix has 6 tokens, chunks cover the first 4"),
        (6, ((0, 4), (5, 4)), "exact prefix has 6 tokens, chunks cover the first 4"),
        (3, (), "exact prefix has 3 tokens, chunks cover the first 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(prefix, chunks, message):
    with pytest.raises(InvalidRequest, match=message):
        BlendRequest(TOKENS, prefix, tuple(chunk(*item) for item in chunks))


def test_empty_and_oversized_parts_are_refused():
    with pytest.raises(EmptyChunk, match="chunk at 3 has 0 tokens"):
        chunk(3, 0)
    with pytest.raises(InvalidRequest, match="starts at -1"):
        chunk(-1, 2)
    with pytest.raises(InvalidRequest, match="at least 1"):
        BlendRequest(np.empty(0, dtype=np.int64), 0, ())
    with pytest.raises(InvalidRequest, match="shape"):
        BlendRequest(TOKENS.reshape(2, 10), 0, ())
    with pytest.raises(TooManyItems, match=str(PREFIX_TOKENS_MAX)):
        BlendRequest(np.zeros(PREFIX_TOKENS_MAX + 1, dtype=np.int64), 0, ())


def test_needs_are_told_for_the_stored_tokens_after_the_prefix():
    first, second = np.arange(6, dtype=np.float32), np.arange(10, 13, dtype=np.float32)
    chunks = (PlacedChunk(0, 6, (), (), need=first), PlacedChunk(9, 3, (), (), need=second))
    assert BlendRequest(TOKENS, 4, chunks).needs().tolist() == [4.0, 5.0, 10.0, 11.0, 12.0]
    assert BlendRequest(TOKENS, 4, (PlacedChunk(0, 4, (), ()), *chunks[1:])).needs().tolist() == [10.0, 11.0, 12.0]
    assert BlendRequest(TOKENS, 4, (chunks[0], PlacedChunk(9, 3, (), ()))).needs() is None
    assert BlendRequest(TOKENS, 0, ()).needs() is None


def test_a_need_is_one_number_a_token_and_a_position_one_that_exists():
    with pytest.raises(InvalidRequest, match=r"need has shape \(2,\), must be \[3\]"):
        PlacedChunk(0, 3, (), (), need=np.zeros(2, dtype=np.float32))
    with pytest.raises(InvalidRequest, match="rotated to position -1"):
        PlacedChunk(0, 3, (), (), position=-1)
    assert (PlacedChunk(4, 3, (), ()).target, PlacedChunk(4, 3, (), (), position=2).target) == (4, 2)


def test_the_report_counts_token_layers():
    report = BlendReport(10, 80, 20, 100, 20, (100, 36, 36, 36), BlendTimings(0.0, 0.0, 0.0))
    assert report.recompute_ratio == pytest.approx(0.2)
    assert report.token_layer_cost == pytest.approx((100 + 3 * 36 + 100 + 4 * 20) / 400)
    assert BlendReport(0, 0, 5, 0, 0, (5,), BlendTimings(0.0, 0.0, 0.0)).recompute_ratio == 0.0
