"""Reads the segments of the lossy levels, trusting nothing; :mod:`.segment` says what is in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .entropy import DecodeJob, Runs, decode_streams
from .entropy.model import CLASSES, ESCAPE, GAIN_MAX, SYMBOL_ZERO, base_tables, refinement_tables
from .entropy.stream import LANES_MAX
from .profile import FINE_CLASSES, Block
from .quantise import ESCAPE_MAX, join
from .segment import HEAD, NO_TABLE, SIDE_LANES, BlockSymbols, Offset, contexts_of, tables_of_classes

__all__ = ["BlockStreams", "SegmentStream", "decode_blocks", "read_streams"]

IntArray = NDArray[np.int32]
ByteArray = NDArray[np.uint8]


def decode_blocks(
    blocks: Sequence[Block], payloads: Sequence[Sequence[memoryview]], *, tokens: int, refinements: int
) -> list[BlockSymbols]:
    """Undo :func:`encode_blocks` for as many levels as each block has payloads; :class:`InvalidData` for any damage."""
    known = [_Known(block) for block in blocks]
    decoded = _decode_base(blocks, [item[0] for item in payloads], known, tokens, refinements)
    for level in range(1, len(payloads[0]) if payloads else 0):
        left = refinements - level
        decoded = _decode_refinement(blocks, [item[level] for item in payloads], known, decoded, tokens, left)
    return decoded


class _Known:
    """What the segments read so far have told of a block: active rows of each part, and their classes."""

    def __init__(self, block: Block) -> None:
        self.active = [0] * len(block.parts)
        self.classes = [np.zeros(0, np.uint8) for _ in block.parts]

    @property
    def all_classes(self) -> ByteArray:
        return np.concatenate(self.classes)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A segment's parts, lengths checked against each other."""

    lanes: int
    tables: tuple[int, int, int]
    active: list[int]
    scales: list[float]
    side: memoryview
    escapes: IntArray
    stream: memoryview


def _parse(payload: memoryview, block: Block, known: _Known, tokens: int, *, base: bool) -> _Parsed:
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
    active = [int(n) for n in np.frombuffer(payload, "<u2", len(block.parts), HEAD.size)]
    for part, old, new in zip(block.parts, known.active, active, strict=True):
        if not old <= new <= part.width:
            raise InvalidData(f"lossy segment has {new} active coefficients of {part.width}, {old} were active before")
    numbers = sum(active) * tokens + sum(part.width for part in block.parts if part.adaptive)
    left = len(payload) - fixed
    if escape_count > numbers or (escape_count and not base) or side_bytes + 4 * escape_count > left:
        raise InvalidData(
            f"lossy segment declares {escape_count} escapes and {side_bytes} side bytes, has {left} for {numbers} numbers"
        )
    scales = np.frombuffer(payload, "<f4", adaptive, fixed - 4 * adaptive)
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise InvalidData("lossy segment has a scale that is not a positive number")
    escapes = np.frombuffer(payload, "<i4", escape_count, fixed + side_bytes).astype(np.int32)
    if escape_count and not (np.abs(escapes.astype(np.int64)) < ESCAPE_MAX).all():
        raise InvalidData("lossy segment has an escape of 2^27 steps or more")
    return _Parsed(
        1 << lanes_log2,
        (differences, gains, means),
        active,
        [float(scale) for scale in scales],
        payload[fixed : fixed + side_bytes],
        escapes,
        payload[fixed + side_bytes + 4 * escape_count :],
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """What a base segment's side stream told: means of the adaptive parts, how many of them escaped, and gains."""

    means: IntArray
    mean_escapes: int
    gains: ByteArray


def _read_side(
    parsed: Sequence[_Parsed], blocks: Sequence[Block], known: Sequence[_Known], tokens: int, *, base: bool
) -> list[_Side]:
    """Decode the side streams and note the classes they tell."""
    jobs: list[DecodeJob] = []
    counts: list[tuple[int, int, int]] = []
    for item, block, state in zip(parsed, blocks, known, strict=True):
        fresh = sum(new - old for old, new in zip(state.active, item.active, strict=True))
        means = sum(part.width for part in block.parts if part.adaptive) if base else 0
        gains = tokens if base and item.tables[1] != NO_TABLE else 0
        for table, count in ((item.tables[0], fresh), (item.tables[2], means), (item.tables[1], gains)):
            if (table == NO_TABLE) != (count == 0):
                raise InvalidData(f"lossy segment has table {table} for {count} side symbols")
        runs = [(t, n) for t, n in ((item.tables[0], fresh), (item.tables[2], means), (item.tables[1], gains)) if n]
        if not runs and len(item.side):
            raise InvalidData(f"lossy segment has {len(item.side)} side bytes for no symbols")
        counts.append((fresh, means, gains))
        tables, lengths = (np.array([run[i] for run in runs], np.uint32) for i in (0, 1))
        jobs.append(DecodeJob(item.side, base_tables(0), Runs(tables, lengths), SIDE_LANES))
    decoded = iter(decode_streams([job for job in jobs if job.symbol_count]))
    results: list[_Side] = []
    for item, block, state, job, (fresh, means, _) in zip(parsed, blocks, known, jobs, counts, strict=True):
        symbols = next(decoded) if job.symbol_count else np.zeros(0, np.uint8)
        numbers = symbols.astype(np.int32) - SYMBOL_ZERO
        _note_classes(block, state, item.active, symbols[:fresh], numbers[:fresh])
        mean_symbols, mean_numbers = symbols[fresh : fresh + means], numbers[fresh : fresh + means]
        escaped = np.flatnonzero(mean_symbols == ESCAPE)
        if len(escaped) > len(item.escapes):
            raise InvalidData(f"lossy segment has {len(item.escapes)} escapes, its means ask for {len(escaped)}")
        mean_numbers[escaped] = item.escapes[: len(escaped)]
        gains = numbers[fresh + means :]
        if len(gains) and not (int(gains.min()) >= 0 and int(gains.max()) <= GAIN_MAX):
            raise InvalidData(f"lossy segment has a gain outside 0 to {GAIN_MAX}")
        told = gains.astype(np.uint8) if len(gains) else np.zeros(tokens, np.uint8)
        results.append(_Side(mean_numbers, len(escaped), told))
    return results


def _note_classes(block: Block, state: _Known, active: list[int], symbols: ByteArray, numbers: IntArray) -> None:
    if (symbols == ESCAPE).any():
        raise InvalidData("lossy segment has a class difference that escapes")
    at = 0
    for index, (part, old, new) in enumerate(zip(block.parts, state.active, active, strict=True)):
        fresh = part.classes[old:new] + numbers[at : at + new - old]
        at += new - old
        if len(fresh) and not (int(fresh.min()) >= 0 and int(fresh.max()) < FINE_CLASSES):
            raise InvalidData(f"lossy segment has a scale class outside 0 to {FINE_CLASSES - 1}")
        state.classes[index] = np.concatenate([state.classes[index], fresh.astype(np.uint8)])
    state.active = active


def _decode_base(
    blocks: Sequence[Block], payloads: Sequence[memoryview], known: Sequence[_Known], tokens: int, left: int
) -> list[BlockSymbols]:
    parsed = [_parse(p, b, k, tokens, base=True) for p, b, k in zip(payloads, blocks, known, strict=True)]
    sides = _read_side(parsed, blocks, known, tokens, base=True)
    jobs = []
    for item, state, side in zip(parsed, known, sides, strict=True):
        classes = state.all_classes
        contexts, count = contexts_of(side.gains, len(classes), None)
        runs = Runs.of_channels(tables_of_classes(classes, left), tokens)
        jobs.append(DecodeJob(item.stream, base_tables(left), runs, item.lanes, contexts, count))
    results: list[BlockSymbols] = []
    for item, block, side, symbols in zip(parsed, blocks, sides, _streams(jobs), strict=True):
        base = symbols.astype(np.int32) - SYMBOL_ZERO
        places = np.flatnonzero(symbols == ESCAPE)
        if len(places) + side.mean_escapes != len(item.escapes):
            raise InvalidData(
                f"lossy segment has {len(item.escapes)} escapes, its streams ask for {len(places) + side.mean_escapes}"
            )
        base[places] = item.escapes[side.mean_escapes :]
        offsets = _offsets(block, side.means, item.scales)
        results.append(BlockSymbols(_parts(base, item.active, tokens), side.gains, (), offsets))
    return results


def _decode_refinement(
    blocks: Sequence[Block],
    payloads: Sequence[memoryview],
    known: Sequence[_Known],
    coarse: Sequence[BlockSymbols],
    tokens: int,
    left: int,
) -> list[BlockSymbols]:
    parsed = [_parse(p, b, k, tokens, base=False) for p, b, k in zip(payloads, blocks, known, strict=True)]
    _read_side(parsed, blocks, known, tokens, base=False)
    jobs = []
    parents: list[IntArray] = []
    for item, state, before in zip(parsed, known, coarse, strict=True):
        rows = zip(before.parts, item.active, strict=True)
        parents.append(np.concatenate([_grown(part, count, tokens) for part, count in rows]))
        contexts, count = contexts_of(before.gains, len(parents[-1]), (parents[-1] != 0).reshape(-1))
        runs = Runs.of_channels(2 * tables_of_classes(state.all_classes, left), tokens)
        jobs.append(DecodeJob(item.stream, refinement_tables(left), runs, item.lanes, contexts, count))
    return [
        BlockSymbols(_parts(join(parent.reshape(-1), symbols), item.active, tokens), before.gains, (), before.offsets)
        for item, parent, before, symbols in zip(parsed, parents, coarse, _streams(jobs), strict=True)
    ]


def _streams(jobs: Sequence[DecodeJob]) -> list[ByteArray]:
    for job in jobs:
        if not job.symbol_count and len(job.data):
            raise InvalidData(f"lossy segment has {len(job.data)} bytes of symbols for no coefficients")
    decoded = iter(decode_streams([job for job in jobs if job.symbol_count]))
    return [next(decoded) if job.symbol_count else np.zeros(0, np.uint8) for job in jobs]


def _grown(symbols: IntArray, rows: int, tokens: int) -> IntArray:
    """``symbols`` with zero rows added: coefficients that were not active before."""
    return np.concatenate([symbols, np.zeros((rows - len(symbols), tokens), np.int32)])


def _parts(symbols: IntArray, active: Sequence[int], tokens: int) -> tuple[IntArray, ...]:
    bounds = np.cumsum([0, *active])
    rows = symbols.reshape(-1, tokens)
    return tuple(rows[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True))


def _offsets(block: Block, means: IntArray, scales: Sequence[float]) -> tuple[Offset, ...]:
    widths = [part.width for part in block.parts if part.adaptive]
    pieces = np.split(means, np.cumsum(widths)[:-1]) if widths else []
    return tuple(Offset(piece, scale) for piece, scale in zip(pieces, scales, strict=True))


@dataclass(frozen=True, slots=True)
class SegmentStream:
    """One segment's main stream, for who decodes it elsewhere: everything beside it is read and checked.

    ``active`` rows of each part, whose scale ``classes`` ``[sum of active]`` stand in the same order; ``escapes`` of the
    stream's symbols.
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
    known = [_Known(block) for block in blocks]
    sides: list[_Side] = []
    offsets: list[tuple[Offset, ...]] = []
    levels: list[list[SegmentStream]] = [[] for _ in blocks]
    for level in range(len(payloads[0]) if payloads else 0):
        base = level == 0
        parsed = [_parse(p[level], b, k, tokens, base=base) for p, b, k in zip(payloads, blocks, known, strict=True)]
        told = _read_side(parsed, blocks, known, tokens, base=base)
        if base:
            sides = told
            offsets = [_offsets(b, s.means, p.scales) for b, s, p in zip(blocks, sides, parsed, strict=True)]
        for found, item, state, side in zip(levels, parsed, known, sides, strict=True):
            if len(item.stream) and not sum(item.active):
                raise InvalidData(f"lossy segment has {len(item.stream)} bytes of symbols for no coefficients")
            escapes = item.escapes[side.mean_escapes :] if base else item.escapes
            if len(escapes) and not sum(item.active):
                raise InvalidData(f"lossy segment has {len(escapes)} escapes for no coefficients")
            found.append(SegmentStream(item.stream, item.lanes, tuple(item.active), state.all_classes, escapes))
    return [BlockStreams(tuple(f), s.gains, o) for f, s, o in zip(levels, sides, offsets, strict=True)]
