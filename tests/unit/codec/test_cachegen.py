"""CacheGen: what the quantiser made is what comes back, near the entropy of its tables, and nothing else decodes."""

import contextlib
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.codec import KvDtype, KvSample, Layout
from kvloom.codec.cachegen import (
    BIN_SCALES,
    CacheGenProfile,
    CacheGenUnit,
    calibrate_cachegen,
    decode_cachegen,
    encode_cachegen,
)
from kvloom.codec.cachegen_profile import channels_of
from kvloom.codec.cachegen_quantise import anchors_of, bin_of_layer, quantise
from kvloom.codec.container import Kind
from kvloom.errors import (
    ChunkTooLong,
    ConfigError,
    EmptyChunk,
    InvalidData,
    InvalidTensor,
    MissingDependency,
    NonFiniteTensor,
    ProfileMismatch,
    UnknownLevel,
)

LEVELS = len(BIN_SCALES)


@pytest.fixture(scope="module")
def source(kv_source):
    return kv_source()


@pytest.fixture(scope="module")
def cachegen(source) -> CacheGenProfile:
    return calibrate_cachegen([KvSample(*source.draw(500, seed=1)), KvSample(*source.draw(300, seed=2))], source.layout)


def symbols_of(keys, values, profile, level):
    for layer in range(len(profile.layout.layers)):
        for kind in Kind:
            table = profile.table(layer, kind).deltas[level]
            yield layer, kind, table, quantise(channels_of((keys, values)[kind][layer]), table.bin_size)


def one_layer(dtype=KvDtype.FLOAT32, *, unit=CacheGenUnit.RAW, scale=1.0):
    """A layer of two channels with its profile and 40 tokens."""
    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=2, dtype=dtype)
    drawn = (scale * np.random.default_rng(4).normal(size=(2, 1, 1, 40, 2))).astype(dtype.numpy)
    return layout, calibrate_cachegen([KvSample(*drawn)], layout, unit=unit), drawn


@given(tokens=st.integers(1, 64), level=st.integers(0, LEVELS - 1), seed=st.integers(0, 99))
def test_what_the_quantiser_made_comes_back_exactly(source, cachegen, tokens, level, seed):
    keys, values = source.draw(tokens, seed=seed)
    payloads = encode_cachegen(keys, values, layout=source.layout, profile=cachegen, level=level)
    decoded = decode_cachegen(payloads, layout=source.layout, profile=cachegen, level=level, tokens=tokens)
    for layer, kind, table, symbols in symbols_of(keys, values, cachegen, level):
        found = decoded[kind][layer]
        assert found.shape == keys[layer].shape
        assert found.dtype == source.layout.dtype.numpy
        assert np.array_equal(channels_of(found), symbols.reconstruct(table.bin_size))
    last = decode_cachegen(
        payloads[-2:], layout=source.layout, profile=cachegen, level=level, tokens=tokens, layers=[len(keys) - 1]
    )
    assert np.array_equal(last[0][0], decoded[0][-1])
    assert np.array_equal(last[1][0], decoded[1][-1])


@given(tokens=st.integers(1, 45), bin_size=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_anchors_have_8_bits_and_the_rest_is_within_half_a_bin(tokens, bin_size, seed):
    channels = np.random.default_rng(seed).normal(scale=3, size=(tokens, 7)).astype(np.float32)
    symbols = quantise(channels, bin_size)
    assert symbols.anchors.shape == (anchors_of(tokens), 7) == (-(-tokens // 10), 7)
    error = np.abs(symbols.reconstruct(bin_size) - channels)
    half_step = np.abs(channels[::10]).max(axis=1, keepdims=True) / 254
    assert (error[::10] <= 1.05 * half_step).all()
    assert (np.delete(error, np.s_[::10], axis=0) <= bin_size / 2 * (1 + 1e-5)).all()


def test_a_token_depends_on_the_anchor_of_its_group_alone():
    channels = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
    before = quantise(channels, 0.5).reconstruct(0.5)
    for changed, reach in ((13, {13}), (10, set(range(10, 20)))):
        other = channels.copy()
        other[changed] += 2.2
        after = quantise(other, 0.5).reconstruct(0.5)
        assert {int(token) for token in np.flatnonzero((before != after).any(axis=1))} <= reach
        assert (before[changed] != after[changed]).any()


def test_bins_grow_by_thirds_of_the_layers(cachegen):
    assert [bin_of_layer(layer, 32) for layer in (0, 10, 11, 21, 22, 31)] == [0.5, 0.5, 1.0, 1.0, 1.5, 1.5]
    for layer, size in enumerate((0.5, 1.0, 1.5)):
        for kind in Kind:
            sizes = [item.bin_size for item in cachegen.table(layer, kind).deltas]
            assert sizes == pytest.approx([size * scale for scale in BIN_SCALES])


@pytest.mark.parametrize("level", range(LEVELS))
def test_size_is_within_one_percent_of_the_tables_entropy(source, cachegen, level):
    keys, values = source.draw(256, seed=9)
    payloads = encode_cachegen(keys, values, layout=source.layout, profile=cachegen, level=level)
    ideal = 0.0
    for layer, kind, table, symbols in symbols_of(keys, values, cachegen, level):
        beyond = np.abs(symbols.deltas) > table.limit
        cells = np.where(beyond, 2 * table.limit + 1, symbols.deltas + table.limit)
        ideal += 32 * (1 + beyond.sum()) + 16 * len(symbols.scales)
        for frequencies, rows in (
            (cachegen.table(layer, kind).anchors, symbols.anchors + 127),
            (table.frequencies, cells),
        ):
            share = frequencies / frequencies.sum(axis=1, keepdims=True, dtype=np.float64)
            ideal -= np.log2(np.take_along_axis(share, rows.T, axis=1)).sum()
    bits = 8 * sum(map(len, payloads))
    assert ideal <= bits <= 1.01 * ideal


def test_levels_cost_more_and_err_less(source, cachegen):
    keys, values = source.draw(256, seed=10)
    bits, errors = [], []
    for level in range(LEVELS):
        payloads = encode_cachegen(keys, values, layout=source.layout, profile=cachegen, level=level)
        found, _ = decode_cachegen(payloads, layout=source.layout, profile=cachegen, level=level, tokens=256)
        bits.append(sum(map(len, payloads)))
        errors.append(float(np.square(np.stack(found) - keys).mean()))
    assert bits == sorted(set(bits))
    assert errors == sorted(set(errors), reverse=True)


def test_tables_of_the_kind_of_text_pay(source, cachegen):
    keys, values = source.draw(256, seed=11)
    other = calibrate_cachegen([KvSample(3 * keys, 3 * values)], source.layout)
    sizes = [
        sum(map(len, encode_cachegen(keys, values, layout=source.layout, profile=item, level=2)))
        for item in (cachegen, other)
    ]
    assert sizes[0] < 0.95 * sizes[1]


def test_little_calibration_text_is_enough(source, cachegen):
    """40 anchors in 255 cells: their histogram alone would price most of what comes as never seen."""
    keys, values = source.draw(256, seed=12)
    little = calibrate_cachegen([KvSample(*source.draw(400, seed=13))], source.layout)
    much = calibrate_cachegen([KvSample(*source.draw(20_000, seed=14))], source.layout)
    sizes = [
        sum(map(len, encode_cachegen(keys, values, layout=source.layout, profile=item, level=0)))
        for item in (little, much)
    ]
    assert sizes[0] < 1.04 * sizes[1]


@pytest.mark.parametrize("dtype", list(KvDtype))
def test_what_no_table_holds_is_escaped_not_clipped(dtype):
    layout, profile, drawn = one_layer(dtype)
    far = min(60_000, float(ml_dtypes.finfo(dtype.numpy).max))
    drawn[0, 0, 0, 5] = far
    drawn[0, 0, 0, 12] = -far
    payloads = encode_cachegen(*drawn, layout=layout, profile=profile, level=0)
    found, _ = decode_cachegen(payloads, layout=layout, profile=profile, level=0, tokens=40)
    # Half a bin, and the dtype's own rounding.
    assert np.abs(found[0][0].astype(np.float64) - drawn[0, 0, 0].astype(np.float64)).max() <= 0.25 + 256


def test_the_largest_float16_does_not_become_infinity():
    layout, profile, drawn = one_layer(KvDtype.FLOAT16)
    drawn[0, 0, 0, 1:] = np.finfo(np.float16).max
    drawn[0, 0, 0, 0] = 0.3
    payloads = encode_cachegen(*drawn, layout=layout, profile=profile, level=0)
    found, _ = decode_cachegen(payloads, layout=layout, profile=profile, level=0, tokens=40)
    assert np.isfinite(found[0].astype(np.float32)).all()


def test_bins_in_units_of_the_layers_deltas_follow_their_scale():
    plain, wide = (one_layer(unit=CacheGenUnit.LAYER, scale=scale)[1] for scale in (1.0, 100.0))
    for kind in Kind:
        ratio = wide.table(0, kind).deltas[0].bin_size / plain.table(0, kind).deltas[0].bin_size
        assert ratio == pytest.approx(100, rel=1e-3)


def test_tensors_that_do_not_fit_are_refused(source, cachegen, monkeypatch):
    keys, values = source.draw(12, seed=5)
    with pytest.raises(UnknownLevel, match="0 to 3"):
        encode_cachegen(keys, values, layout=source.layout, profile=cachegen, level=LEVELS)
    with pytest.raises(ProfileMismatch):
        encode_cachegen(keys, values, layout=one_layer()[0], profile=cachegen, level=0)
    with pytest.raises(InvalidTensor, match="2 layers of keys"):
        encode_cachegen(keys[:2], values, layout=source.layout, profile=cachegen, level=0)
    with pytest.raises(InvalidTensor, match="values of layer 0"):
        encode_cachegen(keys, values[:, :, :3], layout=source.layout, profile=cachegen, level=0)
    with pytest.raises(EmptyChunk):
        encode_cachegen(keys[:, :, :0], values[:, :, :0], layout=source.layout, profile=cachegen, level=0)
    with pytest.raises(InvalidData, match="1 payloads for 3 layers"):
        decode_cachegen([b""], layout=source.layout, profile=cachegen, level=0, tokens=5)
    for index, hostile, error in (
        ((0, 0, 3), np.nan, NonFiniteTensor),
        ((0, 0, 3), np.inf, NonFiniteTensor),
        ((0, 0, 0), 1e30, InvalidTensor),
        ((0, 0, 3), 1e30, InvalidTensor),
        ((0, 0, 3), 3e38, InvalidTensor),
    ):
        broken = keys.copy()
        broken[(0, *index)] = hostile
        with pytest.raises(error):
            encode_cachegen(broken, values, layout=source.layout, profile=cachegen, level=0)
    monkeypatch.setattr(limits, "CHUNK_TOKENS_MAX", 11)
    with pytest.raises(ChunkTooLong, match="12 tokens, the limit is 11"):
        encode_cachegen(keys, values, layout=source.layout, profile=cachegen, level=0)


def test_without_constriction_the_error_names_the_extra(source, cachegen, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingDependency, match=r"kvloom\[cachegen\]"):
        encode_cachegen(*source.draw(12, seed=5), layout=source.layout, profile=cachegen, level=0)


@pytest.fixture(scope="module")
def stream(source, cachegen):
    keys, values = source.draw(24, seed=6)
    keys[1, 0, 15, 3] = 4000  # one escape
    return encode_cachegen(keys, values, layout=source.layout, profile=cachegen, level=1)


@given(data=st.data())
def test_mutated_payloads_are_invalid_data_or_kv(source, cachegen, stream, data):
    payload = bytearray(stream[data.draw(st.sampled_from([0, 2, 5]))])
    for _ in range(data.draw(st.integers(0, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(0) | st.integers(0, 12))
    payload = payload[: len(payload) - cut] + data.draw(st.binary(max_size=9))
    tokens = data.draw(st.just(24) | st.integers(1, 300))
    check_hostile(source, cachegen, bytes(payload), data.draw(st.integers(0, LEVELS - 1)), tokens)


@given(payload=st.binary(max_size=300), level=st.integers(0, LEVELS - 1), tokens=st.integers(1, 50))
def test_any_bytes_are_invalid_data_or_kv(source, cachegen, payload, level, tokens):
    check_hostile(source, cachegen, payload, level, tokens)


def check_hostile(source, profile, payload, level, tokens):
    with contextlib.suppress(InvalidData):
        found = decode_cachegen(
            [payload, payload], layout=source.layout, profile=profile, level=level, tokens=tokens, layers=[1]
        )
        for arrays in found:
            assert arrays[0].shape == (2, tokens, 16)
            assert np.isfinite(arrays[0]).all()


def test_each_part_of_a_payload_is_checked(source, cachegen, stream):
    good = stream[2]
    head, scales, escape, words = good[:4], good[4:10], good[10:14], good[14:]
    assert head == (1).to_bytes(4, "little")
    for broken, why in (
        (b"", "0 bytes, its header and scales need 10"),
        (good[:9], "9 bytes, its header and scales need 10"),
        (b"\xff" * 4 + good[4:], "declares 4294967295 escapes"),
        ((2).to_bytes(4, "little") + scales + escape * 2 + words, "1 escapes, the payload declares 2"),
        (good + b"\0", "not a multiple of 4"),
        (good[:-1], "not a multiple of 4"),
        (good + b"\0" * 4, "its symbols end earlier"),
        (head + b"\x00\x7c" + scales[2:] + escape + words, "scale that is negative or not finite"),
        (head + b"\x00\x80" + scales[2:] + escape + words, "scale that is negative or not finite"),
        (head + scales + b"\0" * 4 + words, "escapes a delta that is within"),
        (head + scales + escape + b"\xff" * len(words), "words do not decode"),
    ):
        with pytest.raises(InvalidData, match=why):
            decode_cachegen([broken, good], layout=source.layout, profile=cachegen, level=1, tokens=24, layers=[1])


def test_profile_file_round_trip(cachegen):
    parsed = CacheGenProfile.from_bytes(cachegen.data)
    again = CacheGenProfile(parsed.layout, parsed.bin_scales, parsed.tables)
    assert again.data == parsed.data == cachegen.data
    assert again.digest == cachegen.digest
    assert parsed.bin_scales == cachegen.bin_scales


def test_profile_damage(cachegen):
    data = cachegen.data
    for broken in (b"", data[:11], data[:-3], b"XXXX" + data[4:], data[:6] + b"\1" + data[7:], data[:12] + b"junk"):
        with pytest.raises(InvalidData):
            CacheGenProfile.from_bytes(broken)


@given(st.binary(max_size=60), st.integers(0, 2**31))
def test_hostile_profile_content(cachegen, patch, place):
    """The frame's checksum kept right: only the content is hostile."""
    import zstandard

    content = bytearray(zstandard.ZstdDecompressor().decompress(cachegen.data[12:]))
    place %= len(content)
    content[place : place + len(patch)] = patch
    with contextlib.suppress(InvalidData):
        CacheGenProfile.from_bytes(cachegen.data[:12] + zstandard.ZstdCompressor(level=1).compress(bytes(content)))


def test_profile_bomb_is_refused_before_it_is_unpacked(cachegen, monkeypatch):
    import zstandard

    monkeypatch.setattr(limits, "PROFILE_BYTES_MAX", 100_000)
    bomb = cachegen.data[:12] + zstandard.ZstdCompressor().compress(bytes(10_000_000))
    with pytest.raises(InvalidData, match="declares 10000000 bytes, the limit is 100000"):
        CacheGenProfile.from_bytes(bomb)


@pytest.mark.parametrize("scales", [(), (1.0, 1.0), (0.5, 1.0), (1.0, 0.0), tuple(9.0 - i for i in range(9))])
def test_bin_scales_fall(source, scales):
    with pytest.raises(ConfigError, match="falling"):
        calibrate_cachegen([KvSample(*source.draw(20, seed=1))], source.layout, bin_scales=scales)


def test_calibration_needs_a_delta(source):
    for samples in ([], [KvSample(*source.draw(1, seed=1))]):
        with pytest.raises(InvalidTensor, match="no sample of 2 tokens"):
            calibrate_cachegen(samples, source.layout)
