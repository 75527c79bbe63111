"""Each kernel by itself, number for number against the NumPy reference."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom import codec
from kvloom.codec import LOSSY_LEVELS
from kvloom.codec.cuda import streams
from kvloom.codec.cuda.decoder import Batch, Chunk
from kvloom.codec.cuda.device import KERNELS, SOURCE, Staging, launch, source_digest
from kvloom.codec.cuda.jobs import PAGES, SYNTHESIS
from kvloom.codec.cuda.resident import packed_basis, resident
from kvloom.codec.entropy import encode_streams
from kvloom.codec.profile import Part
from kvloom.codec.quantise import FINE_MAX, quantise, reconstruct, symbols_of
from kvloom.codec.segment import BlockSymbols, DecodedBlock, Offset, joined_symbols
from kvloom.codec.segment_reader import decode_blocks
from kvloom.codec.segment_writer import encode_blocks, plan_segments


def parts_of(block: DecodedBlock) -> list[np.ndarray]:
    return [joined_symbols(block, part) for part in range(len(block.escape_counts))]


def test_job_structs_are_as_the_kernels_have_them(device):
    from_source = SOURCE.read_text()
    for name in KERNELS:
        assert f"KVL_KERNEL({name}," in from_source
        assert getattr(device.library, f"{name}_job_bytes")() == device.jobs[name].itemsize


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_symbols_of_every_level_are_the_references(device, profile, reference, draw_kv, depth):
    parsed = codec.Container.parse(reference.encode(draw_kv(77, 1), profile))
    batch = Batch(device, profile, [Chunk(parsed, 0, 0), Chunk(parsed, 77, 77)], depth)
    batch.decode_symbols()
    batch.check()
    payloads = [[parsed.segment(level, start) for level in LOSSY_LEVELS[:depth]] for start in (0, 2)]
    wanted = decode_blocks(profile.blocks, payloads, tokens=77, refinements=3)
    expected = np.concatenate([part.reshape(-1) for item in wanted * 2 for part in parts_of(item)])
    assert np.abs(expected).max() > 127
    assert np.array_equal(batch.symbols[: len(expected)], expected)


@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(1, 140),
    width=st.integers(1, 150),
    share=st.floats(0, 1),
    loudest=st.sampled_from([1, 31, 32, 127, 128, 40_000, 2**23, FINE_MAX // 2 - 1]),
    left=st.integers(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_integer_sums_are_exact_whatever_the_symbols(device, seed, tokens, width, share, loudest, left):
    rng = np.random.default_rng(seed)
    active = round(share * width)
    symbols = rng.integers(-20, 21, (active, tokens)).astype(np.int32)
    loud = rng.random(symbols.shape) < 0.01
    symbols[loud] = rng.choice([-loudest, loudest], int(loud.sum()))
    basis = rng.integers(-127, 128, (width, width)).astype(np.int8)
    scale, mean, first = rng.uniform(0.1, 1, (3, width)).astype(np.float32)
    gains = rng.integers(0, 16, tokens).astype(np.uint8)
    factors = rng.uniform(0.1, 1, 16).astype(np.float32)
    channels = np.full((tokens, width + 3), 9, np.float32)
    sums = np.zeros((tokens, width), np.int64)
    packed = packed_basis(basis)
    job = np.zeros(1, SYNTHESIS)
    arrays = {"symbols": symbols, "basis": packed, "mean": mean, "first_mean": first, "scale": scale}
    arrays |= {"factors": factors, "gains": gains, "channels": channels, "sums": sums}
    for name, array in arrays.items():
        job[name] = array.ctypes.data
    job["active"], job["tokens"], job["width"], job["channel_stride"] = active, tokens, width, width + 3
    job["halved"], job["offset_scale"] = left, 1
    launch(device, "kvl_synthesise", job, -(-tokens // 64) * -(-width // 64) + 2)
    whole = reconstruct(symbols, left)
    assert np.array_equal(sums, whole.T.astype(np.int64) @ basis[:active].astype(np.int64))
    part = Part(0, mean, first, scale, basis, np.zeros(width, np.uint8))
    expected = part.inverse(whole, factors[gains])
    expected[1:] += mean
    expected[0] += first
    assert np.array_equal(channels[:, :width], expected)
    assert (channels[:, width:] == 9).all()


@given(
    seed=st.integers(0, 2**32),
    tokens=st.sampled_from([1, 3, 31, 32, 33, 256]),
    spread=st.sampled_from([0.02, 1.0, 30.0, 5000.0]),
    wrong=st.integers(-30, 30),
)
@settings(max_examples=40, deadline=None)
def test_streams_have_the_reference_encoders_bytes(device, profile, seed, tokens, spread, wrong):
    """With classes that fit, and with such that most symbols escape and the first rooms are too small."""
    rng = np.random.default_rng(seed)
    block = profile.blocks[1]
    drawn = [
        (rng.laplace(size=(part.width, tokens)) * spread * np.exp(-np.arange(part.width) / 9)[:, None]).astype(
            np.float32
        )
        for part in block.parts
    ]
    classes = tuple(
        np.clip(part.classes.astype(int) + wrong + rng.integers(-9, 10, part.width), 0, 81).astype(np.uint8)
        for part in block.parts
    )
    gains = rng.integers(0, 16, tokens).astype(np.uint8)
    offset = Offset(rng.integers(-300, 300, 20).astype(np.int32), 0.5)
    item = BlockSymbols(tuple(symbols_of(drawn, gains, 3)), gains, classes, (offset,))
    fine = [quantise(part, gains) for part in drawn]
    expected = encode_blocks([block], [item], 3)[0]
    plans = plan_segments(block, item, [part.peaks for part in item.parts], 3)
    symbols, where = np.concatenate(fine), resident(device, profile)
    jobs = [
        streams.Stream(
            plan, level, 3 - level, [part.start for part in block.parts], tokens, symbols.ctypes.data,
            gains.ctypes.data, device.address(where.encoder_tables(3 - level)),
        )
        for level, plan in enumerate(plans)
    ]  # fmt: skip
    sides = [encode_streams([plan.side])[0] if plan.side.symbols.size else b"" for plan in plans]
    coded = streams.code_streams(device, Staging(), jobs)
    assert [plan.payload(side, *item) for plan, side, item in zip(plans, sides, coded, strict=True)] == expected


@pytest.mark.parametrize(("dtype", "element"), [(np.float16, 1), (ml_dtypes.bfloat16, 2)])
def test_narrow_floats_are_rounded_as_numpy_rounds_them_and_stay_finite(device, dtype, element):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 60_000, dtype=np.uint64).astype(np.uint32)
    near = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(dtype).astype(np.float32).view(np.uint32)
    bits = np.concatenate([bits, near, near + 1, near - 1, near + 0x1000, near + 0xFFF, near + 0x8000, near + 0x7FFF])
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    pages, back = np.zeros(len(values), dtype), np.zeros(len(values), np.float32)
    table, status = np.zeros(1, np.int32), np.zeros(1, np.int32)
    job = np.zeros(1, PAGES)
    job["channels"], job["pages"], job["block_table"] = values.ctypes.data, pages.ctypes.data, table.ctypes.data
    job["status"], job["element"], job["block_size"], job["tokens"], job["heads"] = status.ctypes.data, element, 1, 1, 1
    job["head_dim"] = job["channel_stride"] = len(values)
    launch(device, "kvl_scatter", job, -(-len(values) // 256))
    largest = np.float32(ml_dtypes.finfo(dtype).max)
    assert (np.abs(values) > largest).any()
    assert pages.tobytes() == np.clip(values, -largest, largest).astype(dtype).tobytes()
    job["channels"] = back.ctypes.data
    launch(device, "kvl_gather", job, -(-len(values) // 256))
    assert np.array_equal(back, pages.astype(np.float32))
    assert status[0] == 0
    pages[5] = np.inf
    launch(device, "kvl_gather", job, -(-len(values) // 256))
    assert status[0] == 7


def test_the_name_of_the_source_is_a_number_that_the_compiler_takes():
    assert int(source_digest().removesuffix("ull"), 16) < 2**64
