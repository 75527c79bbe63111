"""Every path of the compiled coder is the reference, whatever the job: the same bytes, symbols and refusals."""

import sys
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.codec.entropy import native, reference
from kvloom.codec.entropy.model import (
    CLASSES,
    CLASSES_PER_GAIN,
    ESCAPE,
    GAIN_MAX,
    SLOTS,
    SYMBOL_ZERO,
    TableSet,
    base_tables,
    normalise,
    refinement_tables,
    table_set,
)
from kvloom.codec.entropy.stream import CONTEXTS_MAX, DecodeJob, EncodeJob, Runs
from kvloom.errors import InvalidData

pytestmark = pytest.mark.skipif(
    not native.AVAILABLE, reason="installed without a C++ compiler: the reference is all there is"
)


def small_tables(seed: int, count: int) -> TableSet:
    """Tables of 2 to 256 symbols, from nearly even to nearly certain."""
    rng = np.random.default_rng(seed)
    frequencies = np.zeros((count, 256), dtype=np.uint16)
    for row in frequencies:
        present = rng.choice(256, size=int(rng.integers(2, 257)), replace=False)
        weights = rng.pareto(rng.choice([0.2, 1.0, 5.0]), len(present)) + 1e-6
        row[np.sort(present)] = normalise([1 + int(1000 * min(weight, 1e9)) for weight in weights])
    return table_set(frequencies)


def draw_symbols(tables: TableSet, chosen: np.ndarray, seed: int) -> np.ndarray:
    """A symbol of each table in ``chosen``, as likely as the table says."""
    slots = np.random.default_rng(seed).integers(0, SLOTS, len(chosen))
    return (tables.decoder[chosen, slots] & 0xFF).astype(np.uint8)


@st.composite
def jobs(draw: st.DrawFn) -> EncodeJob:
    seed = draw(st.integers(0, 2**32))
    tables = draw(st.sampled_from([base_tables(2), refinement_tables(1), small_tables(seed, draw(st.integers(1, 9)))]))
    context_count = draw(st.integers(1, min(len(tables.frequencies), 6)))
    last = len(tables.frequencies) - context_count
    runs = draw(
        st.lists(
            st.tuples(
                st.integers(0, last),
                st.one_of(st.integers(0, 5), st.sampled_from([16, 32, 64, 256]), st.integers(0, 400)),
            ),
            max_size=12,
        )
    )
    described = Runs(
        np.array([table for table, _ in runs], dtype=np.uint32), np.array([length for _, length in runs], np.uint32)
    )
    count = described.symbol_count
    contexts = None
    chosen = np.repeat(described.tables, described.lengths).astype(np.int64)
    if draw(st.booleans()):
        contexts = np.random.default_rng(seed + 1).integers(0, context_count, count).astype(np.uint8)
        chosen = chosen + contexts
    lanes = draw(st.one_of(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(1, 32)))
    return EncodeJob(draw_symbols(tables, chosen, seed + 2), tables, described, lanes, contexts, context_count)


def as_decode(job: EncodeJob, data: bytes) -> DecodeJob:
    return DecodeJob(data, job.tables, job.runs, job.lanes, job.contexts, job.context_count)


def outcome(job: DecodeJob, path: str | None) -> bytes | None:
    try:
        decoded = reference.decode_streams([job]) if path is None else native.decode_streams([job], path=path)
    except InvalidData:
        return None
    return decoded[0].tobytes()


@given(st.lists(jobs(), max_size=7), st.integers(1, 3))
def test_every_path_makes_the_references_bytes_and_takes_them_back(batch, threads):
    expected = reference.encode_streams(batch)
    back = [as_decode(job, data) for job, data in zip(batch, expected, strict=True)]
    for symbols, job in zip(reference.decode_streams(back), batch, strict=True):
        assert np.array_equal(symbols, job.symbols)
    for path in native.PATHS:
        assert native.encode_streams(batch, path=path, threads=threads) == expected
        for symbols, job in zip(native.decode_streams(back, path=path, threads=threads), batch, strict=True):
            assert np.array_equal(symbols, job.symbols)


@given(jobs(), st.data())
def test_every_path_refuses_what_the_reference_refuses(job, data):
    stream = bytearray(reference.encode_streams([job])[0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(stream) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "grow"])):
            case "flip":
                stream[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del stream[max(1, place) :]
            case "grow":
                stream[place:place] = bytes(data.draw(st.integers(1, 90)))
    damaged = as_decode(job, bytes(stream))
    expected = outcome(damaged, None)
    assert [outcome(damaged, path) for path in native.PATHS] == [expected] * len(native.PATHS)


@pytest.mark.parametrize("lanes", [1, 7, 8, 16, 32])
@pytest.mark.parametrize("path", native.PATHS)
def test_a_table_of_one_slot_and_one_of_all_but_one(lanes, path):
    """Frequencies 1 and 4,095 take the encoder's quotient to both of its ends."""
    tables = table_set(np.array([[SLOTS - 1, 1] + [0] * 254, [1, SLOTS - 1] + [0] * 254], dtype=np.uint16))
    symbols = np.random.default_rng(lanes).integers(0, 2, 20_000).astype(np.uint8)
    runs = Runs(np.array([0, 1], np.uint32), np.array([9_000, 11_000], np.uint32))
    job = EncodeJob(symbols, tables, runs, lanes)
    data = reference.encode_streams([job])
    assert native.encode_streams([job], path=path) == data
    assert np.array_equal(native.decode_streams([as_decode(job, data[0])], path=path)[0], symbols)


@pytest.mark.parametrize("lanes", [1, 5, 8, 16, 32])
@pytest.mark.parametrize("path", native.PATHS)
def test_a_symbol_without_a_code_is_refused_wherever_it_is(lanes, path):
    tables = refinement_tables(1)
    for place in (0, 1, 31, 32, 500, 998, 999):
        symbols = np.ones(1000, dtype=np.uint8)
        symbols[place] = 9
        job = EncodeJob(symbols, tables, Runs.of_channels([3], 1000), lanes)
        with pytest.raises(ValueError, match="no code"):
            native.encode_streams([job], path=path)


def test_one_bad_stream_of_a_batch_is_named():
    job = EncodeJob(np.ones(5000, np.uint8), refinement_tables(1), Runs.of_channels([3], 5000), 16)
    good = as_decode(job, reference.encode_streams([job])[0])
    short = replace(good, data=good.data[:-2])
    for path in native.PATHS:
        with pytest.raises(InvalidData, match="entropy stream 4 ends too early"):
            native.decode_streams([good, good, good, good, short, good, short], path=path)


@pytest.mark.parametrize("decode", [reference.decode_streams, native.decode_streams])
@pytest.mark.parametrize("encode", [reference.encode_streams, native.encode_streams])
def test_tables_and_contexts_out_of_range_are_refused(decode: Any, encode: Any):
    tables = refinement_tables(1)
    count = len(tables.frequencies)
    contexts = np.array([0, 1, 2, 1], dtype=np.uint8)
    for table, context_count in ((count - 2, 3), (count, 1), (0, 2), (2**32 - 1, 3)):
        runs = Runs(np.array([table], np.uint32), np.array([4], np.uint32))
        job = EncodeJob(np.ones(4, np.uint8), tables, runs, 2, contexts, context_count)
        with pytest.raises(ValueError, match=r"table|context|description"):
            encode([job])
        with pytest.raises(InvalidData):
            decode([as_decode(job, bytes(8))])
    job = EncodeJob(np.ones(4, np.uint8), tables, Runs.of_channels([count - 3], 4), 2, contexts, 3)
    assert np.array_equal(decode([as_decode(job, encode([job])[0])])[0], job.symbols)


@pytest.mark.parametrize(
    "wrong",
    [
        {"contexts": np.zeros(3, np.uint8)},
        {"contexts": np.zeros(4, np.uint16)},
        {"context_count": 0},
        {"context_count": CONTEXTS_MAX + 1},
        {"lanes": 0},
        {"lanes": 33},
    ],
)
def test_a_job_that_is_none_is_not_made(wrong):
    job = EncodeJob(np.ones(4, np.uint8), refinement_tables(1), Runs.of_channels([3], 4), 2)
    with pytest.raises(ValueError, match=r"lanes|contexts"):
        replace(job, **wrong)
    with pytest.raises(ValueError, match=r"lanes|contexts"):
        replace(as_decode(job, bytes(8)), **wrong)


def test_arrays_need_not_be_contiguous():
    wide = np.ones((2000, 2), dtype=np.uint8)
    runs = Runs(np.array([3, 0, 7, 0], np.uint32)[::2], np.array([1500, 0, 500, 0], np.uint32)[::2])
    job = EncodeJob(wide[:, 0], refinement_tables(1), runs, 16, wide[:, 1] * 0)
    data = native.encode_streams([job])
    assert data == reference.encode_streams([job])
    assert np.array_equal(native.decode_streams([as_decode(job, data[0])])[0], job.symbols)


def test_the_paths_are_named_and_the_best_is_told():
    assert native.PATHS[0] == "scalar"
    assert native.PATHS[-1] in native.DESCRIPTION
    with pytest.raises(ValueError, match="scalar"):
        native.decode_streams([], path="abacus")
    assert native.decode_streams([]) == []


def test_a_call_lets_go_of_the_gil(monkeypatch):
    """Another thread runs Python while the compiled core works.

    No thread is made to give the GIL up (the switch interval is longer than the test), so the other one can only run
    if the call lets go of it; a call too short for the other thread to wake up in is tried again.
    """
    assert native._library is not None
    decode = native._library.kvl_decode
    job = EncodeJob(np.ones(2**20, np.uint8), refinement_tables(1), Runs.of_channels([3], 2**20), 1)
    long_call = [as_decode(job, native.encode_streams([job])[0])] * 8
    seen: list[bool] = []

    class Watched:
        def kvl_decode(self, *arguments: Any) -> None:
            may_run, ran = threading.Lock(), threading.Event()
            may_run.acquire()
            other = threading.Thread(target=lambda: (may_run.acquire(), ran.set()))
            other.start()
            may_run.release()
            decode(*arguments)
            seen.append(ran.is_set())
            other.join()

    monkeypatch.setattr(native, "_library", Watched())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        while not any(seen) and len(seen) < 50:
            native.decode_streams(long_call, path="scalar", threads=1)
    finally:
        sys.setswitchinterval(interval)
    assert any(seen)


@given(
    data=st.data(),
    rows=st.integers(1, 12),
    period=st.sampled_from([1, 5, 31, 32, 33, 64, 100, 256]),
    refinement=st.booleans(),
    shifted=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    lanes=st.sampled_from([8, 16, 32, 32, 32]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_every_path_knows_shifts_and_notes_what_the_next_level_asks(
    data: st.DataObject, rows: int, period: int, refinement: bool, shifted: float, lanes: int, seed: int
):
    """Rows of scale classes, tokens of gains: what the lossy levels decode, searched or looked up."""
    rng = np.random.default_rng(seed)
    count = rows * period
    classes = rng.integers(0, CLASSES, rows).astype(np.uint32)
    gains = np.where(rng.random(period) < shifted, rng.integers(0, GAIN_MAX + 1, period), 0).astype(np.uint8)
    step = CLASSES_PER_GAIN * (2 if refinement else 1)
    shifts = np.uint8(step) * gains
    tables = refinement_tables(1) if refinement else base_tables(2)
    runs = Runs.equal(2 * classes if refinement else classes, period)
    parents = rng.integers(0, 2, count).astype(np.uint8) if refinement else None
    contexts = np.tile(shifts, rows) + (0 if parents is None else parents)
    context_count = (2 if refinement else 1) * CLASSES_PER_GAIN * GAIN_MAX + (2 if refinement else 1)
    symbols = draw_symbols(tables, runs.tables.repeat(period).astype(np.int64) + contexts, seed + 1)
    far = data.draw(st.sampled_from([0.0, 0.2]))
    if not refinement:
        symbols[rng.random(count) < far] = ESCAPE
    stream = reference.encode_streams([EncodeJob(symbols, tables, runs, lanes, contexts, context_count)])[0]
    places = np.flatnonzero(symbols == 0)
    zero = 0 if refinement else SYMBOL_ZERO
    wanted = (symbols != zero) | (False if parents is None else parents != 0)

    def job(parents: np.ndarray | None, opened: np.ndarray, room: np.ndarray) -> DecodeJob:
        return DecodeJob(stream, tables, runs, lanes, parents, context_count, shifts, opened, zero, room)

    for path in (None, *native.PATHS):
        decode = reference.decode_streams if path is None else partial(native.decode_streams, path=path)
        for in_place in (False, True) if refinement else (False,):
            own = None if parents is None else parents.copy()
            opened = own if in_place and own is not None else np.full(count, 9, np.uint8)
            found = np.full(len(places), 9, np.uint32)
            several = [job(own, opened, found)]
            if path and not in_place:
                several += [job(own, np.empty(count, np.uint8), np.empty(len(places), np.uint32)) for _ in range(6)]
            for decoded in decode(several):
                assert np.array_equal(decoded, symbols), path
            assert np.array_equal(opened, wanted), path
            assert np.array_equal(found, places), path
        for listed in {max(0, len(places) - 1), len(places) + 1} - {len(places)}:
            with pytest.raises(InvalidData, match="escapes"):
                decode([job(parents, np.empty(count, np.uint8), np.empty(listed, np.uint32))])
