"""The lossy levels of a chunk: channels of each block centred, transformed, quantised and coded, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blas import one_thread
from .channels import Room
from .entropy import native, native_lossy
from .entropy.model import CLASSES_PER_OCTAVE, GAIN_MAX, SCALE_LOW
from .profile import FINE_CLASSES, Block, Part, Profile
from .quantise import ESCAPE_MAX, gain_factors, largest_gains, reconstruct, symbols_of, unit
from .segment import BlockSymbols, DecodedBlock, Offset, joined_symbols
from .segment_reader import decode_blocks
from .segment_writer import encode_blocks

__all__ = ["decode_lossy", "encode_lossy", "restore", "scale_classes"]

_MEAN_STEPS_MAX = 2**20
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def encode_lossy(profile: Profile, channels: Sequence[FloatArray], *, first_position: int) -> list[list[bytes]]:
    """The payloads of each block, coarse to fine, of channels ``[tokens, width]`` that know no position."""
    with one_thread():
        symbols = [
            _quantise_block(block, item, first_position, profile.refinements)
            for block, item in zip(profile.blocks, channels, strict=True)
        ]
    return encode_blocks(profile.blocks, symbols, profile.refinements)


def decode_lossy(
    profile: Profile,
    blocks: Sequence[int],
    payloads: Sequence[Sequence[memoryview]],
    rooms: Sequence[Sequence[Room]],
    *,
    tokens: int,
    first_position: int,
) -> None:
    """Write the tensors of the blocks numbered ``blocks`` to ``rooms``, from as many levels as there are payloads.

    ``first_position`` is where the chunk was computed; where its keys go, the rooms' angles say.
    """
    chosen = [profile.blocks[index] for index in blocks]
    decoded = decode_blocks(chosen, payloads, tokens=tokens, refinements=profile.refinements)
    left = profile.refinements + 1 - len(payloads[0])
    if native.AVAILABLE:
        _restore_native(chosen, decoded, left, first_position, rooms)
        return
    with one_thread():
        for block, item, wanted in zip(chosen, decoded, rooms, strict=True):
            channels = restore(block, item, left, first_position)
            for room in wanted:
                room.fill(channels)


def scale_classes(coefficients: FloatArray, factors: FloatArray) -> ByteArray:
    """The fine-step scale class of each row of ``coefficients`` ``[width, tokens]``, each token times its factor."""
    scale = np.abs(coefficients * factors).mean(axis=1) if coefficients.shape[1] else np.zeros(len(coefficients))
    octaves = np.log2(np.maximum(scale, 1e-9) / float(SCALE_LOW))
    classes: ByteArray = np.clip(np.rint(CLASSES_PER_OCTAVE * octaves), 0, FINE_CLASSES - 1).astype(np.uint8)
    return classes


def _quantise_block(block: Block, channels: FloatArray, first_position: int, refinements: int) -> BlockSymbols:
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
    return BlockSymbols(tuple(symbols_of(coefficients, gains, refinements)), gains, classes, tuple(offsets))


def _gains(block: Block, channels: FloatArray) -> ByteArray:
    if not block.gain_weights.size:
        return np.zeros(len(channels), np.uint8)
    wanted = np.rint(channels @ block.gain_weights + np.float32(block.gain_bias))
    gains: ByteArray = np.clip(wanted, 0, GAIN_MAX).astype(np.uint8)
    return gains


def _offset(part: Part, channels: FloatArray) -> Offset:
    mean = channels.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(np.mean((channels - mean) ** 2)))
    # A chunk of one token has no spread: the step must still be such that a mean is a number of steps.
    least = float(np.abs(mean).max()) / (float(part.scale.min()) * _MEAN_STEPS_MAX)
    scale = float(np.float32(max(spread, least, 1e-12)))
    means = np.rint(mean / (part.scale.astype(np.float64) * scale))
    return Offset(np.clip(means, 1 - ESCAPE_MAX, ESCAPE_MAX - 1).astype(np.int32), scale)


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


def _syntheses(block: Block, decoded: DecodedBlock, left: int, first_position: int) -> list[_Synthesis]:
    factors = np.float32(unit(left)) / gain_factors(decoded.gains)
    offsets = iter(decoded.offsets)
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
    channels = np.empty((len(decoded.gains), block.width), np.float32)
    for index, (part, how) in enumerate(
        zip(block.parts, _syntheses(block, decoded, left, first_position), strict=True)
    ):
        own = channels[:, part.start : part.stop]
        own[...] = part.inverse(reconstruct(joined_symbols(decoded, index), left), how.factors)
        own[0] += how.first_mean
        own[1:] += how.mean
    return channels


def _restore_native(
    blocks: Sequence[Block],
    decoded: Sequence[DecodedBlock],
    left: int,
    first_position: int,
    rooms: Sequence[Sequence[Room]],
) -> None:
    jobs: list[native_lossy.RestoreJob] = []
    for block, item, wanted in zip(blocks, decoded, rooms, strict=True):
        parts = [
            native_lossy.PartJob(
                tuple(level[index] for level in item.levels),
                item.escapes[index],
                left,
                part.start,
                part.packed,
                how.factors,
                how.scale,
                how.mean,
                how.first_mean,
            )
            for index, (part, how) in enumerate(
                zip(block.parts, _syntheses(block, item, left, first_position), strict=True)
            )
        ]
        tensors = [room.job() for room in wanted]
        jobs.append(native_lossy.RestoreJob(parts, tensors, len(item.gains), block.width))
    native_lossy.restore(jobs)
