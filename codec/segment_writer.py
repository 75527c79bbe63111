"""Writes the segments of the lossy levels; :mod:`.segment` says what is in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidTensor
from .entropy import EncodeJob, Runs, encode_streams, lanes_for
from .entropy.model import (
    CLASSES,
    CLASSES_PER_GAIN,
    ESCAPE,
    REFINEMENTS_MAX,
    SYMBOL_MAX,
    SYMBOL_ZERO,
    base_tables,
    refinement_tables,
)
from .profile import Block
from .quantise import ESCAPE_MAX
from .segment import HEAD, NO_TABLE, SIDE_LANES, BlockSymbols, contexts_of, tables_of_classes, with_new_rows

__all__ = ["SegmentPlan", "encode_blocks", "plan_segments"]

IntArray = NDArray[np.int32]
ByteArray = NDArray[np.uint8]


def encode_blocks(
    blocks: Sequence[Block], coded: Sequence[BlockSymbols], refinements: int, *, levels: int | None = None
) -> list[list[bytes]]:
    """The payloads of each block, base first; only the ``levels`` coarsest where that is given."""
    depth = refinements + 1 if levels is None else min(levels, refinements + 1)
    drafts: list[_Draft] = []
    for block, item in zip(blocks, coded, strict=True):
        plans = plan_segments(block, item, [part.peaks for part in item.parts], refinements)
        drafts += _drafts(plans[:depth], item, refinements)
    sides = iter(encode_streams([item.plan.side for item in drafts if item.plan.side.symbols.size]))
    mains = iter(encode_streams([item.main for item in drafts if item.main.symbols.size]))
    payloads = [
        item.plan.payload(
            next(sides) if item.plan.side.symbols.size else b"",
            item.escapes,
            next(mains) if item.main.symbols.size else b"",
        )
        for item in drafts
    ]
    return [payloads[start : start + depth] for start in range(0, len(payloads), depth)]


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """A segment but for its main stream: ``active`` rows of each part, with scale ``classes``."""

    active: tuple[int, ...]
    classes: ByteArray
    lanes: int
    side: EncodeJob
    tables: tuple[int, int, int]
    scales: bytes
    mean_escapes: IntArray

    def payload(self, side: bytes, escapes: IntArray, main: bytes) -> bytes:
        """The segment's bytes with its streams coded; ``escapes`` are those of the main stream."""
        known = np.array(self.active, "<u2").tobytes() + self.scales + side
        beyond = np.concatenate([self.mean_escapes, escapes])
        head = HEAD.pack(self.lanes.bit_length() - 1, *self.tables, len(beyond), len(known))
        return head + known + beyond.astype("<i4").tobytes() + main


def plan_segments(
    block: Block, item: BlockSymbols, peaks: Sequence[NDArray[np.integer]], refinements: int
) -> list[SegmentPlan]:
    """The segments of a block, base first, all but the main streams, which an accelerator may code.

    ``item`` needs no symbols: ``peaks`` ``[width]`` of each part are the largest magnitudes of its rows.
    """
    sizes = [_last_rows(peak.astype(np.int32), refinements) for peak in peaks]
    plans: list[SegmentPlan] = []
    known = tuple(0 for _ in peaks)
    for level in range(refinements + 1):
        active = tuple(rows[level] for rows in sizes)
        classes = np.concatenate([c[:n] for c, n in zip(item.classes, active, strict=True)])
        fresh = [
            chosen[old:new].astype(np.int32) - part.classes[old:new]
            for part, chosen, old, new in zip(block.parts, item.classes, known, active, strict=True)
        ]
        offsets, gains = (item.offsets, item.gains) if level == 0 else ((), np.zeros(0, np.uint8))
        side, tables, escapes = _side_job(fresh, [offset.means for offset in offsets], gains)
        scales = b"".join(np.float32(offset.scale).tobytes() for offset in offsets)
        lanes = lanes_for(len(classes) * len(item.gains))
        plans.append(SegmentPlan(active, classes, lanes, side, tables, scales, escapes))
        known = active
    return plans


@dataclass(frozen=True, slots=True)
class _Draft:
    """A planned segment with its main stream still to be coded."""

    plan: SegmentPlan
    main: EncodeJob
    escapes: IntArray


def _drafts(plans: Sequence[SegmentPlan], item: BlockSymbols, refinements: int) -> list[_Draft]:
    """The main streams of a block's planned segments."""
    drafts: list[_Draft] = []
    opened: ByteArray | None = None
    known: tuple[int, ...] = ()
    for level, plan in enumerate(plans):
        symbols = np.concatenate([part.levels[level][:n] for part, n in zip(item.parts, plan.active, strict=True)])
        left = refinements - level
        if opened is None:
            escapes = _escape(symbols, plan.classes, item, plan.active)
            drafts.append(_Draft(plan, _main_job(symbols, plan.classes, item.gains, None, left), escapes))
            opened = (symbols != SYMBOL_ZERO).view(np.uint8)
        else:
            opened = with_new_rows(opened, known, plan.active)
            main = _main_job(symbols, plan.classes, item.gains, opened, left)
            drafts.append(_Draft(plan, main, np.zeros(0, np.int32)))
            opened = opened | (symbols != 0).view(np.uint8)
        known = plan.active
    return drafts


def _last_rows(peaks: IntArray, refinements: int) -> list[int]:
    """For each level from coarse to fine the number of leading rows that hold all its symbols other than zero."""
    counts = []
    for level in range(refinements + 1):
        rows = np.flatnonzero(peaks >> (refinements - level))
        counts.append(int(rows[-1]) + 1 if len(rows) else 0)
    return counts


@lru_cache(maxsize=REFINEMENTS_MAX + 1)
def _largest_coded(left: int) -> IntArray:
    """The largest magnitude of a base symbol that each table codes."""
    coded = base_tables(left).frequencies[:, SYMBOL_ZERO:] > 0
    largest: IntArray = (coded.shape[1] - 1 - np.argmax(coded[:, ::-1], axis=1)).astype(np.int32)
    return largest


def _escape(symbols: ByteArray, classes: ByteArray, item: BlockSymbols, active: Sequence[int]) -> IntArray:
    """Make an escape of each base symbol ``[rows, tokens]`` that its table does not code; the escaped numbers."""
    left = len(item.parts[0].levels) - 1
    tables = tables_of_classes(classes, left)
    largest = _largest_coded(left)
    escaped: list[IntArray] = []
    at = 0
    for part, count in zip(item.parts, active, strict=True):
        own = tables[at : at + count]
        highest = int(part.peaks.max(initial=0)) >> left
        if highest >= ESCAPE_MAX:
            raise InvalidTensor(f"a coefficient is {highest} steps of the coarsest level, the limit is {ESCAPE_MAX}")
        # A token's gain only takes it to tables that code more.
        rows = np.flatnonzero(part.peaks[:count] >> left > largest[own])
        if len(rows):
            numbers = part.base_of(rows)
            limit = largest[own[rows][:, None] + CLASSES_PER_GAIN * item.gains.astype(np.uint32)[None]]
            beyond = np.abs(numbers) > limit
            chosen = symbols[at + rows]
            chosen[beyond] = ESCAPE
            symbols[at + rows] = chosen
            escaped.append(numbers[beyond])
        at += count
    return np.concatenate([np.zeros(0, np.int32), *escaped])


def _main_job(
    symbols: ByteArray, classes: ByteArray, gains: ByteArray, opened: ByteArray | None, left: int
) -> EncodeJob:
    tables = tables_of_classes(classes, left)
    contexts, count = contexts_of(gains, len(classes), None if opened is None else opened.reshape(-1))
    runs = Runs.of_channels(tables if opened is None else 2 * tables, len(gains))
    table_set = base_tables(left) if opened is None else refinement_tables(left)
    return EncodeJob(symbols.reshape(-1), table_set, runs, lanes_for(symbols.size), contexts, count)


def _side_job(
    differences: Sequence[IntArray], means: Sequence[IntArray], gains: ByteArray
) -> tuple[EncodeJob, tuple[int, int, int], IntArray]:
    """The side stream, the tables of class differences, gains and means, and the means that escape."""
    runs: list[tuple[int, int]] = []
    symbols: list[ByteArray] = []
    tables = [NO_TABLE, NO_TABLE, NO_TABLE]
    escapes: list[IntArray] = []
    for place, group in ((0, differences), (2, means), (1, [gains.astype(np.int32)] if gains.any() else [])):
        numbers = np.concatenate(group) if group else np.zeros(0, np.int32)
        if not len(numbers):
            continue
        coded, table, beyond = _cheapest(numbers, may_escape=place == 2)
        tables[place] = table
        runs.append((table, len(coded)))
        symbols.append(coded)
        escapes.append(beyond)
    run_tables = np.array([table for table, _ in runs], np.uint32)
    lengths = np.array([length for _, length in runs], np.uint32)
    joined = np.concatenate(symbols) if symbols else np.zeros(0, np.uint8)
    job = EncodeJob(joined, base_tables(0), Runs(run_tables, lengths), SIDE_LANES)
    return job, (tables[0], tables[1], tables[2]), np.concatenate([np.zeros(0, np.int32), *escapes])


@lru_cache(maxsize=2)
def _side_costs(may_escape: bool) -> NDArray[np.float64]:
    """Bits of each symbol by each table of a side stream ``[CLASSES, 256]``."""
    cost = base_tables(0).cost_bits()[:CLASSES]
    return np.where(np.isinf(cost), cost[:, [ESCAPE]] + 32, cost) if may_escape else cost


def _cheapest(numbers: IntArray, *, may_escape: bool) -> tuple[ByteArray, int, IntArray]:
    """Numbers as symbols, the table that codes them in the fewest bits, and those that escape from it."""
    symbols = (np.clip(numbers, -SYMBOL_MAX, SYMBOL_MAX) + SYMBOL_ZERO).astype(np.uint8)
    symbols[np.abs(numbers) > SYMBOL_MAX] = ESCAPE
    counts = np.bincount(symbols, minlength=256)
    cost = _side_costs(may_escape)
    used = np.flatnonzero(counts)
    table = int(np.argmin(cost[:, used] @ counts[used]))
    escaped = (base_tables(0).frequencies[table, symbols] == 0) | (symbols == ESCAPE)
    symbols[escaped] = ESCAPE
    return symbols, table, numbers[escaped]
