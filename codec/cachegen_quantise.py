"""CacheGen's quantiser: anchors at 8 bits, every other token as its difference from the anchor of its group.

Pure geometry and rounding, shared by calibration and coding; what is coded and why is told in ``cachegen``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidTensor, NonFiniteTensor

__all__ = ["ANCHOR_LIMIT", "BINS", "GROUP_TOKENS", "CacheGenSymbols", "anchors_of", "bin_of_layer", "quantise"]

GROUP_TOKENS = 10
"""Consecutive tokens that share an anchor, their first (section 5.2)."""
ANCHOR_LIMIT = 127
"""Largest magnitude of an anchor's 8-bit symbol."""
BINS = (0.5, 1.0, 1.5)
"""Bin sizes of the first, the middle and the last third of the layers at the paper's default level."""
SYMBOL_LIMIT = 2**30

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class CacheGenSymbols:
    """One layer's keys or values as integers, with the scales of the anchors.

    ``scales`` float16 ``[groups]``, ``anchors`` int32 ``[groups, width]`` within ±127, ``deltas`` int32
    ``[tokens - groups, width]`` in bins.
    """

    scales: NDArray[np.float16]
    anchors: IntArray
    deltas: IntArray

    def reconstruct(self, bin_size: float) -> FloatArray:
        """Channels ``[tokens, width]``: each anchor, and each other token as its anchor plus its bins."""
        tokens = len(self.anchors) + len(self.deltas)
        kept = _restore_anchors(self.anchors, self.scales)
        channels: FloatArray = kept[np.arange(tokens) // GROUP_TOKENS]
        channels[_is_delta(tokens)] += self.deltas.astype(np.float32) * np.float32(bin_size)
        return channels


def anchors_of(tokens: int) -> int:
    """How many anchors, and so groups, ``tokens`` consecutive tokens have; the last group may be short."""
    return -(-tokens // GROUP_TOKENS)


def bin_of_layer(layer: int, layers: int) -> float:
    """The paper's bin size of a layer: layers are parted in thirds, deeper ones are coarser."""
    return BINS[min(len(BINS) - 1, len(BINS) * layer // layers)]


def quantise(channels: FloatArray, bin_size: float) -> CacheGenSymbols:
    """Symbols of ``channels`` ``[tokens, width]``.

    Differences are from the anchor as the decoder will have it, so its rounding error is not in them. Raises
    :class:`NonFiniteTensor`, and :class:`InvalidTensor` for what no symbol or scale holds.
    """
    if not np.isfinite(channels).all():
        raise NonFiniteTensor("CacheGen cannot hold NaN or infinity; exact can")
    exact = channels[::GROUP_TOKENS]
    peak = np.abs(exact).max(axis=1, initial=0.0)
    if float(peak.max(initial=0.0)) > ANCHOR_LIMIT * float(np.finfo(np.float16).max):
        raise InvalidTensor(f"an anchor holds {peak.max():.3g}, its float16 scale reaches {127 * 65504}")
    scales = (peak / ANCHOR_LIMIT).astype(np.float16)
    divisor = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)[:, None]
    anchors = np.clip(np.rint(exact / divisor), -ANCHOR_LIMIT, ANCHOR_LIMIT).astype(np.int32)
    kept = _restore_anchors(anchors, scales)
    rest = _is_delta(len(channels))
    differences = (channels - kept[np.arange(len(channels)) // GROUP_TOKENS])[rest]
    with np.errstate(over="ignore"):  # infinity is over the limit too
        bins = np.rint(differences / np.float32(bin_size))
    largest = float(np.abs(bins).max(initial=0.0))
    if not largest < SYMBOL_LIMIT:
        raise InvalidTensor(f"a difference is {largest:.3g} bins, the limit is {SYMBOL_LIMIT}")
    return CacheGenSymbols(scales, anchors, bins.astype(np.int32))


def _restore_anchors(anchors: IntArray, scales: NDArray[np.float16]) -> FloatArray:
    restored: FloatArray = anchors.astype(np.float32) * scales.astype(np.float32)[:, None]
    return restored


def _is_delta(tokens: int) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = np.arange(tokens) % GROUP_TOKENS != 0
    return differs
