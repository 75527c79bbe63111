"""The lossy levels of a chunk: channels of each block centred, transformed, quantised and coded, and back."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .blas import one_thread
from .entropy.model import CLASSES_PER_OCTAVE, GAIN_MAX, SCALE_LOW
from .profile import FINE_CLASSES, Block, Part, Profile
from .quantise import ESCAPE_MAX, gain_factors, largest_gains, quantise, reconstruct, unit
from .segment import BlockSymbols, Offset
from .segment_reader import decode_blocks
from .segment_writer import encode_blocks

__all__ = ["decode_lossy", "encode_lossy", "gains_of", "offset_of", "scale_classes"]

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def encode_lossy(profile: Profile, channels: Sequence[FloatArray], *, first_position: int) -> list[list[bytes]]:
    """The payloads of each block, coarse to fine, of channels ``[tokens, width]`` that know no position."""
    with one_thread():
        symbols = [
            _quantise_block(block, item, first_position) for block, item in zip(profile.blocks, channels, strict=True)
        ]
    return encode_blocks(profile.blocks, symbols, profile.refinements)


def decode_lossy(
    profile: Profile,
    blocks: Sequence[int],
    payloads: Sequence[Sequence[memoryview]],
    *,
    tokens: int,
    first_position: int,
) -> list[FloatArray]:
    """Channels ``[tokens, width]`` of the blocks numbered ``blocks``, from as many levels as there are payloads."""
    chosen = [profile.blocks[index] for index in blocks]
    decoded = decode_blocks(chosen, payloads, tokens=tokens, refinements=profile.refinements)
    left = profile.refinements + 1 - len(payloads[0])
    with one_thread():
        return [_restore(block, item, left, first_position) for block, item in zip(chosen, decoded, strict=True)]


def scale_classes(coefficients: FloatArray, factors: FloatArray) -> ByteArray:
    """The fine-step scale class of each row of ``coefficients`` ``[width, tokens]``, each token times its factor."""
    scale = np.abs(coefficients * factors).mean(axis=1) if coefficients.shape[1] else np.zeros(len(coefficients))
    octaves = np.log2(np.maximum(scale, 1e-9) / float(SCALE_LOW))
    classes: ByteArray = np.clip(np.rint(CLASSES_PER_OCTAVE * octaves), 0, FINE_CLASSES - 1).astype(np.uint8)
    return classes


def offset_of(part: Part, mean: NDArray[np.float64], spread: float) -> Offset:
    """What an adaptive part is centred and scaled by, of the mean of each channel and the spread around them all."""
    scale = float(np.float32(max(spread, 1e-12)))
    means = np.rint(mean / (part.scale.astype(np.float64) * scale))
    return Offset(np.clip(means, 1 - ESCAPE_MAX, ESCAPE_MAX - 1).astype(np.int32), scale)


def gains_of(block: Block, scores: FloatArray) -> ByteArray:
    """The gain of each token whose channels times the block's ``gain_weights`` are ``scores`` ``[tokens]``."""
    gains: ByteArray = np.clip(np.rint(scores + np.float32(block.gain_bias)), 0, GAIN_MAX).astype(np.uint8)
    return gains


def _quantise_block(block: Block, channels: FloatArray, first_position: int) -> BlockSymbols:
    gains = _gains(block, channels)
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
    # The class describes a token of gain 0.
    ones = np.ones(len(channels), np.float32)
    classes = tuple(scale_classes(item, ones) for item in coefficients)
    return BlockSymbols(tuple(quantise(item, gains) for item in coefficients), gains, classes, tuple(offsets))


def _gains(block: Block, channels: FloatArray) -> ByteArray:
    if not block.gain_weights.size:
        return np.zeros(len(channels), np.uint8)
    return gains_of(block, channels @ block.gain_weights)


def _offset(part: Part, channels: FloatArray) -> Offset:
    mean = channels.mean(axis=0, dtype=np.float64)
    return offset_of(part, mean, float(np.sqrt(np.mean((channels - mean) ** 2))))


def _centred(part: Part, channels: FloatArray, first_position: int) -> FloatArray:
    centred = channels - part.mean
    if first_position == 0:
        centred[0] = channels[0] - part.origin_mean
    return centred


def _restore(block: Block, decoded: BlockSymbols, left: int, first_position: int) -> FloatArray:
    tokens = len(decoded.gains)
    channels = np.empty((tokens, block.width), np.float32)
    factors = np.float32(unit(left)) / gain_factors(decoded.gains)
    offsets = iter(decoded.offsets)
    for part, symbols in zip(block.parts, decoded.parts, strict=True):
        own = channels[:, part.start : part.stop]
        whole = reconstruct(symbols, left)
        if part.adaptive:
            offset = next(offsets)
            own[...] = part.inverse(whole, factors * np.float32(offset.scale))
            own += offset.means.astype(np.float32) * (part.scale * np.float32(offset.scale))
        else:
            own[...] = part.inverse(whole, factors)
            own[1:] += part.mean
            own[0] += part.origin_mean if first_position == 0 else part.mean
    return channels
