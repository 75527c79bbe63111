"""What clients report of answers that they checked against full prefill: counts, latest means, and an alert."""

from collections import deque
from math import isfinite
from typing import Final

from ..clients.plan_wire import QualitySample, QualityStats
from ..clients.quality import CHECKS_KEPT, misses_target

__all__ = ["AnswerQuality"]

_KL_MAX: Final = 1e6


class AnswerQuality:
    """Of all clients of a daemon together, since it started. Belongs to one event loop."""

    def __init__(self) -> None:
        self._recent: deque[QualitySample] = deque(maxlen=CHECKS_KEPT)
        self._checked = self._agreed = 0
        self._kl_sum = 0.0

    def note(self, sample: QualitySample) -> bool:
        """Take in a check; False for one that cannot be, which changes nothing."""
        numbers = (sample.kl, sample.kl_max)
        if not all(isfinite(item) and 0.0 <= item <= _KL_MAX for item in numbers) or not 0 <= sample.agreement_min <= 1:
            return False
        self._checked += 1
        self._agreed += sample.agrees
        self._kl_sum += sample.kl
        self._recent.append(sample)
        return True

    def stats(self) -> QualityStats:
        """As it is now."""
        count = max(1, len(self._recent))
        return QualityStats(
            checked=self._checked,
            agreed=self._agreed,
            kl_sum=self._kl_sum,
            recent_kl=sum(item.kl for item in self._recent) / count,
            recent_agreement=sum(item.agrees for item in self._recent) / count,
            alert=misses_target(self._recent),
        )
