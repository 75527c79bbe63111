"""What prefill costs on one engine, from the prefills that it reports: ``a·n + b·n·context + c``. Pure.

And what it costs others: an engine that is busy for a part ``u`` of the time has, for each second that a request takes
of it, ``u / (1 - u)`` more seconds waited by those that come before it is idle again (a queue with Poisson arrivals,
each as long as the mean). So a second of it is worth ``1 / (1 - u)``.

Fitted by least trimmed squares on relative errors (Rousseeuw and Van Driessen 2006): the fit to the part of the samples
that it fits best, found from several starts in concentration steps. Whatever the rest claims has no influence. ``a``,
``b`` and ``c`` are not negative. Prefills of an engine that had much else to do at the time are another model.
"""

from collections import deque
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ... import limits
from .links import believable
from .outlook import PrefillCost
from .robust import WINDOW, Window, relative_spread

__all__ = ["BATCH_STATES", "PrefillModel", "PrefillPrior"]

Floats = NDArray[np.float64]

BATCH_STATES: Final = (1, 8)
"""Requests in an engine up to which it is idle, or lightly loaded; past the last it is busy."""
_STATE_SAMPLES_MIN: Final = 5
"""What a model of its own takes; a batch state with fewer samples uses that of the one that has most."""
_PRIOR_SPREAD: Final = 0.7
_KEPT_WEIGHT: Final = 0.6
"""The part of the weight that the fit is made to."""
_STEPS_MAX: Final = 5
_INLIER_SPREADS: Final = 3.0
_REFIT_SAMPLES: Final = 3
"""A window that is full is fitted anew after so many samples that were not foretold."""
_FORETOLD: Final = 0.005
"""How far off, at the most, a sample is that was foretold."""
_RIDGE: Final = 1e-4
_ABSURD: Final = 1e3
"""Times the middle of all, past which it does not matter how far off a sample is."""
_BUSY_SAMPLES: Final = 256
_BUSY_SAMPLES_MIN: Final = 16
_BUSY_PAUSE_SECONDS_MAX: Final = 3600.0
_PRICE_MAX: Final = 2.0
"""However busy an engine seems: how busy is known from a few hundred steps, and half idle is as far as that goes."""
_COLUMNS: Final = [list(chosen) for size in (3, 2, 1) for chosen in combinations(range(3), size)]


@dataclass(frozen=True, slots=True)
class PrefillPrior:
    """What is assumed before an engine has reported anything: a model of a few billion parameters on one GPU."""

    token_seconds: float = 1e-4
    token_context_seconds: float = 1e-9
    call_seconds: float = 0.005


class PrefillModel:
    """One engine with one model."""

    def __init__(self, prior: PrefillPrior) -> None:
        self._prior: Floats = np.array([prior.token_seconds, prior.token_context_seconds, prior.call_seconds])
        self._windows = [Window(3) for _ in range(len(BATCH_STATES) + 1)]
        self._fits: list[tuple[float, ...]] = [tuple(self._prior.tolist())] * len(self._windows)
        self._busy = _Busy()
        self._surprises = [0] * len(self._windows)
        """By window: samples since the last fit that this fit did not foretell."""

    @property
    def samples(self) -> int:
        """How many have been taken in, ever."""
        return sum(window.added for window in self._windows)

    def add(self, tokens: float, start: float, seconds: float, *, batch: float, now_seconds: float) -> bool:
        """Take in a prefill of ``tokens`` after ``start`` others, with ``batch`` requests in the engine.

        Whether it was believable; if not, nothing changes.
        """
        known = isfinite(now_seconds) and 0.0 <= start <= limits.POSITION_MAX and 0.0 <= batch <= 1e6
        if not (known and believable(seconds, tokens, limits.POSITION_MAX)):
            return False
        state = _state(batch)
        self._windows[state].add(now_seconds, tokens, tokens * (start + tokens / 2), seconds)
        self._busy.add(seconds, now_seconds)
        a, b, c = self._fits[state]
        foretold = a * tokens + b * tokens * (start + tokens / 2) + c
        if not abs(foretold - seconds) <= _FORETOLD * seconds:
            self._surprises[state] += 1
        return True

    def cost(self, *, batch: float = 1.0, queued_tokens: float = 0.0) -> PrefillCost:
        """The cost expected of an engine that has ``batch`` requests, and ``queued_tokens`` to compute first."""
        a, b, c = self._fit(batch)
        queued = max(0.0, queued_tokens) if isfinite(queued_tokens) else 0.0
        return PrefillCost(a, b, c, queued * (a + b * queued / 2), self._busy.price())

    def _fit(self, batch: float) -> tuple[float, ...]:
        """a, b and c."""
        state = _state(batch)
        if len(self._windows[state]) < _STATE_SAMPLES_MIN:
            state = max(range(len(self._windows)), key=lambda other: len(self._windows[other]))
        window = self._windows[state]
        if self._surprises[state] >= (1 if window.added < WINDOW else _REFIT_SAMPLES):
            self._fits[state] = tuple(_trimmed(window, self._prior).tolist())
            self._surprises[state] = 0
        return self._fits[state]


class _Busy:
    """How busy an engine is, by the last prefills that it reported; one that reports few seems idle, which is safe."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=_BUSY_SAMPLES)
        """When each ended, and its seconds."""
        self._seconds = 0.0

    def add(self, seconds: float, now_seconds: float) -> None:
        """A prefill ended."""
        if self._steps and not 0.0 <= now_seconds - self._steps[-1][0] <= _BUSY_PAUSE_SECONDS_MAX:
            self._steps.clear()  # a clock that jumped, or another time
            self._seconds = 0.0
        if len(self._steps) == _BUSY_SAMPLES:
            self._seconds -= self._steps[0][1]
        self._steps.append((now_seconds, seconds))
        self._seconds += seconds

    def price(self) -> float:
        """What a second of the engine weighs: at least 1, and 1 as long as little is known."""
        if len(self._steps) < _BUSY_SAMPLES_MIN:
            return 1.0
        passed = self._steps[-1][0] - self._steps[0][0]
        worked = self._seconds - self._steps[0][1]
        idle = 1.0 - worked / passed if passed > 0.0 else 0.0
        return min(1.0 / max(idle, 1e-9), _PRICE_MAX)


def _state(batch: float) -> int:
    return sum(batch > bound for bound in BATCH_STATES)


def _trimmed(window: Window, prior: Floats) -> Floats:
    rows, weights = window.rows(), window.weights()
    seconds = rows[:, 2]
    # Columns of the order of one, so that the ridge means the same to each, and errors relative to what was measured.
    design = np.column_stack((rows[:, 0], rows[:, 1], np.ones(len(rows)))) / seconds[:, None]
    scale = np.median(design, axis=0)
    design = np.minimum(design / scale, _ABSURD)
    towards = _share(prior * scale)
    best, best_error = towards, np.inf
    for start in (slice(0, 10), slice(None)):
        fitted = _nonnegative(design[start], weights[start], towards)
        for _ in range(_STEPS_MAX):
            errors = np.abs(np.log(np.maximum(design @ fitted, 1e-12)))
            order = np.argsort(errors)
            kept = order[: int(np.searchsorted(np.cumsum(weights[order]), _KEPT_WEIGHT * weights.sum())) + 1]
            refitted = _nonnegative(design[kept], weights[kept], towards)
            if np.allclose(refitted, fitted, rtol=1e-6):
                break
            fitted = refitted
        error = float((weights[kept] * errors[kept]).sum() / weights[kept].sum())
        if error < best_error * 0.999:
            best, best_error = fitted, error
    spread = relative_spread(1.0 / np.maximum(design @ best, 1e-12), weights, _PRIOR_SPREAD)
    near = np.abs(np.log(np.maximum(design @ best, 1e-12))) <= _INLIER_SPREADS * spread
    if weights[near].sum() >= _KEPT_WEIGHT * weights.sum():
        best = _nonnegative(design[near], weights[near], towards)  # with all that fits, which trimming left a part of
    return np.asarray(best / scale)


def _share(parts: Floats) -> Floats:
    """The proportions of a prior, which say how what cannot be told apart is divided."""
    return np.asarray(parts / max(float(parts.sum()), 1e-300))


def _nonnegative(design: Floats, weights: Floats, towards: Floats) -> Floats:
    """The weighted least squares solution of ``design · x = 1`` with no negative part, drawn a little ``towards``."""
    total = float(weights.sum())
    gram = (design * weights[:, None]).T @ design / total + _RIDGE * np.eye(3)
    right = design.T @ weights / total + _RIDGE * towards
    best, best_value = towards, np.inf
    for chosen in _COLUMNS:
        part = np.linalg.solve(gram[np.ix_(chosen, chosen)], right[chosen])
        if part.min() < 0.0:
            continue
        solution = np.zeros(3)
        solution[chosen] = part
        value = float(solution @ gram @ solution - 2 * right @ solution)
        if value < best_value - 1e-12:
            best, best_value = solution, value
        if len(chosen) == 3:
            break
    return best
