"""The embedded quantiser: levels are views of one symbol, and nothing that was counted is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvloom.codec.entropy.model import GAIN_MAX, REFINEMENTS_MAX, ROUNDING
from kvloom.codec.quantise import (
    ESCAPE_MAX,
    FINE_MAX,
    gain_factors,
    join,
    largest_gains,
    quantise,
    reconstruct,
    split,
    unit,
)
from kvloom.errors import InvalidTensor

LEVELS = range(REFINEMENTS_MAX + 1)
fine_symbols = arrays(
    np.int32,
    (3, 7),
    elements=st.one_of(st.integers(-9, 9), st.integers(1 - FINE_MAX, FINE_MAX - 1), st.sampled_from([2**27, -(2**28)])),
)
refinement_counts = st.sampled_from(LEVELS)


@given(fine_symbols, refinement_counts)
def test_every_level_is_joined_from_the_one_before(fine, refinements):
    coarse, parts = split(fine, refinements)
    assert len(parts) == refinements
    for level, refinement in enumerate(parts, 1):
        parents = coarse
        coarse = join(coarse, refinement)
        left = refinements - level
        assert np.array_equal(coarse, np.sign(fine) * (np.abs(fine) >> left))
        assert (refinement[parents != 0] <= 1).all()
        assert (refinement <= 2).all()
    assert np.array_equal(coarse, fine)
    assert coarse.dtype == np.int32


@given(fine_symbols, refinement_counts)
def test_the_base_of_three_refinements_fits_an_escape(fine, refinements):
    base, _ = split(fine, refinements)
    assert int(np.abs(base.astype(np.int64)).max()) < FINE_MAX >> refinements
    assert FINE_MAX >> REFINEMENTS_MAX == ESCAPE_MAX


def test_cells_of_a_level_are_unions_of_cells_of_the_next():
    """Counted over a fine grid: two numbers that share a cell share one at every coarser level."""
    grid = np.linspace(-40, 40, 64_001, dtype=np.float32)[:, None].T
    fine = quantise(grid, np.zeros(grid.shape[1], np.uint8))
    assert (np.diff(fine[0]) >= 0).all()
    levels = [np.sign(fine[0]) * (np.abs(fine[0]) >> left) for left in LEVELS]
    for finer, coarser in zip(levels[:-1], levels[1:], strict=True):
        for cell in np.unique(finer):
            assert len(np.unique(coarser[finer == cell])) == 1
        assert len(np.unique(coarser)) < len(np.unique(finer))


@pytest.mark.parametrize("left", LEVELS)
def test_a_cell_stands_for_a_point_within_it_and_the_edges_are_where_they_should_be(left):
    grid = np.linspace(-40, 40, 64_001, dtype=np.float32)[:, None].T
    symbols = quantise(grid, np.zeros(grid.shape[1], np.uint8))
    symbols = np.sign(symbols) * (np.abs(symbols) >> left)
    points = reconstruct(symbols, left) * unit(left)
    for cell in np.unique(symbols):
        inside = grid[symbols == cell]
        point = points[symbols == cell][0]
        if abs(cell) == abs(symbols).max():
            continue  # the grid ends within it
        assert inside.min() - 1e-3 <= point <= inside.max() + 1e-3
        if cell > 0:
            lower = cell * 2**left - float(ROUNDING)
            assert inside.min() == pytest.approx(lower, abs=2e-3)
            share = 0.25 if left else float(ROUNDING) / 2**left
            # A quarter above the lower end of the cell of whole steps; at the finest level the whole number itself.
            assert point == pytest.approx(cell * 2**left + (share * 2**left if left else 0), abs=1e-6)
    assert (reconstruct(-symbols, left) == -reconstruct(symbols, left)).all()
    assert reconstruct(symbols, left).dtype == np.int32


@pytest.mark.parametrize("left", LEVELS)
def test_the_largest_symbols_reconstruct_without_overflow(left):
    largest = np.array([(FINE_MAX - 1) >> left, -((FINE_MAX - 1) >> left)], np.int32)
    whole = reconstruct(largest, left)
    assert whole[0] == -whole[1] > 0
    assert abs(whole[0] * unit(left) / FINE_MAX - 1) < 1e-6


@given(st.integers(0, GAIN_MAX), st.floats(-1000, 1000, width=32))
def test_a_token_of_some_gain_is_quantised_that_much_more_finely(gain, number):
    symbol = quantise(np.full((1, 1), number, np.float32), np.array([gain], np.uint8))[0, 0]
    step = 2 ** (-gain / 2)
    assert gain_factors(np.array([gain], np.uint8))[0] == pytest.approx(1 / step, rel=1e-6)
    error = abs(float(number) - float(symbol) * step) / step
    assert error <= 1 - float(ROUNDING) + 1e-3 + 1e-6 * abs(number) / step


def test_gains_keep_symbols_comfortable():
    peaks = np.array([[0.0, 1.0, 300.0, 2.0**14, 2.0**20]], np.float32)
    gains = largest_gains(peaks)
    assert gains[0] == gains[1] == GAIN_MAX
    assert gains[-1] == 0
    assert (np.diff(gains.astype(int)) <= 0).all()
    assert (np.abs(quantise(peaks, gains))[:, :4] <= 2**15).all()


@pytest.mark.parametrize("bad", [2.0**30, -(2.0**31), np.inf, np.nan])
def test_what_no_symbol_holds_is_refused(bad):
    with pytest.raises(InvalidTensor, match="the limit is"):
        quantise(np.array([[0.5, bad]], np.float32), np.zeros(2, np.uint8))
