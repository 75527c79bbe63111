"""What calibration learns about one block of layers; :mod:`.calibration` says what and why.

A learner is fed a sample at a time and keeps sums, but for some tokens on which steps are tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidTensor
from .blas import one_thread
from .entropy.model import GAIN_MAX
from .layout import Kind, Layout
from .lossy import scale_classes
from .profile import Block, Part
from .quantise import gain_factors, quantise, reconstruct, unit
from .sensitivity import ChannelRange, Sensitivity, SensitivityLearner

__all__ = ["BlockLearner", "LearntBlock"]

FloatArray = NDArray[np.float32]
WideArray = NDArray[np.float64]

GAIN_EXPONENT = 0.8
"""Share of a predicted weight's logarithm that goes into a token's step: 1 would trust the prediction fully."""
METRIC_FLOOR = 1e-2
"""Directions that matter less than this share of the mean are taken to matter that much."""
TRIED_TOKENS_MAX = 1024
MAGNITUDE_MAX = 1e15
"""Sums of squares of what is learnt from must stay finite in float32."""
COUNTED_STEPS_MAX = 2.0**28
SPREAD_SHARE = {Kind.KEYS: 0.175, Kind.VALUES: 0.225}
"""Fine step over a tensor's spread where there are no gradients."""
_BASIS_MAX = 127


class BlockLearner:
    """Sums over the tokens of one block of ``layers``, whose transform mixes at most ``channels_max`` channels."""

    def __init__(self, layout: Layout, layers: range, channels_max: int) -> None:
        self._kinds, self._tensors = _tensors(layout, layers)
        self._parts = _parts(layout, layers, channels_max)
        self.width = self._tensors[-1].stop
        self.tokens = 0
        self._sum = np.zeros(self.width)
        self._second = [np.zeros((part.width, part.width)) for part in self._parts]
        self._origins: list[FloatArray] = []
        self._tried: list[FloatArray] = []
        self._sensitivity = SensitivityLearner(self._tensors)

    def add(self, channels: FloatArray, gradients: Sequence[FloatArray], *, skip: int, following: int) -> None:
        """Channels ``[tokens, width]`` of a sample, and gradients of its first tokens; ``skip`` tokens are left out."""
        kept = channels[skip:]
        largest = float(np.abs(channels).max(initial=0.0))
        if not largest < MAGNITUDE_MAX:
            raise InvalidTensor(f"calibration text has KV of magnitude {largest:.3g}, the limit is {MAGNITUDE_MAX:.0e}")
        self.tokens += len(kept)
        self._sum += kept.sum(axis=0, dtype=np.float64)
        with one_thread():
            for part, second in zip(self._parts, self._second, strict=True):
                own = kept[:, part.start : part.stop]
                second += own.T @ own
        if len(self._tried) < TRIED_TOKENS_MAX:
            # A few of each sample, so that the steps are tried on all kinds of text.
            self._tried.extend(row.copy() for row in kept[7::29])
        if gradients:
            tokens = len(gradients[0])
            self._sensitivity.add(channels[skip:tokens], [item[skip:] for item in gradients], following=following)

    def add_origin(self, channels: FloatArray) -> None:
        """The channels ``[width]`` of a token at position 0."""
        self._origins.append(channels.copy())

    def learn(self) -> "LearntBlock":
        """What all sums together say."""
        mean = self._sum / self.tokens
        origin = np.mean(self._origins, axis=0) if self._origins else mean
        covariances = [
            second / self.tokens - np.outer(mean[part.start : part.stop], mean[part.start : part.stop])
            for part, second in zip(self._parts, self._second, strict=True)
        ]
        sensitivity = self._sensitivity.learn()
        if sensitivity is None:
            variances = np.concatenate([np.maximum(np.diagonal(item), 0.0) for item in covariances])
            metrics = [
                np.eye(item.width)
                / (SPREAD_SHARE[kind] ** 2 * max(float(variances[item.start : item.stop].mean()), 1e-20))
                for kind, item in zip(self._kinds, self._tensors, strict=True)
            ]
        else:
            metrics = list(sensitivity.metrics)
        transforms = []
        for part, covariance in zip(self._parts, covariances, strict=True):
            transforms.append(_transform(part, covariance, _roots(metrics, self._tensors, part)))
        tried = np.stack(self._tried) if self._tried else mean.astype(np.float32)[None]
        return LearntBlock(mean, origin, tuple(transforms), tried, sensitivity)


@dataclass(frozen=True, slots=True)
class _PartTransform:
    """``analysis`` ``[width, width]`` takes centred channels to coefficients of equal worth, ``synthesis`` back."""

    channels: ChannelRange
    analysis: WideArray
    synthesis: WideArray


@dataclass(frozen=True, slots=True)
class _Root:
    """Square root and inverse square root of the metric of a part's channels at ``place``."""

    place: slice
    root: WideArray
    inverse: WideArray


@dataclass(frozen=True, eq=False)
class LearntBlock:
    """All of a block's profile but the step. What does not depend on a step is computed once for all that are tried."""

    mean: WideArray
    origin: WideArray
    transforms: tuple[_PartTransform, ...]
    tried: FloatArray
    sensitivity: Sensitivity | None

    def kl(self, step: float, left: int) -> float:
        """The KL divergence predicted for fine steps of ``step``, ``left`` refinements short of the finest level."""
        if self.sensitivity is None:
            return 0.0
        factors = gain_factors(self._gains)
        error = np.zeros(len(self.tried))
        for coefficients in self._coefficients:
            if float(np.abs(coefficients * factors).max(initial=0.0)) / step > COUNTED_STEPS_MAX:
                continue  # steps this fine leave no error to speak of
            symbols = quantise((coefficients / step).astype(np.float32), self._gains)
            coarse = np.sign(symbols) * (np.abs(symbols) >> left)
            restored = reconstruct(coarse, left) * (unit(left) * step) / factors
            error += ((coefficients - restored) ** 2).sum(axis=0)
        return 0.5 * self.sensitivity.reach * float(np.mean(np.exp(self._trial_log_weights) * error))

    def block(self, step: float) -> Block:
        """The block with fine steps of ``step``."""
        parts: list[Part] = []
        for item, coefficients in zip(self.transforms, self._coefficients, strict=True):
            own = slice(item.channels.start, item.channels.stop)
            synthesis = item.synthesis * step
            scale = np.maximum(np.abs(synthesis).max(axis=1), 1e-30) / _BASIS_MAX
            basis = np.rint(synthesis / scale[:, None]).T.astype(np.int8)
            classes = scale_classes((coefficients / step).astype(np.float32))
            mean, origin = self.mean[own].astype(np.float32), self.origin[own].astype(np.float32)
            parts.append(
                Part(item.channels.start, mean, origin, scale.astype(np.float32), np.ascontiguousarray(basis), classes)
            )
        slope, bias = self._gain_rule()
        return Block(tuple(parts), slope, bias)

    @cached_property
    def _coefficients(self) -> list[WideArray]:
        centred = self.tried - self.mean
        with one_thread():
            return [item.analysis @ centred[:, item.channels.start : item.channels.stop].T for item in self.transforms]

    def _gain_rule(self) -> tuple[FloatArray, float]:
        """A token's gain in half octaves as a linear function of its channels; tokens below the mean get none."""
        if self.sensitivity is None:
            return np.zeros(0, np.float32), 0.0
        octaves = GAIN_EXPONENT / math.log(2.0)
        slope = octaves * self.sensitivity.slope / self.sensitivity.usual.spread
        bias = -octaves * float(np.mean(self.sensitivity.log_weights(self.tried)))
        return slope.astype(np.float32), float(np.float32(bias - float(slope @ self.sensitivity.usual.centre)))

    @cached_property
    def _trial_log_weights(self) -> WideArray:
        return np.zeros(0) if self.sensitivity is None else self.sensitivity.log_weights(self.tried, trial=True)

    @cached_property
    def _gains(self) -> NDArray[np.uint8]:
        slope, bias = self._gain_rule()
        gains: NDArray[np.uint8] = np.clip(np.rint(self.tried @ slope + bias), 0, GAIN_MAX).astype(np.uint8)
        return gains


def _tensors(layout: Layout, layers: range) -> tuple[list[Kind], list[ChannelRange]]:
    """Where each layer's keys and values stand among a block's channels."""
    kinds: list[Kind] = []
    ranges: list[ChannelRange] = []
    for layer in layers:
        for kind in Kind:
            width = layout.layers[layer].width_of(kind)
            if width:
                start = ranges[-1].stop if ranges else 0
                kinds.append(kind)
                ranges.append(ChannelRange(start, start + width))
    return kinds, ranges


def _parts(layout: Layout, layers: range, channels_max: int) -> list[ChannelRange]:
    """The parts of a block: all of it if it is narrow enough, else its tensors, else groups of whole heads."""
    _, tensors = _tensors(layout, layers)
    if tensors[-1].stop <= channels_max:
        return [ChannelRange(0, tensors[-1].stop)]
    parts: list[ChannelRange] = []
    for layer in layers:
        spec = layout.layers[layer]
        for kind in Kind:
            head = spec.head_dim_of(kind)
            start = parts[-1].stop if parts else 0
            group = max(1, channels_max // head) * head if head else 1
            edges = [*range(0, spec.width_of(kind), group), spec.width_of(kind)]
            parts += [ChannelRange(start + low, start + high) for low, high in pairwise(edges)]
    return parts


def _roots(metrics: Sequence[WideArray], tensors: Sequence[ChannelRange], part: ChannelRange) -> list[_Root]:
    """The roots of the metric of a part's channels, tensor by tensor."""
    found: list[_Root] = []
    for metric, tensor in zip(metrics, tensors, strict=True):
        low, high = max(tensor.start, part.start), min(tensor.stop, part.stop)
        if low >= high:
            continue
        own = metric[low - tensor.start : high - tensor.start, low - tensor.start : high - tensor.start]
        with one_thread():
            values, vectors = np.linalg.eigh(own)
            values = np.maximum(values, METRIC_FLOOR * max(float(values.mean()), 1e-30))
            root, inverse = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
        place = slice(low - part.start, high - part.start)
        found.append(_Root(place, root, inverse))
    return found


def _transform(part: ChannelRange, covariance: WideArray, roots: Sequence[_Root]) -> _PartTransform:
    """Principal components in the metric, strongest first.

    Found in float32: what that gets wrong are components far below a step, which are not told apart and need not be.
    """
    weighted = covariance.copy()
    with one_thread():
        for item in roots:
            weighted[:, item.place] = weighted[:, item.place] @ item.root
        for item in roots:
            weighted[item.place] = item.root @ weighted[item.place]
        weighted /= max(float(np.abs(weighted).max()), 1e-300)
        _, ascending = np.linalg.eigh(weighted.astype(np.float32))
        vectors = ascending[:, ::-1].astype(np.float64)
        analysis, synthesis = np.empty_like(weighted), np.empty_like(weighted)
        for item in roots:
            analysis[:, item.place] = vectors[item.place].T @ item.root
            synthesis[item.place] = item.inverse @ vectors[item.place]
    return _PartTransform(part, analysis, synthesis)
