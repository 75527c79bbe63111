"""KVQuant: keys un-rotated and per channel, values per token, non-uniform codebooks, 1 % outliers kept apart.

Hooper et al., NeurIPS 2024, "nuq-1%" with its first token in float16. Learnt beforehand, per layer: a codebook of
2**bits points for numbers scaled to -1…1, and each key channel's range without its outliers. Values are scaled per
token, so each token has an offset and a range. The codebook is k-means of the numbers; the paper weighs them by Fisher
information, which needs the model's gradients: left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kvloom.codec import KvSample, LayerLayout, Layout
from kvloom.codec.rope import rotate

from .base import (
    HALF_BITS,
    OUTLIER_BITS,
    BoolArray,
    Coded,
    FloatArray,
    LayerQuantiser,
    channels_of,
    half,
    heads_of,
    tails,
)

OUTLIERS = 0.01
FIRST_TOKENS = 1
_ROUNDS = 30


@dataclass(frozen=True)
class LayerTables:
    """What calibration learnt of one layer: codebooks ``[2**bits]``, and each key channel's range ``[channels]``."""

    keys: FloatArray
    values: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class KvQuant(LayerQuantiser):
    """``bits`` per number that is no outlier."""

    name: ClassVar[str] = "kvquant"
    bits: int
    layout: Layout
    tables: tuple[LayerTables, ...]

    @classmethod
    def calibrate(cls, samples: Sequence[KvSample], layout: Layout, bits: int) -> "KvQuant":
        """Learn codebooks and ranges from KV of other text."""
        tables = []
        for layer, spec in enumerate(layout.layers):
            keys = np.concatenate(
                [channels_of(_unrotated(item.keys[layer], spec, item.first_position, undo=True)) for item in samples]
            )
            low, high = (
                half(np.quantile(keys, q, axis=0).astype(np.float32)) for q in (OUTLIERS / 2, 1 - OUTLIERS / 2)
            )
            values = np.concatenate([channels_of(np.asarray(item.values[layer], np.float32)) for item in samples])
            inside = (keys >= low) & (keys <= high)
            scaled_keys = ((keys - half((low + high) / 2)) / half(_width(low, high)))[inside].astype(np.float32)
            offset, width, outlier = _token_ranges(values)
            scaled_values = ((values - offset) / width)[~outlier].astype(np.float32)
            tables.append(LayerTables(_codebook(scaled_keys, bits), _codebook(scaled_values, bits), low, high))
        return cls(bits, layout, tuple(tables))

    @property
    def level(self) -> str:
        """The setting."""
        return f"nuq{self.bits}-1%"

    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys."""
        channels = channels_of(_unrotated(keys, spec, first_position, undo=True))
        tables = self.tables[layer]
        outlier = (channels < tables.low) | (channels > tables.high)
        middle = half((tables.low + tables.high) / 2)
        width = half(_width(tables.low, tables.high))
        restored, bits, side = self._code(channels, middle, width, outlier, tables.keys, first_position)
        return Coded(_unrotated(heads_of(restored, keys), spec, first_position, undo=False), bits, side)

    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values."""
        channels = channels_of(values)
        offset, width, outlier = _token_ranges(channels)
        book = self.tables[layer].values
        restored, bits, side = self._code(channels, offset, width, outlier, book, first_position)
        return Coded(heads_of(restored, values), bits, side + 2 * HALF_BITS * len(channels))

    def _code(
        self,
        channels: FloatArray,
        middle: FloatArray,
        width: FloatArray,
        outlier: BoolArray,
        book: FloatArray,
        first_position: int,
    ) -> tuple[FloatArray, int, int]:
        scaled = (channels - middle) / width
        nearest = np.searchsorted((book[1:] + book[:-1]) / 2, scaled)
        kept = max(0, min(len(channels), FIRST_TOKENS - first_position))
        restored = np.where(outlier, half(channels), book[nearest] * width + middle)
        restored[:kept] = half(channels[:kept])
        payload = HALF_BITS * channels[:kept].size + self.bits * channels[kept:].size
        return restored, payload, OUTLIER_BITS * int(outlier[kept:].sum())


def _unrotated(heads: NDArray[np.generic], spec: LayerLayout, first_position: int, *, undo: bool) -> FloatArray:
    """Keys with their rotation undone, or done again."""
    plain = np.asarray(heads, dtype=np.float32)
    if spec.rope is None:
        return plain
    positions = np.arange(first_position, first_position + plain.shape[1], dtype=np.int64)
    return rotate(plain, spec.rope, -positions if undo else positions)


def _token_ranges(channels: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Each token's middle and half width without its outliers ``[tokens, 1]``, and where the outliers are."""
    outlier = tails(channels, OUTLIERS)
    low = np.where(outlier, np.inf, channels).min(axis=1, keepdims=True)
    high = np.where(outlier, -np.inf, channels).max(axis=1, keepdims=True)
    return half((low + high) / 2), half(_width(low, high)), outlier


def _width(low: FloatArray, high: FloatArray) -> FloatArray:
    width: FloatArray = np.maximum((high - low) / 2, 1e-6).astype(np.float32)
    return width


def _codebook(numbers: FloatArray, bits: int) -> FloatArray:
    """k-means of ``numbers`` in one dimension, started at their quantiles; ascending."""
    ordered = np.sort(numbers)[:: max(1, len(numbers) // 50_000)].astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    book = np.quantile(ordered, (np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(ordered, (book[1:] + book[:-1]) / 2), [len(ordered)]])
        counts = np.diff(edges)
        book = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), book)
    found: FloatArray = book.astype(np.float32)
    return found
