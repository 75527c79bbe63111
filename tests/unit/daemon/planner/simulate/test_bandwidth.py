import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.daemon.planner.simulate.bandwidth import Bandwidth, congested, constant, lte, recorded, saw, step
from kvloom.daemon.planner.simulate.link_spec import parse_link, parse_rate
from kvloom.errors import ConfigError, InvalidData

segments = st.lists(st.tuples(st.floats(0.01, 5.0), st.sampled_from([0.0, 1.0, 3.5, 1e6])), min_size=1, max_size=8)


def made(pieces):
    edges = np.concatenate(([0.0], np.cumsum([length for length, _ in pieces])))
    return Bandwidth(edges, [rate for _, rate in pieces])


@given(segments.filter(lambda pieces: any(rate for _, rate in pieces)), st.floats(0.0, 40.0), st.floats(0.0, 40.0))
def test_what_is_delivered_is_the_integral_of_the_rate_over_any_number_of_cycles(pieces, one, other):
    bandwidth = made(pieces)
    low, high = min(one, other), max(one, other)
    moments = np.unique(np.concatenate(([low, high], bandwidth.breaks(low, high))))
    middle = (moments[1:] + moments[:-1]) / 2
    area = sum(
        length * bandwidth.rate(float(at)) for length, at in zip(np.diff(moments), middle, strict=True) if length > 1e-9
    )
    assert bandwidth.delivered(high) - bandwidth.delivered(low) == pytest.approx(area, rel=1e-6, abs=1e-2)
    assert bandwidth.delivered_many(np.array([low, high])) == pytest.approx(
        [bandwidth.delivered(low), bandwidth.delivered(high)], rel=1e-9, abs=1e-3
    )


@given(segments.filter(lambda pieces: any(rate for _, rate in pieces)), st.floats(0.0, 1e7))
def test_the_moment_of_a_byte_is_the_first_by_which_it_has_come(pieces, wanted):
    bandwidth = made(pieces)
    moment = bandwidth.when(wanted)
    assert bandwidth.delivered(moment) == pytest.approx(wanted, rel=1e-6, abs=1e-2)
    assert bandwidth.delivered(moment * (1 - 1e-6)) <= wanted + 1e-2


def test_shapes():
    assert constant(5.0).delivered(10.0) == 50.0
    assert step(10.0, 2.0, 3.0).delivered(7.0) == 30.0 + 6.0 + 10.0
    assert saw(0.0, 8.0, 4.0, steps=4).mean_bytes_per_s == pytest.approx(4.0)
    assert step(10.0, 0.0, 1.0).when(15.0) == pytest.approx(2.5)  # the second second brings nothing


@pytest.mark.parametrize("make", [lte, lambda seed: congested(1e9, seed)])
def test_processes_of_chance_are_the_same_for_the_same_seed_only(make):
    assert make(3).edges_s.tolist() == make(3).edges_s.tolist()
    assert make(3).sums_bytes.tolist() == make(3).sums_bytes.tolist()
    assert make(3).sums_bytes.tolist() != make(4).sums_bytes.tolist()


def test_a_congested_link_leaves_a_fair_share_beside_three_flows_in_the_mean():
    share = congested(1e9, 1).mean_bytes_per_s / 1e9
    assert 0.2 < share < 0.45  # E[1 / (1 + k)] for a Poisson k of mean 3 is 0.32


def test_recorded_rows_hold_until_the_next():
    bandwidth = recorded(["seconds,bytes_per_s", "10,100", "12,50", "", "13,0"])
    assert [bandwidth.rate(at) for at in (0.0, 1.9, 2.5, 3.5)] == [100.0, 100.0, 50.0, 0.0]
    assert bandwidth.cycle_s == 4.0


@pytest.mark.parametrize(
    "rows", [["1,2"], ["0,1", "x,2"], ["0,1", "1"], ["1,5", "0,5"], ["0,-1", "1,2"], ["0,0", "1,0"]]
)
def test_bad_recordings_are_refused_with_what_is_wrong(rows):
    with pytest.raises(InvalidData):
        recorded(rows)


def test_links_are_named_in_bits_per_second():
    assert parse_rate("10Gb") == 1.25e9
    assert parse_link("step:8Mb,8kb,2", 0).delivered(4.0) == pytest.approx(2e6 + 2e3)


@pytest.mark.parametrize(
    "text", ["", "constant", "constant:10", "step:1Gb,2Gb", "lte:x", "constant:0Gb", "saw:1Gb,2Gb,-1", "nanGb"]
)
def test_unknown_links_are_refused(text):
    with pytest.raises(ConfigError):
        parse_link(text, 0)
