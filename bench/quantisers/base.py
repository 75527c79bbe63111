"""What every comparison quantiser is, and the arithmetic that several of them share.

A quantiser takes one context's (or chunk's) KV through its representation and back and says how many bits that takes.
Counted are all bits that a reader needs and that depend on the KV; scales, offsets and norms are float16. What a method
learns beforehand, once per model, is not counted, as it is not for kvloom.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kvloom.codec import LayerLayout, Layout

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

HALF_BITS = 16
OUTLIER_BITS = 32
"""An outlier kept beside the matrix: float16 and where it stands, 16 bits."""


@dataclass(frozen=True, slots=True)
class Coded:
    """One layer's keys or values ``[kv_heads, tokens, head_dim]`` after the round trip, and what they took."""

    restored: FloatArray
    payload_bits: int
    side_bits: int


@dataclass(frozen=True, slots=True)
class Roundtrip:
    """Keys and values per layer after the round trip; ``side_bits`` are scales, indices and the like."""

    keys: list[FloatArray]
    values: list[FloatArray]
    payload_bits: int
    side_bits: int

    @property
    def bits_per_value(self) -> float:
        """All bits, over the numbers in the KV."""
        return (self.payload_bits + self.side_bits) / sum(item.size for item in (*self.keys, *self.values))


class Quantiser(ABC):
    """A method at one setting; implementations are frozen dataclasses."""

    name: ClassVar[str]
    """The method, in lower case."""

    @property
    @abstractmethod
    def level(self) -> str:
        """The setting."""

    @abstractmethod
    def roundtrip(
        self, keys: Sequence[FloatArray], values: Sequence[FloatArray], layout: Layout, first_position: int
    ) -> Roundtrip:
        """Code and decode all layers, float32 ``[kv_heads, tokens, head_dim]`` each, keys rotated."""


class LayerQuantiser(Quantiser):
    """A method that codes each layer's keys and values by themselves."""

    @abstractmethod
    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys ``[kv_heads, tokens, head_dim]``, rotated."""

    @abstractmethod
    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values; the keys are there for methods that judge tokens by them."""

    def roundtrip(
        self, keys: Sequence[FloatArray], values: Sequence[FloatArray], layout: Layout, first_position: int
    ) -> Roundtrip:
        """:meth:`code_keys` and :meth:`code_values` of every layer."""
        coded_keys = [
            self.code_keys(item, layer, layout.layers[layer], first_position) for layer, item in enumerate(keys)
        ]
        coded_values = [
            self.code_values(key, value, layer, first_position)
            for layer, (key, value) in enumerate(zip(keys, values, strict=True))
        ]
        both = (*coded_keys, *coded_values)
        return Roundtrip(
            [item.restored for item in coded_keys],
            [item.restored for item in coded_values],
            sum(item.payload_bits for item in both),
            sum(item.side_bits for item in both),
        )


def half(numbers: NDArray[np.floating[Any]]) -> FloatArray:
    """Rounded to float16, as stored scales are."""
    rounded: FloatArray = np.clip(numbers, -65504, 65504).astype(np.float16).astype(np.float32)
    return rounded


def channels_of(heads: FloatArray) -> FloatArray:
    """``[kv_heads, tokens, head_dim]`` as ``[tokens, channels]``."""
    return heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)


def heads_of(channels: FloatArray, like: FloatArray) -> FloatArray:
    """Undo :func:`channels_of` for a tensor of the shape of ``like``."""
    kv_heads, tokens, head_dim = like.shape
    return channels.reshape(tokens, kv_heads, head_dim).transpose(1, 0, 2)


def affine(groups: FloatArray, bits: int) -> Coded:
    """Round each group (the last axis) to ``2**bits`` even steps from its least to its greatest value."""
    least = half(groups.min(axis=-1, keepdims=True))
    step = half((groups.max(axis=-1, keepdims=True) - least) / (2**bits - 1))
    symbols = np.rint((groups - least) / np.where(step > 0, step, 1))
    restored = np.clip(symbols, 0, 2**bits - 1) * step + least
    return Coded(restored, groups.size * bits, 2 * HALF_BITS * least.size)


def affine_over_tokens(heads: FloatArray, bits: int, group_tokens: int) -> Coded:
    """:func:`affine` per channel, in groups of consecutive tokens; tokens must be whole groups."""
    kv_heads, tokens, head_dim = heads.shape
    groups = heads.reshape(kv_heads, tokens // group_tokens, group_tokens, head_dim).swapaxes(2, 3)
    coded = affine(groups, bits)
    return Coded(coded.restored.swapaxes(2, 3).reshape(heads.shape), coded.payload_bits, coded.side_bits)


def affine_over_channels(heads: FloatArray, bits: int, group_channels: int) -> Coded:
    """:func:`affine` per token, in groups of a head's consecutive channels (a whole head where they do not fit)."""
    head_dim = heads.shape[2]
    width = group_channels if head_dim % group_channels == 0 else head_dim
    coded = affine(heads.reshape(*heads.shape[:2], head_dim // width, width), bits)
    return Coded(coded.restored.reshape(heads.shape), coded.payload_bits, coded.side_bits)


def tails(vectors: FloatArray, share: float) -> BoolArray:
    """Where each vector (the last axis) has its ``share / 2`` greatest and ``share / 2`` least values."""
    low, high = np.quantile(vectors, [share / 2, 1 - share / 2], axis=-1, keepdims=True)
    outlier: BoolArray = (vectors <= low) | (vectors >= high)
    return outlier


def important_tokens(keys: FloatArray, share: float) -> BoolArray:
    """The ``share`` of a layer's tokens that will be attended to most, guessed from the keys alone ``[tokens]``.

    A stand-in: the methods that part tokens so look at attention scores, which a store of KV does not have. Keys of
    small norm draw the most attention (Devoto et al. 2024, "A Simple and Effective L2 Norm-Based Strategy"); on SmolLM2
    this guess gave ZipCache a third of the KL of a random choice, and less than the latest or the first tokens.
    """
    norms = np.linalg.norm(keys, axis=2).mean(axis=0)
    chosen = np.zeros(len(norms), dtype=np.bool_)
    chosen[np.argsort(norms, kind="stable")[: round(share * len(norms))]] = True
    return chosen
