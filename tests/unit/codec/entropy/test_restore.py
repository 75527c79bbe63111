"""Every path of the compiled core turns symbols into the very sums of the reference, and rotates and rounds like it."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest
from block_restore import PartTable, RestoreJob, restore_blocks
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.channels import Room
from kvloom.codec.entropy import native, native_lossy
from kvloom.codec.entropy.model import ESCAPE, SYMBOL_ZERO
from kvloom.codec.entropy.native_lossy import TensorJob
from kvloom.codec.layout import Rope
from kvloom.codec.lossy import restore
from kvloom.codec.profile import Block, Part
from kvloom.codec.quantise import ESCAPE_MAX, reconstruct
from kvloom.codec.rope import cos_sin
from kvloom.codec.segment import DecodedBlock, joined_symbols
from kvloom.errors import InvalidData

pytestmark = pytest.mark.skipif(
    not native.AVAILABLE, reason="installed without a C++ compiler: the reference is all there is"
)


@dataclass(frozen=True)
class PartJob:
    """A part of a block by itself, with its symbols ``[rows, tokens]`` of each level."""

    symbols: tuple[np.ndarray, ...]
    escapes: np.ndarray
    left: int
    basis: np.ndarray | None
    factors: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    first_mean: np.ndarray


def job_of(parts: list[PartJob], tensors: list[TensorJob], channels: np.ndarray | None = None) -> RestoreJob:
    """A block of parts that stand one after the other."""
    table = PartTable(np.array([len(part.scale) for part in parts], np.uint64), tuple(part.basis for part in parts))
    return RestoreJob(
        table,
        [np.concatenate(level) for level in zip(*[part.symbols for part in parts], strict=True)],
        [[len(rows) for rows in level] for level in zip(*[part.symbols for part in parts], strict=True)],
        np.concatenate([part.escapes for part in parts]),
        [len(part.escapes) for part in parts],
        parts[0].left,
        np.array([part.factors for part in parts]),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("scale", "mean", "first_mean")),
        tensors,
        channels,
    )


def decoded_part(rng, width, tokens, levels, escape_share):
    """Symbols of some levels as an encoder could have made them, escapes among them up to the largest."""
    rows = np.sort(rng.integers(0, width + 1, levels))
    base = (SYMBOL_ZERO + np.rint(rng.laplace(scale=rng.choice([0.2, 2, 40]), size=(rows[0], tokens)))).clip(1, 255)
    base = base.astype(np.uint8)
    base[rng.random(base.shape) < escape_share] = ESCAPE
    count = int((base == ESCAPE).sum())
    edges = np.array([0, 1, 127, 128, -128, -129, 32767, 32768, ESCAPE_MAX - 1, 1 - ESCAPE_MAX])
    escapes = rng.choice(edges, count).astype(np.int32)
    block = DecodedBlock((base,), ((len(base),),), escapes, (count,), np.zeros(tokens, np.uint8), ())
    for size in rows[1:]:
        known = joined_symbols(block, 0) != 0
        refinement = rng.integers(0, 3, (size, tokens)).astype(np.uint8)
        refinement[: len(known)][known] &= 1
        block = replace(block, levels=(*block.levels, refinement), active=(*block.active, (int(size),)))
    return block


def whole_numbers(part, block, left, path):
    """What the core makes of a part's symbols with nothing scaled or added."""
    tokens = len(block.gains)
    ones, zeros = np.ones(part.width, np.float32), np.zeros(part.width, np.float32)
    basis = None if part.basis is None else native_lossy.pack_basis(part.basis, path=path)
    factors = np.ones(tokens, np.float32)
    job = PartJob(block.levels, block.escapes, left, basis, factors, ones, zeros, zeros)
    channels = np.full((tokens, part.width), np.nan, np.float32)
    tensor = np.full((1, tokens, part.width), np.nan, np.float32)
    restore_blocks([job_of([job], [TensorJob(tensor, 0)], channels)], path=path)
    assert np.array_equal(tensor[0], channels)
    return channels


@given(
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_path_makes_the_references_sums(width, tokens, levels, escape_share, has_basis, seed):
    rng = np.random.default_rng(seed)
    left = int(rng.integers(0, 5 - levels))
    basis = rng.integers(-127, 128, (width, width)).astype(np.int8) if has_basis else None
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    part = Part(0, zeros, zeros, ones, basis, np.zeros(width, np.uint8))
    block = decoded_part(rng, width, tokens, levels, escape_share)
    expected = part.inverse(reconstruct(joined_symbols(block, 0), left), np.ones(tokens, np.float32))
    for path in native.PATHS:
        assert np.array_equal(whole_numbers(part, block, left, path), expected), path


@pytest.mark.parametrize("path", native.PATHS)
def test_sums_of_the_widest_basis_do_not_overflow(path):
    width, tokens = 4096, 9
    basis = np.full((width, width), -127, np.int8)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    part = Part(0, zeros, zeros, ones, basis, np.zeros(width, np.uint8))
    base = np.full((width, tokens), SYMBOL_ZERO - 127, np.uint8)
    base[:, 1] = SYMBOL_ZERO + 127
    base[:, 2] = ESCAPE
    escapes = np.full(width, ESCAPE_MAX - 1, np.int32)
    block = DecodedBlock((base,), ((width,),), escapes, (width,), np.zeros(tokens, np.uint8), ())
    expected = part.inverse(reconstruct(joined_symbols(block, 0), 3), np.ones(tokens, np.float32))
    assert np.array_equal(whole_numbers(part, block, 3, path), expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_blocks_of_several_parts_become_rotated_tensors(dtype, interleaved, threads):
    rng = np.random.default_rng(3)
    tokens, heads, dim = 19, 3, 22
    rope = Rope(tuple(float(x) for x in rng.random(7)), interleaved=interleaved, first_dim=4)
    parts, start = [], 0
    for width, has_basis in ((70, True), (5, False), (2 * heads * dim - 75, True)):
        mean, origin, scale = rng.normal(size=(3, width)).astype(np.float32)
        basis = rng.integers(-127, 128, (width, width)).astype(np.int8) if has_basis else None
        parts.append(Part(start, mean, origin, np.abs(scale) / 900, basis, np.zeros(width, np.uint8)))
        start += width
    block = Block(tuple(parts), np.zeros(0, np.float32), 0.0)
    pieces = [decoded_part(rng, part.width, tokens, 3, 0.0) for part in parts]
    gains = rng.integers(0, 6, tokens).astype(np.uint8)
    decoded = DecodedBlock(
        tuple(np.concatenate(level) for level in zip(*[item.levels for item in pieces], strict=True)),
        tuple(zip(*[[rows for (rows,) in item.active] for item in pieces], strict=True)),
        np.concatenate([item.escapes for item in pieces]),
        tuple(len(item.escapes) for item in pieces),
        gains,
        (),
    )
    expected = restore(block, decoded, 1, 0)
    factors = np.float32(0.5) / np.exp2(gains / np.float32(2)).astype(np.float32)
    jobs = [
        PartJob(
            pieces[i].levels,
            pieces[i].escapes,
            1,
            part.packed,
            factors,
            part.scale,
            part.mean,
            part.origin_mean,
        )
        for i, part in enumerate(parts)
    ]
    cos, sin = cos_sin(rope, np.arange(5, 5 + tokens))
    wide = np.zeros((2, heads + 1, tokens + 4, dim), dtype)
    keys, values = (item[:heads, 2 : tokens + 2] for item in wide)
    rooms = [Room(keys, 0, rope, cos, sin), Room(values[::-1], heads * dim)]
    channels = np.zeros_like(expected)
    job = job_of(jobs, [room.job() for room in rooms], channels)
    restore_blocks([job] * threads, threads=threads)
    assert np.abs(channels - expected).max() <= 1e-5 * np.abs(expected).max()
    for room in rooms:
        room_out = np.zeros((heads, tokens, dim), np.float32)
        replace(room, out=room_out).fill(channels)
        bound = {np.float32: 1e-6, np.float16: 2.0**-11}.get(dtype, 2.0**-8)
        error = np.abs(room.out.astype(np.float32) - room_out)
        assert (error <= bound * np.abs(room_out) + 1e-6).all()
    assert not wide[:, heads:].any()
    assert not wide[:, :, :2].any()
    assert not wide[:, :, tokens + 2 :].any()


@pytest.mark.parametrize("path", native.PATHS)
@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_parts_without_a_basis_go_straight_to_tensors(path, left, dtype, interleaved):
    """More tokens than are taken at a time, parts that end within a tensor, escapes, rows that are not active."""
    rng = np.random.default_rng(left)
    tokens, heads, dim = 531, 2, 44
    rope = Rope(tuple(float(x) for x in rng.random(16)), interleaved=interleaved, first_dim=5)
    parts, pieces, start = [], [], 0
    for width in (50, 80, 2 * heads * dim - 130):
        mean, origin, scale = rng.normal(size=(3, width)).astype(np.float32)
        parts.append(Part(start, mean, origin, np.abs(scale), None, np.zeros(width, np.uint8)))
        pieces.append(decoded_part(rng, width, tokens, 3, 0.001 * (start > 0)))
        start += width
    factors = rng.random((3, tokens)).astype(np.float32)
    jobs = [
        PartJob(item.levels, item.escapes, left, None, own, part.scale, part.mean, part.origin_mean)
        for item, own, part in zip(pieces, factors, parts, strict=True)
    ]
    cos, sin = cos_sin(rope, np.arange(tokens))
    keys, values = np.zeros((2, heads, tokens, dim), dtype)
    rooms = [Room(keys, 0, rope, cos, sin), Room(values, heads * dim)]
    restore_blocks([job_of(jobs, [room.job() for room in rooms])], path=path)
    channels = np.concatenate(
        [
            part.inverse(reconstruct(joined_symbols(item, 0), left), own) + part.mean
            for part, item, own in zip(parts, pieces, factors, strict=True)
        ],
        axis=1,
    )
    channels[0] += np.concatenate([part.origin_mean - part.mean for part in parts])
    for room in rooms:
        wanted = np.zeros_like(room.out)
        replace(room, out=wanted).fill(channels)
        found, expected = room.out.astype(np.float32), wanted.astype(np.float32)
        assert np.array_equal(found[:, 1:], expected[:, 1:])
        assert np.allclose(found[:, 0], expected[:, 0], rtol=2**-7, atol=1e-5 * np.abs(channels[0]).max())


def drawn_numbers() -> np.ndarray:
    """Numbers of all magnitudes, ties among them, and the edges of the two-byte floats: finite ones ``[n, 1000]``."""
    bits = np.random.default_rng(0).integers(0, 2**32, 64 * 1024, dtype=np.uint64).astype(np.uint32)
    edges = [0x38800000, 0x387FFFFF, 0x33000000, 0x33000001, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF, 0x7F7F0000, 0x7F7F8000]
    edge = np.array(edges, np.uint32)
    ties = (np.arange(0x3800, 0x7000, dtype=np.uint32) << 13) + 0x1000
    numbers = np.concatenate([edge, edge | 0x80000000, bits, ties, ties << 3]).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    return np.ascontiguousarray(numbers[: len(numbers) // 1000 * 1000].reshape(-1, 1000))


def as_written(numbers: np.ndarray, dtype: type, path: str, *, has_basis: bool) -> np.ndarray:
    """What a path of the core writes for channels that are ``numbers`` ``[n, width]``, each row a block of a token."""
    out = np.zeros((len(numbers), 1, 1, numbers.shape[1]), dtype)
    zeros = np.zeros(numbers.shape[1], np.float32)
    basis = np.zeros((numbers.shape[1],) * 2, np.int8)
    packed = native_lossy.pack_basis(basis, path=path) if has_basis else None
    symbols = np.full((numbers.shape[1], 1), SYMBOL_ZERO, np.uint8)
    for row, room in zip(numbers, out, strict=True):
        part = PartJob((symbols,), np.zeros(0, np.int32), 0, packed, np.ones(1, np.float32), zeros, row, row)
        restore_blocks([job_of([part], [TensorJob(room, 0)])], path=path)
    return out.reshape(numbers.shape)


@pytest.mark.parametrize("has_basis", [False, True])
@pytest.mark.parametrize("path", native.PATHS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_rounding_to_two_bytes_is_numpys_and_stays_finite(dtype, path, has_basis):
    numbers = drawn_numbers()
    largest = np.float32(ml_dtypes.finfo(dtype).max)
    assert (np.abs(numbers) > largest).any()
    expected = np.clip(numbers, -largest, largest).astype(dtype)
    found = as_written(numbers, dtype, path, has_basis=has_basis)
    assert np.array_equal(found.view(np.uint16) & 0x7FFF, expected.view(np.uint16) & 0x7FFF)
    assert (np.sign(found.astype(np.float32)) == np.sign(expected.astype(np.float32))).all()
    room = np.zeros((1, *numbers.shape), dtype)
    Room(room, 0).fill(numbers)
    assert np.array_equal(room[0].view(np.uint16), expected.view(np.uint16))


def test_what_does_not_fit_is_refused():
    symbols = np.full((3, 4), SYMBOL_ZERO, np.uint8)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    part = PartJob((symbols,), np.zeros(0, np.int32), 0, None, np.ones(4, np.float32), ones, zeros, zeros)
    out = np.zeros((1, 4, 3), np.float32)
    restore_blocks([job_of([part], [TensorJob(out, 0)])])
    escaped = symbols.copy()
    escaped[1, 2] = ESCAPE
    for bad in (
        replace(part, symbols=(escaped,)),
        replace(part, escapes=np.ones(1, np.int32)),
        replace(part, symbols=(symbols, symbols[:2])),
        replace(part, symbols=(np.full((4, 4), SYMBOL_ZERO, np.uint8),)),
    ):
        with pytest.raises(InvalidData, match="does not fit"):
            restore_blocks([job_of([bad], [])])
    for bad_tensor in (
        TensorJob(out, 1),
        TensorJob(out, 0, np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)),
        TensorJob(out, 0, np.ones((4, 1), np.float32), np.ones((4, 1), np.float32), first_dim=2),
    ):
        with pytest.raises(InvalidData, match="does not fit"):
            restore_blocks([job_of([part], [bad_tensor])])
    with pytest.raises(ValueError, match="tokens"):
        restore_blocks([job_of([part], [TensorJob(out[:, :3], 0)])])
    good = job_of([part], [])
    for wrong in (
        replace(good, rows=[[2]]),
        replace(good, escape_counts=[1]),
        replace(good, factors=np.ones((2, 4), np.float32)),
        replace(good, mean=np.zeros(2, np.float32)),
        replace(good, left=4),
    ):
        with pytest.raises(ValueError, match=r"symbols|escapes|factors|mean|levels"):
            restore_blocks([wrong])
