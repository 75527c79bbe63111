"""The segments of the lossy levels: what the quantised coefficients of a block of layers look like as bytes.

A segment, base and refinement alike: head (lanes log2 u8, table of class differences u8, of gains u8, of means u8,
escapes u32, side bytes u32); side information: active coefficients u16 per part, scale f32 per adaptive part (base
only), side stream; escapes int32 each; main stream.

* Coefficients past a part's active ones are zero at this level and cost nothing.
* The side stream (one lane, tables of symbols that nothing refines) holds, for coefficients active for the first time,
  how far their scale class is from the profile's; in the base segment also the means of adaptive parts, in fine
  steps, and the gains of the tokens unless all are zero (their table is then 255).
* Escapes are symbols too large for their table: means, then base symbols, in order.
* The main stream holds the symbols ``[active, tokens]`` of all parts. A segment without symbols has none.

All little-endian; ``docs/FORMAT.md`` says it for strangers.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .entropy.model import CLASSES, CLASSES_PER_GAIN, CLASSES_PER_OCTAVE, GAIN_MAX
from .entropy.stream import LANES_MAX

__all__ = [
    "HEAD",
    "NO_TABLE",
    "SIDE_LANES",
    "BlockSymbols",
    "Offset",
    "contexts_of",
    "overhead_bytes",
    "tables_of_classes",
]

HEAD = struct.Struct("<BBBBII")
LANE_BYTES = 4
NO_TABLE = 255
SIDE_LANES = 1

IntArray = NDArray[np.int32]
ByteArray = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Offset:
    """What an adaptive part of this chunk is centred and scaled by: ``means`` int32 ``[width]`` in fine steps."""

    means: IntArray
    scale: float


@dataclass(frozen=True, slots=True)
class BlockSymbols:
    """A block ready to code, or as decoded.

    ``parts``: symbols int32 ``[active, tokens]`` of each part, finest ones to encode, the level's when decoded;
    ``gains`` uint8 ``[tokens]``; ``classes`` uint8 ``[width]`` of each part (only to encode); ``offsets`` of the
    adaptive parts, in order.
    """

    parts: tuple[IntArray, ...]
    gains: ByteArray
    classes: tuple[ByteArray, ...] = ()
    offsets: tuple[Offset, ...] = ()


def tables_of_classes(classes: NDArray[np.integer], left: int) -> NDArray[np.uint32]:
    """The table of each fine-step class at a level that ``left`` refinements would follow."""
    return np.clip(classes.astype(np.int32) - CLASSES_PER_OCTAVE * left, 0, CLASSES - 1).astype(np.uint32)


def overhead_bytes(payload: memoryview) -> int:
    """How much of a segment is not its payload, which is escapes and the words of the main stream.

    :class:`InvalidData` where the segment is shorter than it says.
    """
    if len(payload) < HEAD.size:
        raise InvalidData(f"lossy segment has {len(payload)} bytes, its head needs {HEAD.size}")
    lanes_log2, _, _, _, escapes, side_bytes = HEAD.unpack_from(payload)
    main = len(payload) - HEAD.size - side_bytes - 4 * escapes
    states = LANE_BYTES << lanes_log2 if main > 0 and lanes_log2 < LANES_MAX else 0
    if main < states:
        raise InvalidData(f"lossy segment has {len(payload)} bytes, fewer than it declares")
    return HEAD.size + int(side_bytes) + states


def contexts_of(gains: ByteArray, rows: int, parents: NDArray[np.bool_] | None) -> tuple[NDArray[np.uint8] | None, int]:
    """What is added to a symbol's table, and how many values that takes: its token's gain, and its parent."""
    shifts = (CLASSES_PER_GAIN * gains).astype(np.uint8)
    count = CLASSES_PER_GAIN * GAIN_MAX + 1
    if parents is not None:
        return np.tile(2 * shifts, rows) + parents.view(np.uint8), 2 * count
    return (np.tile(shifts, rows), count) if gains.any() else (None, 1)
