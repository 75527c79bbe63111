"""What links do, from what transfers over them took: latency, throughput and spread, each with its time. Pure.

A transfer of ``x`` bytes takes ``latency + x · byte_seconds``, for a link that this transfer has alone. Where several
share it, each gets its part, so one that ran beside others counts as having moved theirs, too: ``x`` is its bytes
times the transfers under way. The line is Siegel's repeated median (Biometrika 1982): it stands while fewer than half
of the samples are wrong, in size, in time, or both.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np

from .outlook import LinkCost
from .robust import Window, lognormal_factor, relative_spread, weighted_median

__all__ = ["LinkEstimate", "LinkModel", "LinkPrior", "RateModel", "believable"]

_SIZES_APART: Final = 1.2
"""Transfers whose sizes differ by less than this factor say nothing about latency."""
_PRIOR_SPREAD: Final = 1.0
_SECONDS_MIN: Final = 1e-8
_SECONDS_MAX: Final = 86_400.0
_BYTES_MAX: Final = 2.0**40
_CONCURRENT_MAX: Final = 1e4


@dataclass(frozen=True, slots=True)
class LinkPrior:
    """What is assumed of a link of which nothing is known yet."""

    latency_seconds: float = 0.001
    byte_seconds: float = 1e-8


def believable(seconds: float, amount: float, amount_max: float = _BYTES_MAX) -> bool:
    """Whether a duration and what was done in it can be at all; comparisons with NaN are false."""
    return _SECONDS_MIN <= seconds <= _SECONDS_MAX and 1.0 <= amount <= amount_max


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """What is expected of a link: medians, and how far it may be off."""

    latency_seconds: float
    byte_seconds: float
    spread: float
    """The standard deviation of the logarithm of what a transfer takes."""

    def cost(self, quantile: float | None, *, ahead_bytes: float = 0.0, path: str = "") -> LinkCost:
        """The cost at a quantile, or the mean (``None``), behind ``ahead_bytes`` that others have under way.

        A link that is shared fairly holds a transfer up by no more than a queue of those bytes would.
        """
        factor = lognormal_factor(self.spread, quantile)
        wait = max(0.0, ahead_bytes) * self.byte_seconds * factor
        return LinkCost(self.latency_seconds * factor, self.byte_seconds * factor, wait, path)


class LinkModel:
    """One link: memory, disk, a store that is shared, a peer."""

    def __init__(self, prior: LinkPrior) -> None:
        self._prior = prior
        self._window = Window(2)
        self._fitted_at = -1
        self._fit = (prior.latency_seconds, prior.byte_seconds, _PRIOR_SPREAD)

    @property
    def samples(self) -> int:
        """How many have been taken in, ever."""
        return self._window.added

    def add(self, size_bytes: float, seconds: float, *, concurrent: float, now_seconds: float) -> bool:
        """Take in a transfer that had ``concurrent`` transfers under way on average, itself included.

        Whether it was believable; if not, nothing changes.
        """
        if not (isfinite(now_seconds) and 1.0 <= concurrent <= _CONCURRENT_MAX and believable(seconds, size_bytes)):
            return False
        self._window.add(now_seconds, size_bytes * concurrent, seconds)
        return True

    def estimate(self, *, now_seconds: float) -> "LinkEstimate":
        """What is expected of the link now."""
        if self._fitted_at != self._window.added:
            self._fit = self._line()
            self._fitted_at = self._window.added
        latency, byte_seconds, spread = self._fit
        return LinkEstimate(latency, byte_seconds, spread * self._window.staleness(now_seconds))

    def _line(self) -> tuple[float, float, float]:
        if not len(self._window):
            return self._prior.latency_seconds, self._prior.byte_seconds, _PRIOR_SPREAD
        sizes, seconds = self._window.rows().T
        weights = self._window.weights()
        slope, latency = 0.0, 0.0
        apart = np.abs(np.log(sizes[:, None] / sizes)) > np.log(_SIZES_APART)
        telling = apart.any(axis=1)
        if weights[telling].sum() > weights.sum() / 2:
            with np.errstate(divide="ignore", invalid="ignore"):
                slopes = (seconds[:, None] - seconds) / (sizes[:, None] - sizes)
            medians = np.array(
                [weighted_median(slopes[row, apart[row]], weights[apart[row]]) for row in np.flatnonzero(telling)]
            )
            slope = weighted_median(medians, weights[telling])
            latency = weighted_median(seconds - slope * sizes, weights)
        if slope <= 0.0 or latency < 0.0:
            shortest = weighted_median(seconds, weights)
            latency = min(self._prior.latency_seconds, shortest / 4)
            slope = weighted_median(np.maximum(seconds - latency, seconds / 4) / sizes, weights)
        spread = relative_spread(seconds / (latency + slope * sizes), weights, _PRIOR_SPREAD)
        return latency, slope, spread


class RateModel:
    """Something that takes time in proportion: decoding, by bytes of KV decoded."""

    def __init__(self, unit_seconds: float) -> None:
        self._prior = unit_seconds
        self._window = Window(1)

    def add(self, amount: float, seconds: float, *, now_seconds: float) -> bool:
        """Take in one measurement; whether it was believable."""
        if not (isfinite(now_seconds) and believable(seconds, amount)):
            return False
        self._window.add(now_seconds, seconds / amount)
        return True

    def unit_seconds(self) -> float:
        """The seconds that one unit takes."""
        if not len(self._window):
            return self._prior
        return weighted_median(self._window.rows()[:, 0], self._window.weights())
