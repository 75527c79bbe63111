"""Every execution of the entropy coder makes the same bytes, near the entropy, and refuses anything else."""

from collections.abc import Callable

import constriction
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec import entropy
from kvloom.codec.entropy import native, reference
from kvloom.codec.entropy.model import (
    CLASSES,
    ESCAPE,
    REFINEMENTS_MAX,
    SCALE_LOW,
    SLOTS,
    SYMBOL_ZERO,
    TABLE_CLASSES,
    base_tables,
    refinement_tables,
    table_set,
)
from kvloom.codec.entropy.stream import DecodeJob, EncodeJob, Runs, lanes_for
from kvloom.codec.quantise import quantise, split
from kvloom.errors import InvalidData

BASE_DIGESTS = [
    "f82f3ed0c85f6daaf7426a3c6e505b51",
    "bbacaa03e22e0cdddc316d7d1374a4d3",
    "0e41dff54e5d8255ce5eb7f778cc4e6f",
    "585e1964f5470486181f83149c8cd826",
]
REFINEMENT_DIGESTS = [
    "55a8125f1ab9a23f7a07c6cfc0f47466",
    "bfd731b530c90027807830b0d257514c",
    "2902ccf3b86575a766ca84bfef528373",
]

needs_native = pytest.mark.skipif(
    not native.AVAILABLE, reason="installed without a C++ compiler: the reference is all there is"
)
Decoder = Callable[[DecodeJob], np.ndarray]
DECODERS: list = [
    pytest.param(lambda job: reference.decode_streams([job])[0], id="reference"),
    *(
        pytest.param(lambda job, path=path: native.decode_streams([job], path=path)[0], id=path)
        for path in native.PATHS
    ),
]


def draw_job(seed: int, channels: int, tokens: int, lanes: int, *, refinement: bool = False) -> EncodeJob:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, channels)
    tables = refinement_tables(1) if refinement else base_tables(2)
    contexts = rng.integers(0, 2, channels * tokens).astype(np.uint8) if refinement else None
    chosen = np.repeat(2 * classes if refinement else classes, tokens) + (0 if contexts is None else contexts)
    cumulative = np.cumsum(tables.frequencies.astype(np.int64), axis=1)
    points = rng.integers(0, SLOTS, channels * tokens)
    symbols = (cumulative[chosen] <= points[:, None]).sum(axis=1).astype(np.uint8)
    runs = Runs.of_channels(2 * classes if refinement else classes, tokens)
    return EncodeJob(symbols, tables, runs, lanes, contexts)


def as_decode(job: EncodeJob, data: bytes) -> DecodeJob:
    return DecodeJob(data, job.tables, job.runs, job.lanes, job.contexts)


@needs_native
@given(
    seed=st.integers(0, 2**32),
    channels=st.integers(1, 40),
    tokens=st.integers(1, 70),
    lanes=st.sampled_from([1, 2, 4, 8, 16, 32]),
    refinement=st.booleans(),
)
def test_native_and_reference_agree(seed, channels, tokens, lanes, refinement):
    job = draw_job(seed, channels, tokens, lanes, refinement=refinement)
    data = reference.encode_streams([job])[0]
    assert {native.encode_streams([job], path=path)[0] for path in native.PATHS} == {data}
    for decoder in DECODERS:
        assert np.array_equal(decoder.values[0](as_decode(job, data)), job.symbols)


@pytest.mark.parametrize("decode", DECODERS)
def test_damage_is_invalid_data(decode: Decoder):
    job = draw_job(3, 12, 64, 16)
    data = reference.encode_streams([job])[0]
    assert np.array_equal(decode(as_decode(job, data)), job.symbols)
    for broken in (b"", data[:10], data[:-2], data[:-1], data + b"\0\0", data + b"\0"):
        with pytest.raises(InvalidData):
            decode(as_decode(job, broken))


@pytest.mark.parametrize("decode", DECODERS)
def test_flipped_bits_never_decode_to_the_same_symbols(decode: Decoder):
    job = draw_job(4, 6, 40, 4)
    data = bytearray(reference.encode_streams([job])[0])
    unseen = 0
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        try:
            decoded = decode(as_decode(job, bytes(data)))
        except InvalidData:
            pass
        else:
            unseen += 1
            assert not np.array_equal(decoded, job.symbols)
        data[bit // 8] ^= 1 << bit % 8
    # The states and the word count alone see almost every flip; checksums above see the rest.
    assert unseen < 8 * len(data) // 30


@needs_native
@given(data=st.binary(max_size=400), lanes=st.integers(1, 32), count=st.integers(0, 600), contexts=st.booleans())
def test_hostile_streams_end_alike(data, lanes, count, contexts):
    tables = refinement_tables(1) if contexts else base_tables(2)
    marks = np.ones(count, dtype=np.uint8) if contexts else None
    job = DecodeJob(data, tables, Runs.of_channels([20], count), lanes, marks)
    results = []
    for decoder in DECODERS:
        try:
            results.append(decoder.values[0](job).tobytes())
        except InvalidData:
            results.append(None)
    assert results == [results[0]] * len(DECODERS)


@pytest.mark.parametrize("refinement", [False, True])
def test_size_is_within_one_percent_of_the_entropy_and_of_constriction(refinement):
    job = draw_job(5, 192, 1024, 32, refinement=refinement)
    cost = job.tables.cost_bits()
    chosen = job.table_of_symbol.astype(np.int64) + (0 if job.contexts is None else job.contexts)
    ideal_bytes = cost[chosen, job.symbols].sum() / 8
    ours = len(reference.encode_streams([job])[0])
    coder = constriction.stream.stack.AnsCoder()
    for table in np.unique(chosen)[::-1]:
        present = np.flatnonzero(job.tables.frequencies[table])
        probabilities = job.tables.frequencies[table, present] / SLOTS
        model = constriction.stream.model.Categorical(probabilities, perfect=False)
        coder.encode_reverse(np.searchsorted(present, job.symbols[chosen == table]).astype(np.int32), model)
    oracle_bytes = 4 * len(coder.get_compressed())
    assert abs(oracle_bytes - ideal_bytes) < 0.01 * ideal_bytes
    assert ours <= 1.01 * oracle_bytes
    assert ours >= 0.99 * ideal_bytes


def test_a_symbol_without_a_code_is_refused():
    job = EncodeJob(np.full(10, 7, np.uint8), base_tables(2), Runs.of_channels([0], 10), 1)
    for encode in [reference.encode_streams] + ([native.encode_streams] if native.AVAILABLE else []):
        with pytest.raises(ValueError, match="no code"):
            encode([job])


def test_tables_are_the_formats_own():
    """These digests are part of the format: a change of any table makes stored chunks unreadable."""
    bases = [base_tables(left) for left in range(REFINEMENTS_MAX + 1)]
    refinements = [refinement_tables(left) for left in range(REFINEMENTS_MAX)]
    for made, digests in ((bases, BASE_DIGESTS), (refinements, REFINEMENT_DIGESTS)):
        found = [blake3(tables.frequencies.astype("<u2").tobytes()).hexdigest()[:32] for tables in made]
        assert found == digests
        for tables in made:
            assert (tables.frequencies.astype(int).sum(axis=1) == SLOTS).all()
    for tables in bases:
        assert tables.frequencies.shape == (TABLE_CLASSES, 256)
        assert (tables.frequencies[:, ESCAPE] > 0).all()
    for tables in refinements:
        assert tables.frequencies.shape == (2 * TABLE_CLASSES, 256)
        assert (tables.frequencies[::2, :3] > 0).all()
        assert (tables.frequencies[1::2, :2] > 0).all()


def test_tables_describe_what_the_quantiser_does_to_a_laplace_distribution():
    """A base table is the distribution of the base symbols, a refinement's the share of each child of a cell."""
    rng = np.random.default_rng(9)
    index, left = 30, 2
    scale = float(SCALE_LOW) * 2 ** (index / 6)
    # Steps of the level that the base is refined to twice: the fine step is a quarter of the base step.
    drawn = rng.laplace(scale=scale, size=(1, 400_000)).astype(np.float32) * 2**left
    coded, *refined = split(quantise(drawn, np.zeros(drawn.shape[1], np.uint8)), left)
    base = coded.astype(np.int32) - SYMBOL_ZERO
    share = np.bincount(coded.reshape(-1), minlength=256) / base.size
    assert np.abs(share - base_tables(left).frequencies[index] / SLOTS).max() < 0.005
    for row, held in ((2 * (index + 6), base == 0), (2 * (index + 6) + 1, base != 0)):
        share = np.bincount(refined[0][held], minlength=256) / held.sum()
        assert np.abs(share - refinement_tables(left - 1).frequencies[row] / SLOTS).max() < 0.02


def test_a_table_must_add_up():
    with pytest.raises(ValueError, match="4096"):
        table_set(np.full((1, 256), 15, dtype=np.uint16))
    lonely = np.zeros((1, 256), dtype=np.uint16)
    lonely[0, 3] = SLOTS
    with pytest.raises(ValueError, match="4096"):
        table_set(lonely)


@pytest.mark.parametrize(("symbols", "lanes"), [(0, 1), (4095, 1), (4096, 2), (49152, 16), (65536, 32), (10**9, 32)])
def test_lanes_grow_with_the_stream(symbols, lanes):
    assert lanes_for(symbols) == lanes


def test_without_the_compiled_core_it_says_so_once(monkeypatch):
    job = draw_job(6, 4, 10, 2)
    monkeypatch.setattr(native, "AVAILABLE", False)
    entropy._say_once.cache_clear()

    def code_twice() -> np.ndarray:
        return entropy.decode_streams([as_decode(job, entropy.encode_streams([job])[0])])[0]

    with pytest.warns(RuntimeWarning, match="compiled core is not installed") as told:
        decoded = code_twice()
    assert np.array_equal(decoded, job.symbols)
    assert len(told) == 1
