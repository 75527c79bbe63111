"""Segments of the lossy levels: whatever symbols a block has, they come back, level by level, and damage does not."""

import struct
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.entropy import native, native_segments
from kvloom.codec.entropy.model import GAIN_MAX
from kvloom.codec.entropy.native_lossy import TensorJob, tensor_row, tensor_rows
from kvloom.codec.lossy import restore
from kvloom.codec.profile import FINE_CLASSES, Block, Part
from kvloom.codec.quantise import ESCAPE_MAX, FINE_MAX, Symbols, gain_factors, split, unit
from kvloom.codec.segment import HEAD, NO_TABLE, BlockSymbols, DecodedBlock, Offset, joined_symbols, overhead_bytes
from kvloom.codec.segment_reader import decode_blocks
from kvloom.codec.segment_writer import encode_blocks
from kvloom.errors import InvalidData, InvalidTensor


@dataclass(frozen=True)
class Case:
    """A block, finest symbols of its parts, and how many refinements they are coded with."""

    block: Block
    fine: tuple[np.ndarray, ...]
    gains: np.ndarray
    classes: tuple[np.ndarray, ...]
    refinements: int
    offsets: tuple[Offset, ...] = ()

    @property
    def symbols(self) -> BlockSymbols:
        factors = gain_factors(self.gains).astype(np.float64)
        parts = [
            Symbols(split(item, self.refinements), np.abs(item).max(axis=1, initial=0), item / factors, self.gains)
            for item in self.fine
        ]
        return BlockSymbols(tuple(parts), self.gains, self.classes, self.offsets)

    @property
    def tokens(self) -> int:
        return len(self.gains)

    def payloads(self) -> list[bytes]:
        return encode_blocks([self.block], [self.symbols], self.refinements)[0]

    def decode(self, payloads, *, tokens=None) -> DecodedBlock:
        views = [memoryview(item) for item in payloads]
        found = decode_blocks([self.block], [views], tokens=tokens or self.tokens, refinements=self.refinements)
        return found[0]


def part_of(start, width, classes, *, adaptive=False) -> Part:
    zeros, ones = np.zeros(width, np.float32), np.ones(width, np.float32)
    return Part(start, zeros, zeros, ones, None, classes, adaptive)


@st.composite
def cases(draw) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens, refinements = draw(st.integers(1, 40)), draw(st.integers(0, 3))
    parts, symbols, classes, offsets, start = [], [], [], [], 0
    for width in draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)):
        adaptive = draw(st.booleans())
        active = draw(st.integers(0, width))
        size = draw(st.sampled_from([1, 5, 300, 2**20]))
        fine = np.rint(rng.laplace(scale=size, size=(width, tokens))).astype(np.int32)
        fine[active:] = 0
        if draw(st.booleans()):
            far = draw(st.sampled_from([(FINE_MAX - 8) >> (3 - refinements), 2**20, 2**15]))
            fine[rng.integers(width), rng.integers(tokens)] = draw(st.sampled_from([-1, 1])) * far
        parts.append(part_of(start, width, rng.integers(0, FINE_CLASSES, width).astype(np.uint8), adaptive=adaptive))
        symbols.append(fine)
        classes.append(rng.integers(0, FINE_CLASSES, width).astype(np.uint8))
        if adaptive:
            far = draw(st.sampled_from([0, 3, 1000, ESCAPE_MAX - 1]))
            means = rng.integers(-far, far + 1, width).astype(np.int32)
            offsets.append(Offset(means, float(np.float32(rng.exponential()) + np.float32(1e-6))))
        start += width
    gains = rng.integers(0, GAIN_MAX + 1, tokens) if draw(st.booleans()) else np.zeros(tokens)
    block = Block(tuple(parts), np.zeros(0, np.float32), 0.0)
    return Case(block, tuple(symbols), gains.astype(np.uint8), tuple(classes), refinements, tuple(offsets))


def rows_of(found: DecodedBlock) -> list[np.ndarray]:
    return [joined_symbols(found, part) for part in range(len(found.escape_counts))]


def whole(found: DecodedBlock, case: Case) -> list[np.ndarray]:
    """Symbols with the rows that cost nothing put back."""
    return [
        np.pad(rows, ((0, part.width - len(rows)), (0, 0)))
        for rows, part in zip(rows_of(found), case.block.parts, strict=True)
    ]


@given(cases())
def test_what_was_coded_comes_back_level_by_level(case):
    payloads = case.payloads()
    assert len(payloads) == case.refinements + 1
    for count in range(1, len(payloads) + 1):
        found = case.decode(payloads[:count])
        left = case.refinements + 1 - count
        for mine, fine in zip(whole(found, case), case.fine, strict=True):
            assert np.array_equal(mine, np.sign(fine) * (np.abs(fine) >> left))
        assert np.array_equal(found.gains, case.symbols.gains)
        assert len(found.offsets) == len(case.symbols.offsets)
        for mine, theirs in zip(found.offsets, case.symbols.offsets, strict=True):
            assert np.array_equal(mine.means, theirs.means)
            assert np.float32(mine.scale) == np.float32(theirs.scale)


@given(cases(), cases())
def test_a_block_is_coded_alike_whatever_stands_beside_it(case, other):
    if other.refinements == case.refinements:
        both = encode_blocks([case.block, other.block], [case.symbols, other.symbols], case.refinements)
        assert both == [case.payloads(), other.payloads()]
    assert case.payloads() == case.payloads()


def plain_case(tokens=60, *, adaptive=False, gains=False, refinements=2) -> Case:
    rng = np.random.default_rng(3)
    classes = np.full(6, 40, np.uint8)
    fine = np.rint(rng.laplace(scale=[[60], [30], [20], [8], [2], [0.1]], size=(6, tokens))).astype(np.int32)
    block = Block((part_of(0, 6, classes, adaptive=adaptive),), np.zeros(0, np.float32), 0.0)
    offsets = (Offset(np.array([5, -900, 0, 1, 2, 3], np.int32), 0.5),) if adaptive else ()
    chosen = rng.integers(0, 5, tokens) if gains else np.zeros(tokens)
    return Case(block, (fine,), chosen.astype(np.uint8), (classes,), refinements, offsets)


def test_a_coefficient_that_is_zero_at_a_level_costs_nothing_there():
    case = plain_case()
    quiet = [part.copy() for part in case.fine]
    quiet[0][3:] = np.sign(quiet[0][3:]) * (np.abs(quiet[0][3:]) & 3)
    found = replace(case, fine=tuple(quiet))
    active = [struct.unpack_from("<H", payload, HEAD.size)[0] for payload in found.payloads()]
    assert active[0] == 3
    assert active == sorted(active)
    nothing = replace(case, fine=(0 * quiet[0],))
    assert [len(item) for item in nothing.payloads()] == [HEAD.size + 2] * 3


def test_gains_cost_only_where_there_are_any():
    without, with_gains = plain_case(), plain_case(gains=True)
    assert HEAD.unpack_from(without.payloads()[0])[2] == NO_TABLE
    assert HEAD.unpack_from(with_gains.payloads()[0])[2] != NO_TABLE
    assert overhead_bytes(memoryview(with_gains.payloads()[0])) > overhead_bytes(memoryview(without.payloads()[0]))


def test_overhead_is_all_but_escapes_and_the_words_of_the_main_stream():
    case = plain_case(adaptive=True, gains=True)
    for level, payload in enumerate(case.payloads()):
        lanes_log2, _, _, _, escapes, side = HEAD.unpack_from(payload)
        assert overhead_bytes(memoryview(payload)) == HEAD.size + side + (4 << lanes_log2)
        assert (level == 0) == bool(escapes)
        for cut in (0, 5, HEAD.size + side - 1):
            with pytest.raises(InvalidData):
                overhead_bytes(memoryview(payload)[:cut])


def test_what_is_too_large_for_the_reader_the_writer_refuses():
    case = plain_case(refinements=0)
    far = case.fine[0].copy()
    far[0, 0] = ESCAPE_MAX - 1
    good = replace(case, fine=(far,))
    assert rows_of(good.decode(good.payloads()))[0][0, 0] == ESCAPE_MAX - 1
    far[0, 0] = -ESCAPE_MAX
    with pytest.raises(InvalidTensor, match=str(ESCAPE_MAX)):
        good.payloads()


# Damage, each kind by hand; tests/fuzz does it by chance.

FIELDS = {"lanes": (0, "B"), "differences": (1, "B"), "gains": (2, "B"), "means": (3, "B"), "escapes": (4, "<I")}
FIELDS |= {"side": (8, "<I"), "active": (12, "<H"), "scale": (14, "<f")}


@pytest.mark.parametrize(
    ("level", "field", "value", "says"),
    [
        (0, "lanes", 6, "lanes"), (0, "lanes", 255, "lanes"), (0, "differences", 64, "side table 64"),
        (0, "differences", NO_TABLE, "table 255 for"), (0, "means", 254, "side table"),
        (0, "means", NO_TABLE, "table 255"),
        (0, "gains", 100, "side table"), (0, "escapes", 2**32 - 1, "escapes"), (0, "escapes", 370, "escapes"),
        (0, "side", 0, "side bytes"), (0, "side", 2**32 - 1, "side bytes"), (0, "active", 7, "7 active"),
        (0, "active", 65535, "active"), (0, "scale", 0.0, "scale"), (0, "scale", -1.0, "scale"),
        (0, "scale", float("nan"), "scale"), (0, "scale", float("inf"), "scale"), (1, "active", 0, "active"),
        (1, "gains", 3, "table 3 for 0"), (1, "means", 3, "table 3 for 0"), (1, "escapes", 1, "escapes"),
    ],
)  # fmt: skip
def test_a_field_out_of_bounds_is_invalid_data(level, field, value, says):
    case = plain_case(adaptive=True, gains=True)
    payloads = [bytearray(item) for item in case.payloads()]
    offset, kind = FIELDS[field]
    struct.pack_into(kind, payloads[level], offset, value)
    with pytest.raises(InvalidData, match=says):
        case.decode(payloads)


def test_bytes_for_no_symbols_are_invalid_data():
    case = plain_case()
    nothing = replace(case, fine=(0 * case.fine[0],))
    payloads = nothing.payloads()
    assert not rows_of(nothing.decode(payloads))[0].any()
    with pytest.raises(InvalidData, match="none to decode"):
        nothing.decode([payloads[0] + b"1234", *payloads[1:]])


def test_other_counts_of_tokens_are_invalid_data():
    case = plain_case(gains=True)
    for tokens in (case.tokens - 1, case.tokens + 1, 4096):
        with pytest.raises(InvalidData):
            case.decode(case.payloads(), tokens=tokens)


def test_escapes_that_reach_too_far_are_invalid_data():
    case = plain_case(adaptive=True)
    payload = bytearray(case.payloads()[0])
    side = HEAD.unpack_from(payload)[5]
    for value in (ESCAPE_MAX, -ESCAPE_MAX, -(2**31)):
        struct.pack_into("<i", payload, HEAD.size + side, value)
        with pytest.raises(InvalidData, match="escape of 2"):
            case.decode([payload])


# The compiled core does all of that, and the synthesis after it, in one call.


def in_numpy(case: Case, payloads, left: int) -> np.ndarray | None:
    """Channels ``[tokens, width]`` by the reference; None where it refuses the segments."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return restore(case.block, case.decode(payloads), left, 1)
    except InvalidData:
        return None


def room_of(out: np.ndarray) -> np.ndarray:
    return tensor_rows([tensor_row(TensorJob(out, 0), out.shape[1])])


def in_core(case: Case, payloads, left: int, path: str, threads: int, copies: int) -> list[np.ndarray | None]:
    """The same by the core, of some copies of the block."""
    factors = np.float32(unit(left)) / gain_factors(np.arange(GAIN_MAX + 1, dtype=np.uint8))
    chunk = native_segments.Chunk(len(payloads), case.refinements, case.tokens, False, factors)
    outs = [np.zeros((1, case.tokens, case.block.width), np.float32) for _ in range(copies)]
    views = [memoryview(item) for item in payloads]
    jobs = [native_segments.BlockJob(case.block.table, views, room_of(out)) for out in outs]
    refused = native_segments.decode(chunk, jobs, threads=threads, path=path)
    return [None if index in refused else out[0] for index, out in enumerate(outs)]


def damaged(payloads, draw) -> list[bytearray]:
    found = [bytearray(item) for item in payloads]
    for _ in range(draw(st.integers(0, 2))):
        item = found[draw(st.integers(0, len(found) - 1))]
        place = draw(st.integers(0, max(0, len(item) - 1)))
        match draw(st.sampled_from(["byte", "cut", "longer"])):
            case "byte":
                item[place : place + 1] = bytes([draw(st.sampled_from([0, 1, 5, 64, 127, 128, 255]))])
            case "cut":
                del item[place:]
            case "longer":
                item += bytes(draw(st.integers(1, 9)))
    return found


@pytest.mark.skipif(not native.AVAILABLE, reason="installed without a C++ compiler: the reference is all there is")
@given(cases(), st.data())
def test_the_core_takes_what_the_reference_takes_and_makes_the_same_of_it(case, data):
    count = data.draw(st.integers(1, case.refinements + 1))
    payloads, left = damaged(case.payloads()[:count], data.draw), case.refinements + 1 - count
    expected = in_numpy(case, payloads, left)
    for path in native.PATHS:
        for found in in_core(case, payloads, left, path, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))):
            assert (found is None) == (expected is None)
            assert found is None or np.array_equal(found, expected, equal_nan=True)


@pytest.mark.skipif(not native.AVAILABLE, reason="installed without a C++ compiler: the reference is all there is")
def test_a_damaged_block_does_not_touch_its_neighbours():
    case = plain_case(gains=True)
    good = [memoryview(item) for item in case.payloads()]
    outs = [np.zeros((1, case.tokens, 6), np.float32) for _ in range(8)]
    jobs = [native_segments.BlockJob(case.block.table, good, room_of(out)) for out in outs]
    for place, level in ((2, 0), (6, 1)):
        bad = [item[:-1] if index == level else item for index, item in enumerate(good)]
        jobs[place] = native_segments.BlockJob(case.block.table, bad, jobs[place].tensors)
    factors = np.ones(GAIN_MAX + 1, np.float32)
    chunk = native_segments.Chunk(len(good), case.refinements, case.tokens, False, factors)
    assert native_segments.decode(chunk, jobs) == [2, 6]
    for index in (1, 3, 4, 5, 7):
        assert np.array_equal(outs[index], outs[0])
    assert outs[0].any()
