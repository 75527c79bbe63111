"""Which tokens matter how much, and in which directions: what gradients tell about one block of layers.

A token's weight is the energy of its gradient. Its logarithm is regressed on the token's own channels and on how far
the token is from what follows, which is not the token's own affair and is left out of the prediction afterwards. The
metric is the mean of ``g g^T`` with each token divided by its weight, as predicted from the first tokens seen: so the
few that outweigh all others do not decide alone which directions count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blas import one_thread

__all__ = ["ChannelRange", "Sensitivity", "SensitivityLearner", "Usual"]

FloatArray = NDArray[np.float32]
WideArray = NDArray[np.float64]

RIDGE = 3000.0
"""Penalty of the regression, in tokens: measured best of 300 to 10,000 on SmolLM2."""
HELD_BYTES = 48 * 1024 * 1024
"""Tokens are held back up to this many bytes, until the first regression."""
FEATURE_MAX = 1e6
"""Squares of features must stay finite in float32, whatever channels held that hardly changed at first."""
_DISTANCE_TERMS = 3
_DISTANCE_PENALTY = 1e-3
_LOG_BOUND = 8.0


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """Channels ``[start, stop)`` of a block: one layer's keys or values, or a part."""

    start: int
    stop: int

    @property
    def width(self) -> int:
        """Channels."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Usual:
    """What is usual of a block's channels: ``centre`` and ``spread`` ``[width]``, one spread per tensor."""

    centre: WideArray
    spread: WideArray

    @classmethod
    def of(cls, contexts: Sequence[FloatArray], tensors: Sequence[ChannelRange]) -> "Usual":
        """Of the tokens of some contexts."""
        every = np.concatenate(contexts).astype(np.float64)
        spread = np.empty(every.shape[1])
        for item in tensors:
            variance = float(every[:, item.start : item.stop].var(axis=0).mean())
            spread[item.start : item.stop] = math.sqrt(max(variance, 1e-20))
        return cls(every.mean(axis=0), spread)

    def features(self, channels: FloatArray) -> FloatArray:
        """What tokens' log-weights are regressed on: their channels, centred, in units of their spread."""
        features: FloatArray = np.clip((channels - self.centre) / self.spread, -FEATURE_MAX, FEATURE_MAX).astype(
            np.float32
        )
        return features

    def energies(self, gradients: Sequence[FloatArray]) -> WideArray:
        """Log-weights ``[tokens]``: energy of the gradients of channels in units of their spread."""
        total = np.mean([((item * self.spread) ** 2).sum(axis=1) for item in gradients], axis=0)
        logarithms: WideArray = np.log(np.maximum(total, 1e-30))
        return logarithms


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What was learnt about a block.

    ``slope`` ``[width]`` and ``trial_slope`` (which the metrics go with) predict log-weights, give or take a constant;
    ``metrics`` has ``[width, width]`` per tensor. The KL divergence of one following token that errors ``e`` of a
    context cause is about ``reach / 2`` times the mean over tokens of ``exp(trial log-weight) * e^T metric e``.
    """

    usual: Usual
    slope: WideArray
    trial_slope: WideArray
    metrics: tuple[WideArray, ...]
    reach: float

    def log_weights(self, channels: FloatArray, *, trial: bool = False) -> WideArray:
        """Predicted log-weight of each token of ``channels`` ``[tokens, width]``, bounded from below."""
        slope = self.trial_slope if trial else self.slope
        return _bounded(((channels - self.usual.centre) / self.usual.spread) @ slope)


class SensitivityLearner:
    """Sums over gradients of one block, whose ``tensors`` (keys or values of a layer) have metrics of their own."""

    def __init__(self, tensors: Sequence[ChannelRange]) -> None:
        self._tensors = tensors
        self._width = tensors[-1].stop
        self._held: list[_Context] = []
        self._held_bytes = 0
        self._usual: Usual | None = None
        self._trial = np.zeros(0)
        size = self._width + _DISTANCE_TERMS
        self._gram = np.zeros((size, size))
        self._target = np.zeros(size)
        self._fisher = tuple(np.zeros((item.width, item.width)) for item in tensors)
        self._rows = 0
        self._reach: list[float] = []

    def add(self, channels: FloatArray, gradients: Sequence[FloatArray], *, following: int) -> None:
        """Channels ``[tokens, width]`` of a context and gradients like them, summed over ``following`` tokens.

        Tokens without a gradient, which a sliding window has left behind, tell nothing and are left out.
        """
        seen = np.any([np.any(item, axis=1) for item in gradients], axis=0)
        if not seen.any():
            return
        distances = np.arange(len(channels), 0, -1.0)[seen]
        self._held.append(_Context(channels[seen], tuple(item[seen] for item in gradients), distances, following))
        self._held_bytes += int(seen.sum()) * channels[0].nbytes * (1 + len(gradients))
        if self._usual is not None or self._held_bytes >= HELD_BYTES:
            self._absorb()

    def learn(self) -> Sensitivity | None:
        """What all gradients together say; None where there were none."""
        if self._held:
            self._absorb()
        if self._usual is None:
            return None
        metrics = tuple(item / self._rows for item in self._fisher)
        final = self._solve()
        width = self._width
        return Sensitivity(self._usual, final[:width], self._trial[:width], metrics, float(np.mean(self._reach)))

    def _absorb(self) -> None:
        first = self._usual is None
        usual = Usual.of([item.channels for item in self._held], self._tensors) if self._usual is None else self._usual
        self._usual = usual
        prepared = [(usual.features(item.channels), _distance_terms(item.distances), item) for item in self._held]
        with one_thread():
            for own, distant, item in prepared:
                self._add_regression(own, distant, usual.energies(item.gradients))
            if first:
                self._trial = self._solve()
            for own, distant, item in prepared:
                self._add_fisher(own, distant, item)
        self._held.clear()

    def _add_regression(self, own: FloatArray, distant: WideArray, energies: WideArray) -> None:
        # The products of channels are most of the work, and float32 is plenty for the sum over one context.
        width = self._width
        self._gram[:width, :width] += own.T @ own
        across = own.T @ distant
        self._gram[:width, width:] += across
        self._gram[width:, :width] += across.T
        self._gram[width:, width:] += distant.T @ distant
        self._target[:width] += own.T @ energies
        self._target[width:] += distant.T @ energies

    def _add_fisher(self, features: FloatArray, terms: WideArray, item: "_Context") -> None:
        own = _bounded(features @ self._trial[: self._width])
        distant = terms @ self._trial[self._width :]
        scale = np.exp(-0.5 * (own + distant)).astype(np.float32)[:, None]
        self._reach.append(len(own) / item.following * float(np.mean(np.exp(distant))))
        for gradient in item.gradients:
            self._rows += len(gradient)
            for tensor, fisher in zip(self._tensors, self._fisher, strict=True):
                rows = gradient[:, tensor.start : tensor.stop] * scale
                fisher += rows.T @ rows

    def _solve(self) -> WideArray:
        penalty = np.full(len(self._target), RIDGE)
        penalty[self._width :] = _DISTANCE_PENALTY
        with one_thread():
            solution = np.linalg.solve(self._gram + np.diag(penalty), self._target)
        return np.asarray(solution, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Context:
    channels: FloatArray
    gradients: tuple[FloatArray, ...]
    distances: WideArray
    following: int


def _distance_terms(distances: WideArray) -> WideArray:
    """What log-weights are regressed on besides ``[tokens, 3]``: how far a token is from what follows."""
    logarithm = np.log(distances)
    return np.column_stack([logarithm, logarithm**2, np.ones(len(distances))])


def _bounded(log_weights: WideArray) -> WideArray:
    """Log-weights cut off far below their mean: an outlier of the regression must not claim all of a metric."""
    bounded: WideArray = np.maximum(log_weights, np.mean(log_weights) - _LOG_BOUND)
    return bounded
