"""Learn a profile from a model's KV on some text: the metric, the transform, the steps, and which tokens matter.

What counts is the KL divergence of the model's next-token distributions. For small errors it is half a quadratic form
whose matrix is the Fisher information of the distributions with respect to the cached numbers, and that is the mean of
``g g^T`` over gradients ``g`` of the log-probability of tokens drawn from the model (Amari 2016, section 1.3). So,
for each block of layers:

1. *Tokens.* How much a token matters varies by orders of magnitude: a few draw most of the attention (sinks; Xiao et
   al. 2024) and are found in the middle of a text, too. A ridge regression of the logarithm of ``|g|^2`` on the token's
   own channels predicts it; tokens above the average are quantised more finely.
2. *Metric.* The mean of ``g g^T``, each token divided by its predicted weight, for each layer's keys and values.
3. *Transform.* Principal components (KLT) of the block's channels in that metric: layers resemble each other, so a
   block of several layers costs far fewer bits than its layers one by one. All coefficients get the same step.
4. *Step.* So small that the quadratic form predicts ``kl_target`` for ``standard``.

Without gradients the metric is each tensor's own spread and all tokens are alike: several times the error at equal
size.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest, InvalidTensor
from .channels import Angles, KvArrays, gather_channels
from .entropy.model import REFINEMENTS_MAX
from .entropy.native import THREADS
from .layout import Layout
from .learning import BlockLearner, LearntBlock
from .level import STANDARD
from .profile import Profile, block_layers_within, block_ranges

__all__ = ["KvGradient", "KvSample", "calibrate"]

FloatArray = NDArray[np.float32]

KL_TARGET = 0.004
OPTIMISM = 7.0
"""By what the divergence measured exceeds the quadratic form's prediction: errors are neither small nor independent of
each other. Measured on SmolLM2 at ``standard``."""
BLOCK_LAYERS, BLOCK_CHANNELS = 6, 3072
"""The more layers are transformed together, the fewer bits and the more work; ADR 8 has the figures."""
FIRST_TOKENS_LEFT_OUT = 4
STEP_MIN, STEP_MAX = 1e-9, 1e6
BISECTIONS = 20
"""The step is found to within a ten-thousandth."""


@dataclass(frozen=True, slots=True)
class KvGradient:
    """Gradient of the log-probability of following tokens, drawn from the model, with respect to a sample's KV.

    Per layer ``[kv_heads, tokens, head_dim]``, keys as engines hold them; of the sample's first tokens, at most all.
    ``following`` is how many tokens' log-probabilities were summed.
    """

    keys: KvArrays
    values: KvArrays
    following: int = 1


@dataclass(frozen=True, slots=True)
class KvSample:
    """The KV of some consecutive tokens, as :func:`kvloom.codec.encode` takes it, and gradients with respect to it."""

    keys: KvArrays
    values: KvArrays
    first_position: int = 0
    gradients: tuple[KvGradient, ...] = ()


def calibrate(
    samples: Iterable[KvSample],
    layout: Layout,
    *,
    kl_target: float = KL_TARGET,
    refinements: int = REFINEMENTS_MAX,
    step_scale: float = 1.0,
    block_channels: int = BLOCK_CHANNELS,
) -> Profile:
    """Make a profile of ``layout`` from ``samples``, which are consumed once.

    ``kl_target`` is the KL divergence (nats) aimed at by ``standard``; ``step_scale`` multiplies the steps that gives.
    Layers are coded together in blocks of at most :data:`BLOCK_LAYERS`, and ``block_channels`` channels or one layer.
    With ``refinements`` below 3 there are fewer levels, of which the last has the finest step all the same. The first
    tokens of a context are left out of the statistics. Raises :class:`InvalidTensor` when the samples hold no other,
    :class:`InvalidRequest` for more refinements than there are levels.
    """
    if not 0 <= refinements <= REFINEMENTS_MAX:
        raise InvalidRequest(f"{refinements} refinements asked for, must be 0 to {REFINEMENTS_MAX}")
    block_layers = min(BLOCK_LAYERS, block_layers_within(layout, block_channels))
    blocks = block_ranges(layout, block_layers)
    learners = [BlockLearner(layout, layers, block_channels) for layers in blocks]
    # Blocks know nothing of each other, and most of their time is spent in BLAS, which lets others run.
    with ThreadPoolExecutor(min(THREADS, len(blocks))) as pool:
        for sample in samples:
            angles = Angles(sample.first_position, int(sample.keys[0].shape[1]))
            list(pool.map(partial(_feed, sample, layout, angles), blocks, learners))
        if not learners[0].tokens:
            raise InvalidTensor(
                f"calibration text has no token beyond the first {FIRST_TOKENS_LEFT_OUT}, at least 1 is needed"
            )
        learnt = list(pool.map(BlockLearner.learn, learners))
    step = step_scale * _step(learnt, kl_target, max(0, refinements - STANDARD.code))
    return Profile(layout, block_layers, refinements, tuple(item.block(step) for item in learnt))


def _feed(sample: KvSample, layout: Layout, angles: Angles, layers: range, learner: BlockLearner) -> None:
    """Show a sample to the learner of ``layers``."""
    channels = gather_channels(sample.keys, sample.values, layout, layers, angles)
    if sample.first_position == 0:
        learner.add_origin(channels[0])
    gradients = [_gradient(item, layout, layers, angles) for item in sample.gradients]
    following = sample.gradients[0].following if sample.gradients else 1
    skip = max(0, FIRST_TOKENS_LEFT_OUT - sample.first_position)
    learner.add(channels, gradients, skip=skip, following=following)


def _step(learnt: list[LearntBlock], kl_target: float, left: int) -> float:
    """The fine step at which the blocks together are predicted to cost ``kl_target`` at ``standard``."""
    without = sum(item.sensitivity is None for item in learnt)
    if 0 < without < len(learnt):
        raise InvalidTensor(
            f"{without} of {len(learnt)} blocks of layers have no gradient other than zero, must be 0 or all"
        )
    if without:
        # The metric is in fine steps already; errors grow with the square of the step.
        return math.sqrt(kl_target / KL_TARGET)
    low, high = STEP_MIN, STEP_MAX
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        if OPTIMISM * sum(item.kl(middle, left) for item in learnt) < kl_target:
            low = middle
        else:
            high = middle
    return low


def _gradient(item: KvGradient, layout: Layout, layers: range, angles: Angles) -> FloatArray:
    """A gradient with respect to the channels of ``layers``: rotation is orthogonal, so it turns as the keys do."""
    tokens = item.keys[layers[0]].shape[1]
    return gather_channels(item.keys, item.values, layout, layers, angles.first(tokens))
