"""When checked answers are too far from full prefill."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.plan_wire import QualitySample
from kvloom.clients.quality import misses_target

GOOD = QualitySample(0.01, True, 0.05, 0.5)
FAR = QualitySample(0.2, True, 0.05, 0.5)
OTHER = QualitySample(0.01, False, 0.05, 0.5)
ENOUGH = 8


@pytest.mark.parametrize(
    ("samples", "missed"),
    [
        ([], False),
        ([FAR] * (ENOUGH - 1), False),
        ([FAR] * ENOUGH, True),
        ([OTHER] * ENOUGH, True),
        ([GOOD] * ENOUGH, False),
        ([GOOD] * ENOUGH + [FAR], False),
        ([GOOD, OTHER] * ENOUGH, False),
        ([GOOD, OTHER, OTHER] * ENOUGH, True),
    ],
)
def test_an_alert_needs_enough_checks_that_miss_together(samples, missed):
    assert misses_target(samples) is missed


@given(
    st.lists(st.builds(QualitySample, st.floats(0, 9), st.booleans(), st.floats(0, 9), st.floats(0, 1)), max_size=30)
)
def test_answers_that_keep_to_what_was_asked_never_raise_it(samples):
    kept = [QualitySample(min(item.kl, item.kl_max), True, item.kl_max, item.agreement_min) for item in samples]
    assert not misses_target(kept)
