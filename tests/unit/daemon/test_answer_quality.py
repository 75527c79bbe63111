"""What clients report of checked answers: counted, averaged, and refused where it cannot be."""

import math

import pytest

from kvloom.clients.plan_wire import NO_CHECKS, QualitySample
from kvloom.clients.quality import CHECKS_KEPT
from kvloom.daemon.answer_quality import AnswerQuality


def test_counts_go_on_and_means_are_of_the_latest():
    quality = AnswerQuality()
    assert quality.stats() == NO_CHECKS
    for _ in range(CHECKS_KEPT):
        assert quality.note(QualitySample(1.0, False, 0.05, 0.5))
    assert quality.stats().alert
    for _ in range(CHECKS_KEPT):
        quality.note(QualitySample(0.0, True, 0.05, 0.5))
    found = quality.stats()
    assert (found.checked, found.agreed) == (2 * CHECKS_KEPT, CHECKS_KEPT)
    assert found.kl_sum == CHECKS_KEPT
    assert (found.recent_kl, found.recent_agreement, found.alert) == (0.0, 1.0, False)


@pytest.mark.parametrize(
    "sample",
    [
        QualitySample(math.nan, True, 0.05, 0.5),
        QualitySample(math.inf, True, 0.05, 0.5),
        QualitySample(-0.1, True, 0.05, 0.5),
        QualitySample(0.1, True, math.nan, 0.5),
        QualitySample(0.1, True, 0.05, 1.5),
        QualitySample(0.1, True, 0.05, math.nan),
    ],
)
def test_checks_that_cannot_be_change_nothing(sample):
    quality = AnswerQuality()
    assert not quality.note(sample)
    assert quality.stats() == NO_CHECKS
