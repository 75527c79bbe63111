"""Learn a profile from a model's KV on some text: means, principal components, and steps.

The text should be of the kind that will be stored, but need not contain it; a few thousand tokens suffice for
SmolLM2 (192 channels). The step of a layer's keys or values is a fixed share of the root mean square of its centred
channels: ``strength_keys`` and ``strength_values``, measured on SmolLM2 for the KL that ``standard`` aims at.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidTensor
from .blas import one_thread
from .codec import KvArrays
from .container import Kind
from .layout import LayerLayout, Layout
from .profile import Profile, Transform, block_width
from .rope import rotate

__all__ = ["KvGradient", "KvSample", "calibrate"]

SINK_TOKENS = 4
DEAD_ZONE = 0.1
STRENGTH_KEYS = 0.5
STRENGTH_VALUES = 0.3


@dataclass(frozen=True, slots=True)
class KvGradient:
    """How the log-probability of tokens drawn after a sample changes with its KV.

    Per layer float32 ``[kv_heads, tokens', head_dim]`` of the first ``tokens'`` tokens of the sample, keys rotated as
    engines hold them. The tokens are drawn from the model's own distributions, so that the mean of the outer product
    of gradients is the Fisher information: the Hessian of the KL divergence from those distributions.
    """

    keys: KvArrays
    values: KvArrays


@dataclass(frozen=True, slots=True)
class KvSample:
    """The KV of some consecutive tokens, as :func:`kvloom.codec.encode` takes it, and what the model minds of it."""

    keys: KvArrays
    values: KvArrays
    first_position: int = 0
    gradients: tuple[KvGradient, ...] = ()


class _Moments:
    """Sum and second moment of the channels of one layer's keys or values, in float64."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = np.zeros(width)
        self.second = np.zeros((width, width))

    def add(self, channels: NDArray[np.float32]) -> None:
        wide = channels.astype(np.float64)
        self.count += len(wide)
        self.total += wide.sum(axis=0)
        with one_thread():
            self.second += wide.T @ wide

    def transform(self, spec: LayerLayout, kind: Kind, strength: float) -> Transform:
        mean = self.total / self.count
        covariance = self.second / self.count - np.outer(mean, mean)
        if not len(mean):
            return Transform(np.zeros(0, np.float32), np.zeros((0, 0, 0), np.float32), 1.0)
        width = block_width(spec, kind)
        bases = []
        for start in range(0, len(mean), width):
            block = covariance[start : start + width, start : start + width]
            with one_thread():
                _, vectors = np.linalg.eigh(block)
            bases.append(vectors.T[::-1])
        rms = float(np.sqrt(max(float(np.trace(covariance)) / len(mean), 1e-12)))
        # Stored as float16: round now, so that what codes is what a reader of the profile has.
        basis = np.stack(bases).astype(np.float16).astype(np.float32)
        return Transform(mean.astype(np.float32), basis, float(np.float32(strength * rms)))


def calibrate(
    samples: Iterable[KvSample],
    layout: Layout,
    *,
    strength_keys: float = STRENGTH_KEYS,
    strength_values: float = STRENGTH_VALUES,
    dead_zone: float = DEAD_ZONE,
    sink_tokens: int = SINK_TOKENS,
) -> Profile:
    """Make a profile of ``layout`` from ``samples``; the first ``sink_tokens`` positions of a context are left out.

    Raises :class:`InvalidTensor` when the samples hold no token beyond the sinks.
    """
    moments = [_Moments(spec.width_of(kind)) for spec in layout.layers for kind in Kind]
    for sample in samples:
        tokens = sample.keys[0].shape[1]
        positions = np.arange(sample.first_position, sample.first_position + tokens, dtype=np.int64)
        skip = max(0, min(tokens, sink_tokens - sample.first_position))
        for layer, spec in enumerate(layout.layers):
            for kind in Kind:
                heads = np.asarray((sample.keys, sample.values)[kind][layer], dtype=np.float32)
                rope = spec.rope_of(kind)
                if rope is not None:
                    heads = rotate(heads, rope, -positions)
                moments[2 * layer + kind].add(heads.transpose(1, 0, 2).reshape(tokens, spec.width_of(kind))[skip:])
    if moments[0].count == 0:
        raise InvalidTensor(f"calibration text has no token beyond the first {sink_tokens}, at least 1 is needed")
    strengths = (strength_keys, strength_values)
    transforms = tuple(
        item.transform(layout.layers[index // 2], Kind(index % 2), strengths[index % 2])
        for index, item in enumerate(moments)
    )
    return Profile(layout, transforms, dead_zone, sink_tokens)
