"""Statistics that a minority of absurd samples cannot move: windows, weighted medians, spread. Pure.

Every estimate of the planner rests on the last :data:`WINDOW` samples and no other state, newer ones weighing more. So
whatever was reported before, twenty good samples hold six sevenths of the weight, and 65 % of it whatever the clock did
meanwhile: the medians are theirs.
"""

from functools import lru_cache
from math import exp
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGE_WEIGHT_MIN", "SPREAD_MAX", "WINDOW", "Window", "lognormal_factor", "relative_spread", "weighted_median"]

Floats = NDArray[np.float64]

WINDOW: Final = 31
_RECENCY: Final = 0.93
"""What a sample weighs of what the one after it does."""
_HALF_LIFE_SECONDS: Final = 120.0
AGE_WEIGHT_MIN: Final = 0.25
"""What a sample keeps of its weight however old it seems to be: clocks jump."""
_STALE_SECONDS: Final = 60.0
SPREAD_MAX: Final = 1.5
"""In logarithms: a factor of 3.5 at the quantile that is decided by."""
_SPREAD_MIN: Final = 0.03
_NORMAL: Final = NormalDist()


class Window:
    """The last samples, each a row of ``columns`` numbers. Not checked here: whoever adds one has checked it."""

    def __init__(self, columns: int) -> None:
        self._rows = np.zeros((WINDOW, columns))
        self._seconds = np.zeros(WINDOW)
        self._next = 0
        self.added = 0
        """Samples since the window was made."""

    def add(self, now_seconds: float, *row: float) -> None:
        """Take in one sample; the oldest goes."""
        self._rows[self._next] = row
        self._seconds[self._next] = now_seconds
        self._next = (self._next + 1) % WINDOW
        self.added += 1

    def __len__(self) -> int:
        return min(self.added, WINDOW)

    def rows(self) -> Floats:
        """[samples, columns], the newest first."""
        order = (self._next - 1 - np.arange(len(self))) % WINDOW
        return self._rows[order]

    def weights(self) -> Floats:
        """[samples], the newest first and of weight 1; older ones less, by place and by age."""
        order = (self._next - 1 - np.arange(len(self))) % WINDOW
        ages = self._seconds[self._next - 1] - self._seconds[order]
        by_age = np.exp2(-np.clip(ages, 0.0, 1e9) / _HALF_LIFE_SECONDS)
        return np.asarray(_RECENCY ** np.arange(len(self)) * np.maximum(by_age, AGE_WEIGHT_MIN))

    def staleness(self, now_seconds: float) -> float:
        """What the spread grows by in the absence of samples: 1 at once, at most 2."""
        if not self.added:
            return 1.0
        age = now_seconds - float(self._seconds[self._next - 1])
        return 1.0 + min(1.0, max(0.0, age) / (10 * _STALE_SECONDS))


def weighted_median(values: Floats, weights: Floats) -> float:
    """The value at which half of the weight is reached."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(reached, reached[-1] / 2)]])


def relative_spread(ratios: Floats, weights: Floats, prior: float) -> float:
    """The standard deviation of the logarithms of ``ratios`` (what was over what was expected), from their median.

    Few samples are not believed to be alike: ``prior`` is what is assumed before the first.
    """
    logs = np.log(np.maximum(ratios, 1e-12))
    deviation = 1.4826 * weighted_median(np.abs(logs - weighted_median(logs, weights)), weights)
    doubt = prior / (1.0 + len(ratios))
    return float(min(max(np.hypot(deviation, doubt), _SPREAD_MIN), SPREAD_MAX))


def lognormal_factor(spread: float, quantile: float | None) -> float:
    """What a median is multiplied by to have the quantile, or the mean (``None``), of a lognormal of that spread."""
    spread = min(spread, SPREAD_MAX)
    return exp(spread * spread / 2 if quantile is None else spread * _deviations(quantile))


@lru_cache(maxsize=64)
def _deviations(quantile: float) -> float:
    return _NORMAL.inv_cdf(min(max(quantile, 0.01), 0.99))
