"""Which profile codes a chunk: the one given, unless the chunk is so unlike its text that the generic one is better.

A transform learnt from one kind of text never fits another as well, but it should not cost more than none at all. A
chunk is suspected where its coefficients are much larger than those of the calibration text. Then it is quantised both
ways and the sizes are compared at equal error: errors are measured in the profile's own metric, and a bit per value
buys a factor of four.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .entropy.model import CLASSES_PER_OCTAVE
from .generic import generic_profile
from .layout import Layout
from .lossy import quantise_blocks, restored_channels
from .profile import Profile, block_ranges, block_width
from .quantise import gain_factors
from .segment import BlockSymbols
from .segment_writer import encode_blocks

__all__ = ["CodedChunk", "encode_channels"]

FloatArray = NDArray[np.float32]

SUSPECT_OCTAVES = 1.0
"""Mean growth of the coefficients, over the calibration text's, from which a chunk is suspected.

Other text of the same kind grows them by 0.4 to 0.6 on SmolLM2.
"""
_BITS_PER_NEPER = 0.5 / math.log(2.0)


@dataclass(frozen=True, slots=True)
class CodedChunk:
    """The payloads of each block, coarse to fine, and the profile they were coded with."""

    profile: Profile
    payloads: list[list[bytes]]


def encode_channels(
    profile: Profile, channels: Sequence[FloatArray], *, first_position: int, levels: int
) -> CodedChunk:
    """Code the blocks' channels ``[tokens, width]``, to the ``levels`` coarsest levels."""
    symbols = quantise_blocks(profile, channels, first_position=first_position)
    own = CodedChunk(profile, encode_blocks(profile.blocks, symbols, profile.refinements, levels=levels))
    if _growth_octaves(profile, symbols) < SUSPECT_OCTAVES:
        return own
    generic = generic_profile(profile.layout)
    layout, mine, its = profile.layout, profile.block_layers, generic.block_layers
    plain = quantise_blocks(generic, _regrouped(layout, channels, mine, its), first_position=first_position)
    other = CodedChunk(generic, encode_blocks(generic.blocks, plain, generic.refinements, levels=levels))
    own_error = _error(profile, channels, symbols, _restored(profile, symbols, levels, first_position))
    plain_restored = _regrouped(layout, _restored(generic, plain, levels, first_position), its, mine)
    other_error = _error(profile, channels, symbols, plain_restored)
    values = sum(item.size for item in channels)
    worse = values * _BITS_PER_NEPER * math.log(max(other_error, 1e-30) / max(own_error, 1e-30))
    return own if _bits(own) <= _bits(other) + worse else other


def _growth_octaves(profile: Profile, symbols: Sequence[BlockSymbols]) -> float:
    """By how much the coefficients of a chunk exceed those of the calibration text, on average, in octaves."""
    grown = [
        chosen.astype(np.int32) - part.classes
        for block, item in zip(profile.blocks, symbols, strict=True)
        for part, chosen in zip(block.parts, item.classes, strict=True)
        if not part.adaptive
    ]
    return float(np.concatenate(grown).mean()) / CLASSES_PER_OCTAVE if grown else 0.0


def _bits(coded: CodedChunk) -> int:
    return 8 * sum(len(payload) for block in coded.payloads for payload in block)


def _restored(profile: Profile, symbols: Sequence[BlockSymbols], levels: int, first_position: int) -> list[FloatArray]:
    left = max(0, profile.refinements + 1 - levels)
    return [
        restored_channels(block, item, left, first_position)
        for block, item in zip(profile.blocks, symbols, strict=True)
    ]


def _error(
    profile: Profile,
    channels: Sequence[FloatArray],
    symbols: Sequence[BlockSymbols],
    restored: Sequence[FloatArray],
) -> float:
    """The squared error in the profile's metric: of coefficients, in fine steps, as finely as each token is taken."""
    total = 0.0
    for block, before, item, after in zip(profile.blocks, channels, symbols, restored, strict=True):
        factors = gain_factors(item.gains)
        for part in block.parts:
            difference = after[:, part.start : part.stop] - before[:, part.start : part.stop]
            total += float(np.square(part.forward(difference) * factors, dtype=np.float64).sum())
    return total


def _regrouped(layout: Layout, channels: Sequence[FloatArray], block_layers: int, wanted: int) -> list[FloatArray]:
    """The channels of blocks of ``wanted`` layers, of those of blocks of ``block_layers``."""
    if block_layers == wanted:
        return list(channels)
    layers: list[FloatArray] = []
    for item, block in zip(channels, block_ranges(layout, block_layers), strict=True):
        widths = [block_width(layout, range(layer, layer + 1)) for layer in block]
        layers += np.split(item, np.cumsum(widths)[:-1], axis=1)
    return [np.concatenate(layers[start : start + wanted], axis=1) for start in range(0, len(layers), wanted)]
