"""Tables of the exact level: chosen where they pay, written and read alike by both executions, damage refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.channel_tables import WEIGHTS, WrittenTables, codes_of, frequencies_of, pack, unpack
from kvloom.codec.clusters import CLUSTERS_MAX, choose
from kvloom.codec.entropy import native
from kvloom.codec.entropy.model import SLOTS
from kvloom.errors import InvalidData

needs_native = pytest.mark.skipif(
    not native.AVAILABLE, reason="installed without a C++ compiler: NumPy is all there is"
)


def draw_symbols(seed: int, channels: int, tokens: int, kinds: int, spread: float = 6.0) -> np.ndarray:
    """Symbols of ``kinds`` kinds of channels ``[channels, tokens]``."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(30, 220, kinds)[rng.integers(0, kinds, channels)]
    return np.clip(rng.normal(centre[:, None], spread, (channels, tokens)), 0, 255).astype(np.uint8)


def count(symbols: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=256) for row in symbols]).astype(np.uint16)


def reference(function, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        return function(*arguments)


cases = st.tuples(
    st.integers(0, 2**32),
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(1, 20),
    st.sampled_from([0.0, 3.0, 300.0]),
)


@needs_native
@given(case=cases)
def test_both_executions_pack_alike(case):
    symbols = draw_symbols(*case)
    (found,) = pack([symbols], [count(symbols)])
    (expected,) = reference(pack, [symbols], [count(symbols)])
    assert found.data == expected.data
    assert found.span_log2 == expected.span_log2
    for name in ("frequencies", "run_lengths", "symbols"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("available", sorted({native.AVAILABLE, False}))
@given(case=cases)
def test_unpack_undoes_pack(available, case):
    symbols = draw_symbols(*case)
    (packed,) = pack([symbols], [count(symbols)])
    data = memoryview(packed.data + b"what follows")
    written = WrittenTables(data, *symbols.shape, len(packed.run_lengths), packed.span_log2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", available)
        tables, (one, two) = unpack([written, written])
    assert one.bytes_used == two.bytes_used == len(packed.data)
    assert np.array_equal(tables.frequencies, np.concatenate([packed.frequencies] * 2))
    assert np.array_equal(tables.decoder, type(tables)(tables.frequencies).decoder)
    assert np.array_equal(one.run_lengths, packed.run_lengths)
    assert np.array_equal(packed.symbols.reshape(symbols.shape)[one.places], symbols)
    assert (packed.frequencies.astype(int).sum(axis=1) == SLOTS).all()
    assert packed.frequencies.max() < SLOTS
    # Every symbol has a code in the table of its channel.
    table_of_row = np.repeat(np.arange(len(packed.run_lengths)), packed.run_lengths // symbols.shape[1])
    assert packed.frequencies[table_of_row[:, None], packed.symbols.reshape(symbols.shape)].all()


@needs_native
@given(
    data=st.binary(max_size=120),
    channels=st.integers(1, 30),
    tables=st.integers(1, CLUSTERS_MAX),
    span_log2=st.integers(0, 3),
)
def test_hostile_tables_end_alike(data, channels, tables, span_log2):
    written = WrittenTables(memoryview(data), channels, 5, tables, span_log2)
    results = []
    for execution in (unpack, lambda *arguments: reference(unpack, *arguments)):
        try:
            found, (item,) = execution([written])
        except InvalidData:
            results.append(None)
        else:
            results.append(
                (item.bytes_used, item.places.tobytes(), item.run_lengths.tobytes(), found.decoder.tobytes())
            )
    assert results[0] == results[1]


def test_tables_are_as_many_as_pay():
    """Channels of one kind share a table, channels of three kinds get three, and few tokens pay for none."""
    one_kind = count(draw_symbols(1, 64, 256, 1))
    assert len(choose(one_kind.astype(np.int64)).tables) == 1
    symbols = np.concatenate([draw_symbols(seed, 32, 256, 1, 3.0) for seed in (1, 4, 5)])
    clusters = choose(count(symbols).astype(np.int64))
    labels = clusters.labels.reshape(3, 32)
    assert len(clusters.tables) == 3
    assert (labels == labels[:, :1]).all()
    assert np.array_equal(clusters.tables[labels[0, 0]], count(symbols[:32]).astype(int).sum(axis=0))
    rng = np.random.default_rng(2)
    assert len(choose(count(rng.integers(90, 110, (40, 1), dtype=np.uint8)).astype(np.int64)).tables) == 1


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=256).filter(any))
def test_codes_are_near_the_counts(counts):
    table = np.zeros((1, 256), dtype=np.int64)
    table[0, : len(counts)] = counts
    codes = codes_of(table)[0]
    assert np.array_equal(codes > 0, table[0] > 0)
    top = table.max()
    heavy = table[0] * 2**11 > top
    ratio = WEIGHTS[codes][heavy] / WEIGHTS[codes.max()] * top / table[0][heavy]
    assert (np.abs(ratio - 1) <= 1 / 8 + 1 / 64).all()
    frequencies = frequencies_of(codes[None], 0)[0]
    assert int(frequencies.sum()) == SLOTS
    assert (frequencies[table[0] > 0] >= 1).all()


def test_one_symbol_leaves_room_for_another():
    codes = np.zeros((1, 256), dtype=np.uint8)
    codes[0, 7] = 61
    frequencies = frequencies_of(codes, 0)[0]
    assert (frequencies[7], frequencies[6], int(frequencies.sum())) == (SLOTS - 1, 1, SLOTS)
