"""How links change, from transfers whose truth is known."""

import numpy as np
import pytest

from kvloom.daemon.planner.links import LinkModel, LinkPrior
from kvloom.daemon.planner.outlook import LinkCost
from kvloom.daemon.planner.spells import Spells

FAST, SLOW = 1e6, 5e4


def square(period_s, until_s, every_s=1.0):
    """A link that is fast and slow in turn, seen every so often by a load of 10 kB."""
    link = LinkModel(LinkPrior(0.0, 1e-6))
    for now in np.arange(0.0, until_s, every_s):
        rate = FAST if now % (2 * period_s) < period_s else SLOW
        link.add(10_000.0, 10_000.0 / rate, concurrent=1, now_seconds=float(now))
    return link


def test_a_link_is_what_it_was_last_and_goes_back_to_its_mean_over_time():
    estimates = square(10.0, 40.0)  # slow since 30 s
    now = estimates.estimate(now_seconds=39.2)
    assert 1 / now.byte_seconds == pytest.approx(SLOW, rel=0.7)
    assert 1 / now.typical_byte_seconds == pytest.approx((FAST + SLOW) / 2, rel=0.35)
    later = estimates.estimate(now_seconds=39.2 + 20 * now.reversion_seconds)
    assert later.byte_seconds == pytest.approx(later.typical_byte_seconds, rel=0.01)
    assert later.spread > now.spread


def test_a_link_that_changes_soon_reverts_sooner_than_one_that_changes_seldom():
    often, seldom = (square(period, 60.0).estimate(now_seconds=60.0).reversion_seconds for period in (2.0, 15.0))
    assert often < seldom


def test_a_link_that_is_steady_is_never_expected_to_be_another():
    link = LinkModel(LinkPrior())
    for now in range(40):
        link.add(1e6, 0.01, concurrent=1, now_seconds=float(now))
    for later in (39.0, 60.0, 1e5):
        found = link.estimate(now_seconds=later)
        assert found.byte_seconds == pytest.approx(found.typical_byte_seconds, rel=1e-6)


def test_a_spell_that_cannot_be_is_not_believed():
    spells = Spells()
    for now in range(20):
        spells.add(1e6, 0.01, float(now))
    before = spells.habit(0.0, 1e-8).speed
    spells.add(1e6, 1e-7, 20.0)
    for now in range(21, 29):
        spells.add(1e6, 0.01, float(now))
    assert spells.habit(0.0, 1e-8).speed == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize(("now", "typical"), [(1e-3, 1e-6), (1e-6, 1e-3), (2e-6, 1e-6)])
def test_a_load_takes_as_long_as_the_rate_summed_up_says(now, typical):
    size, reversion = 1e6, 3.0
    cost = LinkCost(0.5, now, 0.0, "path", typical, reversion)
    steady = cost.over(size)
    seconds = np.linspace(0.0, size * steady.byte_seconds, 200_001)
    rates = 1 / typical + (1 / now - 1 / typical) * np.exp(-seconds / reversion)
    assert np.trapezoid(rates, seconds) == pytest.approx(size, rel=1e-3)
    assert (steady.latency_seconds, steady.path, steady.typical_byte_seconds) == (0.5, "path", 0.0)


def test_what_waits_ahead_moves_on_at_the_same_speed():
    cost = LinkCost(0.0, 1e-3, 10.0, "", 1e-6, 3.0)  # behind 10,000 bytes
    steady = cost.over(10_000.0)
    assert steady.wait_seconds == pytest.approx(10_000 * steady.byte_seconds)
    assert cost.over(0.0).wait_seconds > 0.0


def test_a_link_of_which_only_the_present_is_known_stays_as_it_is():
    cost = LinkCost(0.0, 1e-3, 10.0)
    assert cost.over(1e6) is cost
