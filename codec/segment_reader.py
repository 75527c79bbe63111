"""Reads the segments of the lossy levels, trusting nothing; :mod:`.segment` says what is in them."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .entropy import DecodeJob, Runs, decode_streams
from .entropy.model import CLASSES, CLASSES_PER_GAIN, ESCAPE, GAIN_MAX, SYMBOL_ZERO, base_tables, refinement_tables
from .entropy.stream import LANES_MAX
from .profile import FINE_CLASSES, Block
from .quantise import ESCAPE_MAX
from .segment import (
    HEAD,
    NO_TABLE,
    SIDE_LANES,
    DecodedBlock,
    Offset,
    refinement_tables_of_classes,
    tables_of_classes,
    with_new_rows,
)

__all__ = ["BlockStreams", "SegmentStream", "decode_blocks", "read_streams"]

IntArray = NDArray[np.int32]
ByteArray = NDArray[np.uint8]
_NO_ESCAPES = np.zeros(0, np.int32)


def decode_blocks(
    blocks: Sequence[Block], payloads: Sequence[Sequence[memoryview]], *, tokens: int, refinements: int
) -> list[DecodedBlock]:
    """Undo :func:`encode_blocks` for as many levels as each block has payloads; :class:`InvalidData` for any damage."""
    states = [_State(block, _parse_block(block, item, tokens)) for block, item in zip(blocks, payloads, strict=True)]
    _read_side(states, tokens)
    for level in range(len(payloads[0]) if payloads else 0):
        jobs = [_main_job(state, level, tokens, refinements - level) for state in states]
        for state, symbols in zip(states, _streams(jobs), strict=True):
            state.levels.append(symbols.reshape(-1, tokens))
            if level == 0 and len(state.places) and len(state.opened):
                # An encoder makes none of zero.
                state.opened[state.places] = state.segments[0].escapes[state.mean_escapes :] != 0
    return [_finished(state, tokens) for state in states]


class _State:
    """What has been read of a block so far: its segments' heads, then what the side streams tell, then symbols."""

    def __init__(self, block: Block, segments: list["_Parsed"]) -> None:
        self.block = block
        self.segments = segments
        self.means_expected = sum(part.width for part in block.parts if part.adaptive)
        self.classes: list[ByteArray] = []
        """Of each level, the scale classes of all parts' active coefficients."""
        self.means = np.zeros(0, np.int32)
        self.mean_escapes = 0
        self.gains = np.zeros(0, np.uint8)
        self.levels: list[ByteArray] = []
        self.places = np.zeros(0, np.uint32)
        """Where the base symbols are that escape."""
        self.shifts: ByteArray | None = None
        """By how many classes the gain of each token ``[tokens]`` shifts its tables; None where no token has any."""
        self.opened: ByteArray = np.zeros(0, np.uint8)
        """Which symbols of the last level are not zero ``[active * tokens]``."""


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A segment's parts, lengths checked against each other."""

    lanes: int
    tables: tuple[int, int, int]
    active: tuple[int, ...]
    scales: tuple[float, ...]
    side: memoryview
    escapes: IntArray
    stream: memoryview


def _parse_block(block: Block, payloads: Sequence[memoryview], tokens: int) -> list[_Parsed]:
    segments: list[_Parsed] = []
    active: tuple[int, ...] = (0,) * len(block.parts)
    for payload in payloads:
        segments.append(_parse(payload, block, active, tokens, base=not segments))
        active = segments[-1].active
    return segments


def _parse(payload: memoryview, block: Block, known: Sequence[int], tokens: int, *, base: bool) -> _Parsed:
    adaptive = sum(part.adaptive for part in block.parts) if base else 0
    fixed = HEAD.size + 2 * len(block.parts) + 4 * adaptive
    if len(payload) < fixed:
        raise InvalidData(f"lossy segment has {len(payload)} bytes, its head needs {fixed}")
    lanes_log2, differences, gains, means, escape_count, side_bytes = HEAD.unpack_from(payload)
    if lanes_log2 > 31 or 1 << lanes_log2 > LANES_MAX:
        raise InvalidData(f"lossy segment declares 2^{lanes_log2} lanes, the limit is {LANES_MAX}")
    for table in (differences, gains, means):
        if table >= CLASSES and table != NO_TABLE:
            raise InvalidData(f"lossy segment declares side table {table}, there are {CLASSES}")
    active = struct.unpack_from(f"<{len(block.parts)}H", payload, HEAD.size)
    for part, old, new in zip(block.parts, known, active, strict=True):
        if not old <= new <= len(part.mean):
            raise InvalidData(f"lossy segment has {new} active coefficients of {part.width}, {old} were active before")
    numbers = sum(active) * tokens + (sum(part.width for part in block.parts if part.adaptive) if base else 0)
    side_end = HEAD.size + side_bytes
    if escape_count > numbers or (escape_count and not base):
        raise InvalidData(f"lossy segment declares {escape_count} escapes among {numbers} numbers")
    if side_end < fixed or side_end + 4 * escape_count > len(payload):
        raise InvalidData(
            f"lossy segment of {len(payload)} bytes declares {side_bytes} side bytes and {escape_count} escapes"
        )
    scales = struct.unpack_from(f"<{adaptive}f", payload, fixed - 4 * adaptive)
    if not all(0 < scale < math.inf for scale in scales):
        raise InvalidData("lossy segment has a scale that is not a positive number")
    escapes = _NO_ESCAPES
    if escape_count:
        escapes = np.frombuffer(payload, "<i4", escape_count, side_end).astype(np.int32)
        if not (np.abs(escapes.astype(np.int64)) < ESCAPE_MAX).all():
            raise InvalidData("lossy segment has an escape of 2^27 steps or more")
    return _Parsed(
        1 << lanes_log2,
        (differences, gains, means),
        active,
        scales,
        payload[fixed:side_end],
        escapes,
        payload[side_end + 4 * escape_count :],
    )


def _read_side(states: Sequence[_State], tokens: int) -> None:
    """Decode the side streams of all levels and note what they tell."""
    described = [_side_runs(state, level, tokens) for state in states for level in range(len(state.segments))]
    decoded = iter(_streams([job for job, _ in described if job], "side symbols"))
    told = iter(described)
    for state in states:
        for level in range(len(state.segments)):
            job, fresh = next(told)
            if level and not job:
                state.classes.append(state.classes[-1])
                continue
            symbols = next(decoded) if job else np.zeros(0, np.uint8)
            numbers = symbols.astype(np.int32) - SYMBOL_ZERO
            _note_classes(state, level, symbols[:fresh], numbers[:fresh])
            if level == 0:
                _note_tokens(state, symbols[fresh:], numbers[fresh:], tokens)


def _side_runs(state: _State, level: int, tokens: int) -> tuple[DecodeJob | None, int]:
    """The side stream of a level, None where it has nothing to tell, and how many class differences it starts with."""
    item = state.segments[level]
    fresh = sum(item.active) - (sum(state.segments[level - 1].active) if level else 0)
    if level and not fresh and item.tables == (NO_TABLE, NO_TABLE, NO_TABLE) and not len(item.side):
        return None, 0
    means = state.means_expected if level == 0 else 0
    gains = tokens if level == 0 and item.tables[1] != NO_TABLE else 0
    runs = ((item.tables[0], fresh), (item.tables[2], means), (item.tables[1], gains))
    for table, count in runs:
        if (table == NO_TABLE) != (count == 0):
            raise InvalidData(f"lossy segment has table {table} for {count} side symbols")
    if not fresh + means + gains:
        if len(item.side):
            raise InvalidData(f"lossy segment has {len(item.side)} side bytes for no symbols")
        return None, 0
    tables = np.array([table for table, count in runs if count], np.uint32)
    lengths = np.array([count for _, count in runs if count], np.uint32)
    return DecodeJob(item.side, base_tables(0), Runs(tables, lengths), SIDE_LANES), fresh


def _note_classes(state: _State, level: int, symbols: ByteArray, numbers: IntArray) -> None:
    """The classes of a level: the last level's, and those of coefficients that are active for the first time."""
    if (symbols == ESCAPE).any():
        raise InvalidData("lossy segment has a class difference that escapes")
    known = state.segments[level - 1].active if level else (0,) * len(state.block.parts)
    classes: list[NDArray[np.integer]] = []
    at = before = 0
    for part, old, new in zip(state.block.parts, known, state.segments[level].active, strict=True):
        if level:
            classes.append(state.classes[-1][before : before + old])
        classes.append(part.classes[old:new] + numbers[at : at + new - old])
        at, before = at + new - old, before + old
    joined = np.concatenate(classes)
    if len(joined) and not (int(joined.min()) >= 0 and int(joined.max()) < FINE_CLASSES):
        raise InvalidData(f"lossy segment has a scale class outside 0 to {FINE_CLASSES - 1}")
    state.classes.append(joined.astype(np.uint8))


def _note_tokens(state: _State, symbols: ByteArray, numbers: IntArray, tokens: int) -> None:
    """What a base segment's side stream tells besides: means of the adaptive parts and gains."""
    means = state.means_expected
    escapes = state.segments[0].escapes
    escaped = np.flatnonzero(symbols[:means] == ESCAPE)
    if len(escaped) > len(escapes):
        raise InvalidData(f"lossy segment has {len(escapes)} escapes, its means ask for {len(escaped)}")
    state.means, gains = numbers[:means], numbers[means:]
    state.means[escaped] = escapes[: len(escaped)]
    state.mean_escapes = len(escaped)
    if len(gains) and not (int(gains.min()) >= 0 and int(gains.max()) <= GAIN_MAX):
        raise InvalidData(f"lossy segment has a gain outside 0 to {GAIN_MAX}")
    state.gains = gains.astype(np.uint8) if len(gains) else np.zeros(tokens, np.uint8)
    if len(gains):
        state.shifts = np.uint8(CLASSES_PER_GAIN) * state.gains


def _main_job(state: _State, level: int, tokens: int, left: int) -> DecodeJob:
    item, classes, shifts = state.segments[level], state.classes[level], state.shifts
    count = 1 if shifts is None else CLASSES_PER_GAIN * GAIN_MAX + 1
    last = level == len(state.segments) - 1
    if level == 0:
        runs = Runs.equal(tables_of_classes(classes, left), tokens)
        state.places = np.empty(max(0, len(item.escapes) - state.mean_escapes), np.uint32)
        state.opened = np.empty(0 if last else runs.symbol_count, np.uint8)
        opened = None if last else state.opened
        return DecodeJob(
            item.stream, base_tables(left), runs, item.lanes, None, count, shifts, opened, SYMBOL_ZERO, state.places
        )
    runs = Runs.equal(refinement_tables_of_classes(classes, left), tokens)
    before = state.segments[level - 1].active
    if before != item.active:
        state.opened = with_new_rows(state.opened.reshape(-1, tokens), before, item.active).reshape(-1)
    shifts = None if shifts is None else np.uint8(2) * shifts
    opened = None if last else state.opened
    return DecodeJob(item.stream, refinement_tables(left), runs, item.lanes, state.opened, 2 * count, shifts, opened)


def _finished(state: _State, tokens: int) -> DecodedBlock:
    active = tuple(item.active for item in state.segments)
    counts = (0,) * len(active[0])
    if len(state.places):
        ends = np.searchsorted(state.places, np.cumsum(active[0]) * tokens)
        counts = tuple(np.diff(ends, prepend=0).tolist())
    offsets = _offsets(state.block, state.means, state.segments[0].scales)
    escapes = state.segments[0].escapes[state.mean_escapes :]
    return DecodedBlock(tuple(state.levels), active, escapes, counts, state.gains, offsets)


def _streams(jobs: Sequence[DecodeJob], what: str = "symbols") -> list[ByteArray]:
    for job in jobs:
        if not job.symbol_count and len(job.data):
            raise InvalidData(f"lossy segment has {len(job.data)} bytes of {what}, and none to decode")
        if not job.symbol_count and job.places is not None and len(job.places):
            raise InvalidData(f"lossy segment has {len(job.places)} escapes, and no symbols")
    decoded = iter(decode_streams([job for job in jobs if job.symbol_count]))
    return [next(decoded) if job.symbol_count else np.zeros(0, np.uint8) for job in jobs]


def _offsets(block: Block, means: IntArray, scales: Sequence[float]) -> tuple[Offset, ...]:
    widths = [part.width for part in block.parts if part.adaptive]
    return tuple(
        Offset(means[end - width : end], scale)
        for end, width, scale in zip(accumulate(widths), widths, scales, strict=True)
    )


@dataclass(frozen=True, slots=True)
class SegmentStream:
    """One segment's main stream, for who decodes it elsewhere: everything beside it is read and checked.

    ``active`` rows of each part, whose scale ``classes`` ``[sum of active]`` stand in the same order; ``escapes`` of
    the stream's symbols.
    """

    data: memoryview
    lanes: int
    active: tuple[int, ...]
    classes: ByteArray
    escapes: IntArray


@dataclass(frozen=True, slots=True)
class BlockStreams:
    """A block's streams, base first; ``gains`` uint8 ``[tokens]``, ``offsets`` of its adaptive parts in order."""

    levels: tuple[SegmentStream, ...]
    gains: ByteArray
    offsets: tuple[Offset, ...]


def read_streams(
    blocks: Sequence[Block], payloads: Sequence[Sequence[memoryview]], *, tokens: int
) -> list[BlockStreams]:
    """What :func:`decode_blocks` would decode, as streams; :class:`InvalidData` for damage outside of them."""
    states = [_State(block, _parse_block(block, item, tokens)) for block, item in zip(blocks, payloads, strict=True)]
    _read_side(states, tokens)
    found: list[BlockStreams] = []
    for state in states:
        levels: list[SegmentStream] = []
        for item, classes in zip(state.segments, state.classes, strict=True):
            escapes = item.escapes if levels else item.escapes[state.mean_escapes :]
            if not sum(item.active) and (len(item.stream) or len(escapes)):
                raise InvalidData(f"lossy segment has {len(item.stream)} bytes of symbols, and none to decode")
            levels.append(SegmentStream(item.stream, item.lanes, tuple(item.active), classes, escapes))
        offsets = _offsets(state.block, state.means, state.segments[0].scales)
        found.append(BlockStreams(tuple(levels), state.gains, offsets))
    return found
