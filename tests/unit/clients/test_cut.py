"""The best cut, against every cut there is by the model of time, and the bound under all plans."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.cut import Stretch, best_cut, least_seconds
from kvloom.clients.plan_wire import Ability
from kvloom.daemon.planner.problem import RECOMPUTE, Problem
from kvloom.daemon.planner.request import Executor
from kvloom.daemon.planner.timeline import ttfts

seconds = st.floats(0.01, 5.0)


@st.composite
def stretches(draw, chunks_max=9) -> Stretch:
    """Chunks of which some are nobody's, on either kind of engine, decoding where it may."""
    count = draw(st.integers(1, chunks_max))

    def many(values):
        return draw(st.lists(values, min_size=count, max_size=count))

    prefix = draw(st.booleans())
    return Stretch(
        many(seconds),
        many(st.one_of(seconds, seconds, st.just(float("inf")))),
        many(st.one_of(st.just(0.0), st.floats(0.0, 0.5))),
        draw(st.floats(0.0, 2.0)),
        draw(st.floats(0.0, 2.0)),
        draw(st.floats(0.0, 1.0)),
        prefix,
        draw(st.booleans()) and not prefix,
    )


def posed(stretch: Stretch) -> Problem:
    """The same as a problem with one way, which is way 0."""
    count = len(stretch.compute)
    transfer, decode = np.zeros((count, 2)), np.zeros((count, 2))
    transfer[:, 0], decode[:, 0] = stretch.transfer, stretch.decode
    ability = Ability.PREFIX_CUT if stretch.prefix_only else Ability.ANY_CHUNK
    return Problem(
        np.arange(count),
        np.array(stretch.compute),
        transfer,
        decode,
        np.zeros((count, 2)),
        np.array([0, 0]),
        np.array([stretch.path_seconds]),
        stretch.call_seconds,
        stretch.wait_seconds,
        Executor(ability, decoding_competes=stretch.decoding_competes),
    )


def choice_of(stretch: Stretch, length: int) -> list[int]:
    return [
        RECOMPUTE if transfer == float("inf") or (at >= length) == stretch.prefix_only else 0
        for at, transfer in enumerate(stretch.transfer)
    ]


@given(stretches())
def test_no_cut_is_faster_than_the_best_and_that_one_takes_what_is_said(stretch: Stretch) -> None:
    problem, count = posed(stretch), len(stretch.compute)
    took = ttfts(problem, np.array([choice_of(stretch, length) for length in range(count + 1)]))
    cut = best_cut(stretch)
    assert cut.seconds == pytest.approx(took.min())
    assert took[cut.length] == pytest.approx(cut.seconds)
    assert took[0 if stretch.prefix_only else count] == pytest.approx(cut.everything_seconds)


@given(stretches(chunks_max=7))
def test_no_plan_at_all_undercuts_the_bound(stretch: Stretch) -> None:
    stretch = replace(stretch, prefix_only=False)
    ways = [(RECOMPUTE,) if transfer == float("inf") else (RECOMPUTE, 0) for transfer in stretch.transfer]
    took = ttfts(posed(stretch), np.array(list(product(*ways))))
    assert least_seconds(stretch, best_cut(stretch)) <= took.min() * (1 + 1e-9)


def test_where_the_engine_has_a_price_a_prefix_is_loaded_that_takes_a_little_longer() -> None:
    stretch = Stretch([1.0] * 4, [1.1] * 4, [0.0] * 4, 0.0, 0.0, 0.0, True, False)
    assert best_cut(stretch).length == 0
    dear = best_cut(replace(stretch, engine_price=1.2))
    assert (dear.length, dear.seconds, dear.everything_seconds) == (4, pytest.approx(4.4), 4.0)
    assert best_cut(replace(stretch, engine_price=1.05)).length == 0
