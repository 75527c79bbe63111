"""What links do, from what transfers over them took: latency, throughput and spread, each with its time. Pure.

A transfer of ``x`` bytes takes ``latency + x · byte_seconds``, for a link that this transfer has alone. Where several
share it, each gets its part, so one that ran beside others counts as having moved theirs, too: ``x`` is its bytes
times the transfers under way. The line is Siegel's repeated median (Biometrika 1982): it stands while fewer than half
of the samples are wrong, in size, in time, or both.
"""

from collections import deque
from dataclasses import dataclass, replace
from math import exp, hypot, inf, isfinite, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .outlook import LinkCost
from .robust import SPREAD_MAX, WINDOW, Window, lognormal_factor, relative_spread, weighted_median
from .spells import Spells

__all__ = ["LinkEstimate", "LinkModel", "LinkPrior", "RateModel", "believable"]

Floats = NDArray[np.float64]

_LATEST_WEIGHTS: Final = tuple(0.6**place for place in range(8))
"""Of the latest samples, the newest first: one alone, whatever it says, does not outweigh the others."""
_REFIT_SAMPLES: Final = 8
"""A window that is full is fitted anew after so many samples."""
_LATENCY_SHARE: Final = 1 / 16
"""Of what transfers of one size take, no more than this is taken for latency, which a row of loads waits for once: what
that is cannot be told, and most of it may be the bytes."""
_SIZES_APART: Final = 1.2
"""Transfers whose sizes differ by less than this factor say nothing about latency."""
_SIZES_TELLING: Final = 4.0
"""Where they differ by less than this one, no more than half of what they take is latency: else what is many times
larger, as the exact KV of a chunk beside its standard one, would seem to come in the same time."""
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
    typical_byte_seconds: float = 0.0
    """In the long run, at the mean of the link's speed over time; 0 where nothing else than now is known."""
    typical_spread: float = 0.0
    reversion_seconds: float = inf
    """How soon it takes what it typically does again."""

    def cost(self, quantile: float | None, *, ahead_bytes: float = 0.0, path: str = "") -> LinkCost:
        """The cost at a quantile, or the mean (``None``), behind ``ahead_bytes`` that others have under way.

        A link that is shared fairly holds a transfer up by no more than a queue of those bytes would.
        """
        factor = lognormal_factor(self.spread, quantile)
        byte_seconds = self.byte_seconds * factor
        return LinkCost(
            self.latency_seconds * factor,
            byte_seconds,
            max(0.0, ahead_bytes) * byte_seconds,
            path,
            self.typical_byte_seconds * lognormal_factor(self.typical_spread, quantile),
            self.reversion_seconds,
        )

    def at_least(self, latency_seconds: float, byte_seconds: float) -> "LinkEstimate":
        """The same behind something that takes so much time more, and at least so much for a byte."""
        typical = self.typical_byte_seconds
        return replace(
            self,
            latency_seconds=self.latency_seconds + latency_seconds,
            byte_seconds=max(self.byte_seconds, byte_seconds),
            typical_byte_seconds=max(typical, byte_seconds) if typical else 0.0,
        )


class LinkModel:
    """One link: memory, disk, a store that is shared, a peer.

    A line through all samples says what is latency and what is throughput; how fast the link is now is what the latest
    samples took of what the line says, and how it comes back from there is seen in spells (:mod:`.spells`).
    """

    def __init__(self, prior: LinkPrior) -> None:
        self._prior = prior
        self._window = Window(2)
        self._fitted_at = -1
        self._line = _Line(prior.latency_seconds, prior.byte_seconds, _PRIOR_SPREAD)
        self._latest: deque[tuple[float, float]] = deque(maxlen=len(_LATEST_WEIGHTS))
        self._spells = Spells()

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
        moved = size_bytes * concurrent
        self._window.add(now_seconds, moved, seconds)
        self._latest.appendleft((moved, seconds))
        self._spells.add(moved, seconds, now_seconds)
        return True

    def estimate(self, *, now_seconds: float) -> LinkEstimate:
        """What is expected of the link now."""
        added = self._window.added
        if not added:
            return LinkEstimate(self._prior.latency_seconds, self._prior.byte_seconds, _PRIOR_SPREAD)
        if added - self._fitted_at >= (1 if added < WINDOW else _REFIT_SAMPLES) or self._fitted_at < 0:
            self._line = self._fitted()
            self._fitted_at = added
        line = self._line
        latest = _latest_factor(
            [seconds / (line.latency_seconds + line.byte_seconds * moved) for moved, seconds in self._latest]
        )
        habit = self._spells.habit(line.latency_seconds, line.byte_seconds)
        fade = exp(-self._spells.age(now_seconds) / habit.reversion_seconds)
        speed = habit.speed + (1.0 / latest - habit.speed) * fade
        spread = hypot(line.spread * self._window.staleness(now_seconds), habit.spread * sqrt(1.0 - fade * fade))
        return LinkEstimate(
            line.latency_seconds,
            line.byte_seconds / speed,
            min(spread, SPREAD_MAX),
            line.byte_seconds / habit.speed,
            min(habit.mean_spread + line.spread / sqrt(added), SPREAD_MAX),
            habit.reversion_seconds,
        )

    def _fitted(self) -> "_Line":
        sizes, seconds = self._window.rows().T
        weights = self._window.weights()
        slope, latency = 0.0, 0.0
        if sizes.max() > _SIZES_APART * sizes.min():
            slope, latency = _repeated_median(sizes, seconds, weights)
        if sizes.max() < _SIZES_TELLING * sizes.min() and latency > (most := weighted_median(seconds, weights) / 2):
            latency = most
            slope = weighted_median((seconds - latency).clip(min=seconds / 4) / sizes, weights)
        if slope <= 0.0 or latency < 0.0:
            shortest = weighted_median(seconds, weights)
            latency = min(self._prior.latency_seconds, shortest * _LATENCY_SHARE)
            slope = weighted_median(np.maximum(seconds - latency, seconds / 4) / sizes, weights)
        took = seconds / (latency + slope * sizes)
        if len(took) > 1:  # from one to the next, so that a link that is slow for long is not one that spreads
            took, weights = (took[:-1] / took[1:]) ** np.sqrt(0.5), weights[:-1]
        return _Line(latency, slope, relative_spread(took, weights, _PRIOR_SPREAD))


@dataclass(frozen=True, slots=True)
class _Line:
    latency_seconds: float
    byte_seconds: float
    spread: float
    """Of what follows each other."""


def _repeated_median(sizes: Floats, seconds: Floats, weights: Floats) -> tuple[float, float]:
    """Slope and latency; 0 and 0 where too few samples differ in size."""
    apart = np.abs(np.log(sizes[:, None] / sizes)) > np.log(_SIZES_APART)
    telling = apart.any(axis=1)
    if weights[telling].sum() <= weights.sum() / 2:
        return 0.0, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(apart, (seconds[:, None] - seconds) / (sizes[:, None] - sizes), np.inf)[telling]
    order = np.argsort(slopes, axis=1)
    reached = np.cumsum(np.where(apart[telling], weights, 0.0)[np.arange(len(slopes))[:, None], order], axis=1)
    half = (reached < reached[:, -1:] / 2).sum(axis=1)
    medians = slopes[np.arange(len(slopes)), order[np.arange(len(slopes)), half]]
    slope = weighted_median(medians, weights[telling])
    return slope, weighted_median(seconds - slope * sizes, weights)


def _latest_factor(factors: list[float]) -> float:
    """What the latest samples took of what was to be expected, the newest first: a median in which that weighs most."""
    left = sum(_LATEST_WEIGHTS[: len(factors)]) / 2
    for factor, weight in sorted(zip(factors, _LATEST_WEIGHTS, strict=False)):
        left -= weight
        if left <= 0.0:
            return factor
    return 1.0


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
