"""How a link changes: its mean speed over time, and how soon it goes back there, from spells of transfers. Pure.

A spell is what was transferred within about half a second: chunks that follow each other say the same thing. The last
:data:`.robust.WINDOW` of them and nothing else are looked at. The speed reverts to its mean as a process of Ornstein
and Uhlenbeck does, and as every link does whose state is a Markov chain of two states; so a link that is slow now is
expected to be faster the later it is, and what was seen long ago says no more than the mean does.
"""

from collections import deque
from dataclasses import dataclass
from math import log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .robust import WINDOW, weighted_median

__all__ = ["Habit", "Spells"]

Floats = NDArray[np.float64]

_SPELL_SECONDS: Final = 0.5
_RECENCY: Final = 0.93
_FACTOR_MAX: Final = 32.0
"""Spells that are so many times faster or slower than the one in the middle are not believed."""
_GAPS_MAX: Final = 3.0
"""A spell stands for the time until the next, but for no more than so many times what is usual between two."""
_AGE_SECONDS_MAX: Final = 1e6
_REVERSIONS: Final[Floats] = np.array([2.0**place for place in range(-3, 11)])
"""Seconds, up to 17 minutes."""
_REVERSION_PRIOR_SECONDS: Final = 8.0
_PRIOR_WEIGHT: Final[Floats] = 0.02 * np.log2(_REVERSIONS / _REVERSION_PRIOR_SECONDS) ** 2
_SPELLS_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class Habit:
    """What a link does in the long run, against a line that says what its transfers take."""

    speed: float
    """The mean over time, in units of the line's speed"""
    spread: float
    """of the logarithm of the speed"""
    mean_spread: float
    """how far the mean may be off, in logarithms"""
    reversion_seconds: float


class Spells:
    """The last spells of one link."""

    def __init__(self) -> None:
        self._spells: deque[list[float]] = deque(maxlen=WINDOW)
        """The end, bytes, seconds and number of transfers of each."""
        self._added = 0
        self._fitted: tuple[int, float, Habit] = (-1, 0.0, Habit(1.0, 0.0, 0.0, _REVERSION_PRIOR_SECONDS))

    def add(self, moved_bytes: float, seconds: float, now_seconds: float) -> None:
        """A transfer ended; what was believed before it came is not looked at here."""
        if self._spells:
            last = self._spells[-1]
            idle = now_seconds - seconds - last[0]
            if abs(idle) <= _SPELL_SECONDS / 2 and last[2] + seconds <= _SPELL_SECONDS:
                last[0] = now_seconds
                last[1] += moved_bytes
                last[2] += seconds
                last[3] += 1.0
                return
        self._spells.append([now_seconds, moved_bytes, seconds, 1.0])
        self._added += 1

    def age(self, now_seconds: float) -> float:
        """Since the last transfer; 0 where a clock went back."""
        return min(max(now_seconds - self._spells[-1][0], 0.0), _AGE_SECONDS_MAX) if self._spells else _AGE_SECONDS_MAX

    def habit(self, latency_seconds: float, byte_seconds: float) -> Habit:
        """Against a line of transfers; kept until there is an eighth more to know."""
        added, byte, habit = self._fitted
        if added < 0 or self._added - added >= max(1, len(self._spells) // 8):
            habit = self._fit(latency_seconds, byte_seconds)
            self._fitted = self._added, byte_seconds, habit
        elif byte != byte_seconds:
            speed = habit.speed * byte_seconds / byte
            habit = Habit(speed, habit.spread, habit.mean_spread, habit.reversion_seconds)
        return habit

    def _fit(self, latency_seconds: float, byte_seconds: float) -> Habit:
        ends, moved, seconds, count = np.array(self._spells).T
        speeds = np.log((count * latency_seconds + moved * byte_seconds) / seconds)
        recency = np.array([_RECENCY**age for age in range(len(speeds) - 1, -1, -1)])
        believed = np.abs(speeds - weighted_median(speeds, recency)) <= log(_FACTOR_MAX)
        ends, speeds = ends[believed], speeds[believed]
        if len(speeds) < 2:
            return Habit(float(np.exp(speeds[-1])), 0.0, 1.0, _REVERSION_PRIOR_SECONDS)
        gaps = np.clip(ends[1:] - ends[:-1], 1e-3, _AGE_SECONDS_MAX)
        longest = _GAPS_MAX * float(np.median(gaps))
        stands = np.minimum(gaps, longest)
        weights = np.concatenate((stands[:1], stands[1:] + stands[:-1], stands[-1:]))
        weights /= weights.sum()
        mean = float(weights @ np.exp(speeds))
        off = speeds - weights @ speeds
        variance = float(weights @ (off * off))
        reversion_s = _REVERSION_PRIOR_SECONDS
        if len(speeds) >= _SPELLS_MIN and variance > 1e-9:
            kept = np.exp(-gaps / _REVERSIONS[:, None])
            missed = ((off[1:] - kept * off[:-1]) ** 2).mean(axis=1) / variance
            reversion_s = float(_REVERSIONS[int((missed + _PRIOR_WEIGHT * _SPELLS_MIN / len(speeds)).argmin())])
        return Habit(mean, sqrt(variance), sqrt(variance) / sqrt(len(speeds)), reversion_s)
