"""The lossy levels of a chunk: channels of each block centred, transformed, quantised and coded, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .blas import one_thread
from .channels import Angles, KvArrays, rooms_of
from .entropy import native, native_segments
from .entropy.model import CLASSES_PER_OCTAVE, GAIN_MAX, SCALE_LOW
from .layout import Kind, Layout
from .profile import FINE_CLASSES, Block, Part, Profile, block_range
from .quantise import ESCAPE_MAX, gain_factors, largest_gains, quantise, reconstruct, symbols_of, unit
from .segment import BlockSymbols, DecodedBlock, Offset, joined_symbols
from .segment_reader import decode_blocks

__all__ = [
    "decode_lossy",
    "drained_gains",
    "offset_of",
    "predicted_gains",
    "quantise_blocks",
    "restore",
    "restored_channels",
    "scale_classes",
    "value_norms",
]

DRAINED_SHARE = 0.6
"""Values below this share of the usual norm are drained; how far below decides how finely a token is quantised."""
DRAINED_GAIN = 4.0

_SPREAD_SHARE_MIN = 1e-6
"""The least spread of an adaptive part over its largest number."""
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def quantise_blocks(profile: Profile, channels: Sequence[FloatArray], *, first_position: int) -> list[BlockSymbols]:
    """The symbols of each block's channels ``[tokens, width]`` that know no position."""
    with one_thread():
        return [_quantise_block(profile, index, item, first_position) for index, item in enumerate(channels)]


def restored_channels(block: Block, symbols: BlockSymbols, left: int, first_position: int) -> FloatArray:
    """What a reader who does not read the ``left`` finest levels would make of a block's symbols."""
    fine = [quantise(part.coefficients, part.gains) for part in symbols.parts]
    coarse = [np.sign(part) * (np.abs(part) >> left) for part in fine]
    return _synthesised(block, coarse, _syntheses(block, symbols.gains, symbols.offsets, left, first_position), left)


def decode_lossy(
    profile: Profile,
    blocks: range,
    payloads: Sequence[Sequence[memoryview]],
    keys: KvArrays,
    values: KvArrays,
    angles: Angles,
    *,
    tokens: int,
    first_position: int,
) -> None:
    """Write ``keys`` and ``values``, from the first of the blocks on, from as many levels as there are payloads.

    ``blocks`` are numbered in the profile, and the arrays of all their layers, as :func:`.native_lossy.writable` gives
    them. ``first_position`` is where the chunk was computed; where its keys go,
    ``angles`` says.
    """
    left = profile.refinements + 1 - len(payloads[0])
    first_layer = blocks.start * profile.block_layers
    if native.AVAILABLE:
        tensors = profile.rooms.fill(blocks, keys, values, first_layer, angles)
        _decode_native(profile, blocks, payloads, tensors, tokens, first_position)
        return
    chosen = [profile.blocks[index] for index in blocks]
    decoded = decode_blocks(chosen, payloads, tokens=tokens, refinements=profile.refinements)
    # Damage that its checksum hides may ask for numbers that no float32 holds.
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        for index, found in zip(blocks, decoded, strict=True):
            channels = restore(profile.blocks[index], found, left, first_position)
            layers = block_range(profile.layout, index * profile.block_layers, profile.block_layers)
            outputs = {
                (layer, kind): arrays[layer - first_layer]
                for layer in layers
                for kind, arrays in zip(Kind, (keys, values), strict=True)
            }
            for room in rooms_of(profile.layout, layers, angles, outputs):
                room.fill(channels)


def _decode_native(
    profile: Profile,
    blocks: Sequence[int],
    payloads: Sequence[Sequence[memoryview]],
    tensors: Sequence[NDArray[np.void]],
    tokens: int,
    first_position: int,
) -> None:
    levels, refinements = len(payloads[0]), profile.refinements
    factors = np.float32(unit(refinements + 1 - levels)) / gain_factors(np.arange(GAIN_MAX + 1, dtype=np.uint8))
    chunk = native_segments.Chunk(levels, refinements, tokens, first_position == 0, factors)
    jobs = [
        native_segments.BlockJob(profile.blocks[index].table, item, wanted)
        for index, item, wanted in zip(blocks, payloads, tensors, strict=True)
    ]
    for place in native_segments.decode(chunk, jobs):
        # What is wrong with it, the reader in NumPy can say.
        index = blocks[place]
        decode_blocks([profile.blocks[index]], [payloads[place]], tokens=tokens, refinements=refinements)
        raise InvalidData(f"lossy block {index} does not fit its description")


def scale_classes(coefficients: FloatArray) -> ByteArray:
    """The fine-step scale class of each row of ``coefficients`` ``[width, tokens]``, as of tokens of gain 0."""
    scale = np.abs(coefficients).mean(axis=1) if coefficients.shape[1] else np.zeros(len(coefficients))
    octaves = np.log2(np.maximum(scale, 1e-9) / float(SCALE_LOW))
    classes: ByteArray = np.clip(np.rint(CLASSES_PER_OCTAVE * octaves), 0, FINE_CLASSES - 1).astype(np.uint8)
    return classes


def _quantise_block(profile: Profile, index: int, channels: FloatArray, first_position: int) -> BlockSymbols:
    block = profile.blocks[index]
    if block.gain_weights.size:
        gains = predicted_gains(block, channels @ block.gain_weights)
    else:
        layers = block_range(profile.layout, index * profile.block_layers, profile.block_layers)
        gains = drained_gains(value_norms(profile.layout, layers, channels), len(channels))
    coefficients: list[FloatArray] = []
    offsets: list[Offset] = []
    for part in block.parts:
        own = channels[:, part.start : part.stop]
        if part.adaptive:
            offset = _offset(part, own)
            offsets.append(offset)
            scale = part.scale * np.float32(offset.scale)
            coefficients.append(np.ascontiguousarray((own / scale - offset.means).T))
        else:
            coefficients.append(part.forward(_centred(part, own, first_position)))
    gains = np.minimum(gains, np.min([largest_gains(item) for item in coefficients], axis=0))
    classes = tuple(scale_classes(item) for item in coefficients)
    return BlockSymbols(tuple(symbols_of(coefficients, gains, profile.refinements)), gains, classes, tuple(offsets))


def predicted_gains(block: Block, scores: FloatArray) -> ByteArray:
    """The gain of each token whose channels times the block's ``gain_weights`` are ``scores`` ``[tokens]``."""
    gains: ByteArray = np.clip(np.rint(scores + np.float32(block.gain_bias)), 0, GAIN_MAX).astype(np.uint8)
    return gains


def value_norms(layout: Layout, layers: range, channels: Any) -> list[Any]:
    """The norm of each token's values ``[tokens]`` in each of a block's layers that has any, of channels anywhere."""
    norms: list[Any] = []
    at = 0
    for layer in layers:
        spec = layout.layers[layer]
        start, at = at + spec.key_width, at + spec.key_width + spec.value_width
        if spec.value_width:
            norms.append((channels[:, start:at] ** 2).sum(axis=1) ** 0.5)
    return norms


def drained_gains(norms: Sequence[FloatArray], tokens: int) -> ByteArray:
    """Gains of the tokens of a block of which nothing has been learnt: those with drained values are sinks.

    Tokens that draw attention without having anything to say have values of far smaller norm than others (Guo et al.
    2024, "Attention score is not all you need for token importance"; on SmolLM2 such tokens have a sixth of the usual
    norm and up to 99 % of the sensitivity of their layers). The norm is compared with the median of the chunk.
    """
    lowest = np.ones(tokens)
    for layer in norms:
        usual = float(np.median(layer))
        if 0 < usual < math.inf:  # beyond the squares that float32 holds nothing is known to be drained
            lowest = np.minimum(lowest, np.maximum(layer / usual, 1e-6))
    wanted = np.rint(DRAINED_GAIN * np.log2(DRAINED_SHARE / lowest))
    gains: ByteArray = np.clip(wanted, 0, GAIN_MAX).astype(np.uint8)
    return gains


def offset_of(part: Part, mean: NDArray[np.float64], spread: float, largest: float) -> Offset:
    """What an adaptive part is centred and scaled by.

    Of the mean of each channel, the spread around them all, and the largest magnitude.
    """
    # Where channels hardly change, float32 has nothing finer than this to say of them, and means must fit an escape.
    scale = float(np.float32(max(spread, _SPREAD_SHARE_MIN * largest, 1e-12)))
    means = np.rint(mean / (part.scale.astype(np.float64) * scale))
    return Offset(np.clip(means, 1 - ESCAPE_MAX, ESCAPE_MAX - 1).astype(np.int32), scale)


def _offset(part: Part, channels: FloatArray) -> Offset:
    mean = channels.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(np.mean((channels - mean) ** 2)))
    return offset_of(part, mean, spread, float(np.abs(channels).max()))


def _centred(part: Part, channels: FloatArray, first_position: int) -> FloatArray:
    centred = channels - part.mean
    if first_position == 0:
        centred[0] = channels[0] - part.origin_mean
    return centred


@dataclass(frozen=True, slots=True)
class _Synthesis:
    """What turns a part's symbols into channels: factors ``[tokens]``, scale, means and that of the first token."""

    factors: FloatArray
    scale: FloatArray
    mean: FloatArray
    first_mean: FloatArray


def _syntheses(
    block: Block, gains: ByteArray, chunk_offsets: Sequence[Offset], left: int, first_position: int
) -> list[_Synthesis]:
    factors = np.float32(unit(left)) / gain_factors(gains)
    offsets = iter(chunk_offsets)
    found: list[_Synthesis] = []
    for part in block.parts:
        if part.adaptive:
            offset = next(offsets)
            mean = offset.means.astype(np.float32) * (part.scale * np.float32(offset.scale))
            found.append(_Synthesis(factors * np.float32(offset.scale), part.scale, mean, mean))
        else:
            first = part.origin_mean if first_position == 0 else part.mean
            found.append(_Synthesis(factors, part.scale, part.mean, first))
    return found


def restore(block: Block, decoded: DecodedBlock, left: int, first_position: int) -> FloatArray:
    """The channels ``[tokens, width]`` of a block of which ``left`` levels were not read."""
    symbols = [joined_symbols(decoded, index) for index in range(len(block.parts))]
    return _synthesised(block, symbols, _syntheses(block, decoded.gains, decoded.offsets, left, first_position), left)


def _synthesised(
    block: Block, symbols: Sequence[NDArray[np.int32]], hows: Sequence[_Synthesis], left: int
) -> FloatArray:
    """The channels ``[tokens, width]`` that a level's symbols of each part stand for."""
    channels = np.empty((len(hows[0].factors), block.width), np.float32)
    for part, whole, how in zip(block.parts, symbols, hows, strict=True):
        own = channels[:, part.start : part.stop]
        own[...] = part.inverse(reconstruct(whole, left), how.factors)
        own[0] += how.first_mean
        own[1:] += how.mean
    return channels
