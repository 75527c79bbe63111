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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .entropy.model import (
    CLASSES,
    CLASSES_PER_GAIN,
    CLASSES_PER_OCTAVE,
    ESCAPE,
    GAIN_MAX,
    REFINEMENTS_MAX,
    SYMBOL_ZERO,
)
from .entropy.stream import LANES_MAX
from .quantise import Symbols, join

__all__ = [
    "HEAD",
    "NO_TABLE",
    "SIDE_LANES",
    "BlockSymbols",
    "DecodedBlock",
    "Offset",
    "contexts_of",
    "joined_symbols",
    "overhead_bytes",
    "refinement_tables_of_classes",
    "tables_of_classes",
    "with_new_rows",
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
    """A block ready to code.

    ``parts``: the symbols of each part; ``gains`` uint8 ``[tokens]``; ``classes`` uint8 ``[width]`` of each part;
    ``offsets`` of the adaptive parts, in order.
    """

    parts: tuple[Symbols, ...]
    gains: ByteArray
    classes: tuple[ByteArray, ...]
    offsets: tuple[Offset, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """A block as decoded: ``levels`` holds the symbols uint8 ``[rows, tokens]`` of each, coarse to fine.

    The rows are the ``active`` ones of each part, one part after the other. ``escapes`` int32: what the base symbols
    :data:`ESCAPE` stand for, in order; ``escape_counts``: how many of them are each part's.
    """

    levels: tuple[ByteArray, ...]
    active: tuple[tuple[int, ...], ...]
    escapes: IntArray
    escape_counts: tuple[int, ...]
    gains: ByteArray
    offsets: tuple[Offset, ...]


def joined_symbols(block: DecodedBlock, part: int) -> IntArray:
    """The symbols int32 ``[active, tokens]`` of a part at the finest level decoded."""
    coded, *finer = (
        level[sum(rows[:part]) : sum(rows[: part + 1])] for level, rows in zip(block.levels, block.active, strict=True)
    )
    symbols = coded.astype(np.int32) - SYMBOL_ZERO
    start = sum(block.escape_counts[:part])
    symbols[coded == ESCAPE] = block.escapes[start : start + block.escape_counts[part]]
    for refinement in finer:
        grown = np.zeros(refinement.shape, np.int32)
        grown[: len(symbols)] = symbols
        symbols = join(grown, refinement)
    return symbols


def tables_of_classes(classes: ByteArray, left: int) -> NDArray[np.uint32]:
    """The table of each fine-step class at a level that ``left`` refinements would follow."""
    return _table_of_class(left).take(classes)


def refinement_tables_of_classes(classes: ByteArray, left: int) -> NDArray[np.uint32]:
    """The same of a refinement: the table of parents that are zero."""
    return _refinement_table_of_class(left).take(classes)


@lru_cache(maxsize=REFINEMENTS_MAX + 1)
def _table_of_class(left: int) -> NDArray[np.uint32]:
    classes = np.arange(np.iinfo(np.uint8).max + 1) - CLASSES_PER_OCTAVE * left
    return np.clip(classes, 0, CLASSES - 1).astype(np.uint32)


@lru_cache(maxsize=REFINEMENTS_MAX + 1)
def _refinement_table_of_class(left: int) -> NDArray[np.uint32]:
    return 2 * _table_of_class(left)


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


def contexts_of(gains: ByteArray, rows: int, parents: ByteArray | None) -> tuple[ByteArray | None, int]:
    """What is added to the table of symbols ``[rows, tokens]``, and how many values that takes.

    A token's gain, and in a refinement ``parents`` ``[rows * tokens]``: 1 where the level before has no zero.
    """
    count = CLASSES_PER_GAIN * GAIN_MAX + 1
    some = bool(gains.any())
    shifts = np.uint8(CLASSES_PER_GAIN) * gains
    if parents is None:
        return (np.tile(shifts, rows), count) if some else (None, 1)
    if not some:
        return parents, 2 * count
    return (parents.reshape(rows, len(gains)) + np.uint8(2) * shifts).reshape(-1), 2 * count


def with_new_rows(flags: ByteArray, before: Sequence[int], active: Sequence[int]) -> ByteArray:
    """``flags`` ``[rows, tokens]`` of the parts' first ``before`` rows, with zeros for those that become ``active``."""
    if list(before) == list(active):
        return flags
    grown = np.zeros((sum(active), flags.shape[1]), np.uint8)
    starts, ends = np.cumsum([0, *active]), np.cumsum([0, *before])
    for new, old, rows in zip(starts, ends, before, strict=False):
        grown[new : new + rows] = flags[old : old + rows]
    return grown
