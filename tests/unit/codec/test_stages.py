"""The stages of the codec one by one: quantiser, transform, profile file, calibration."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvloom import codec, limits
from kvloom.codec import Layout, Profile
from kvloom.codec.entropy import native
from kvloom.codec.entropy.model import SLOTS, normalise
from kvloom.codec.lossy import LossySegment, decode_lossy, encode_lossy
from kvloom.codec.profile import Transform, block_width
from kvloom.codec.quantise import NestedQuantiser, dequantise
from kvloom.errors import InvalidData, InvalidTensor, UnsupportedModel

floats = st.floats(-1e4, 1e4, width=32)


@given(hnp.arrays(np.float32, (3, 5), elements=floats), st.floats(0, 0.3))
def test_quantiser_nests(scaled, dead_zone):
    quantised = NestedQuantiser(dead_zone).quantise(scaled)
    fine = NestedQuantiser.fine_symbols(quantised.base, quantised.refinement)
    assert np.abs(quantised.refinement).max() <= 1
    # The coarse cell is the union of the three fine cells in it, and neither moves a value further than it may.
    assert (np.abs(fine - 3 * quantised.base) <= 1).all()
    bound = 0.5 + dead_zone + 1e-3 * np.maximum(1, np.abs(scaled) / 1e4)
    assert (np.abs(fine - scaled) <= bound).all()
    assert (np.sign(fine) * np.sign(scaled) >= 0).all()


@given(hnp.arrays(np.uint8, 50), st.none() | hnp.arrays(np.uint8, 50, elements=st.integers(0, 2)))
def test_dequantisers_agree(base, refinement):
    expected, escapes = dequantise(base, refinement)
    assert escapes == int((base == 0).sum())
    if native.AVAILABLE:
        (found, counted), *_ = native.dequantise([base], None if refinement is None else [refinement])
        assert counted == escapes
        assert np.array_equal(found, expected)


def test_quantiser_refuses_what_no_symbol_holds():
    with pytest.raises(InvalidTensor, match="quantiser steps, the limit is"):
        NestedQuantiser(0.1).quantise(np.array([[1e30]], dtype=np.float32))


@given(
    base=hnp.arrays(np.int32, (4, 9), elements=st.integers(-300, 300)),
    refinement=hnp.arrays(np.int8, (4, 9), elements=st.integers(-1, 1)),
    sinks=st.integers(0, 3),
)
def test_lossy_segments_keep_every_symbol(base, refinement, sinks):
    quantised = type(NestedQuantiser(0.1).quantise(np.zeros((1, 1), np.float32)))(base, refinement)
    sink_values = np.linspace(-5, 7, 4 * sinks, dtype=np.float32).reshape(4, sinks)
    drafts, standards = zip(*encode_lossy([LossySegment(sink_values, quantised)] * 2), strict=True)
    views = [memoryview(item) for item in drafts], [memoryview(item) for item in standards]
    for standard, expected in (
        (views[1], NestedQuantiser.fine_symbols(base, refinement)),
        (None, 3 * base),
    ):
        decoded = decode_lossy(views[0], standard, widths=[4, 4], tokens=9 + sinks, sink_tokens=sinks)
        for kept, coefficients in decoded:
            assert np.array_equal(coefficients, expected)
            assert np.abs(kept - sink_values).max(initial=0) <= 7 / 32767


@given(data=st.binary(max_size=300), tokens=st.integers(1, 20), sinks=st.integers(0, 4), width=st.integers(1, 9))
def test_hostile_lossy_segments(data, tokens, sinks, width):
    sinks = min(sinks, tokens)
    with contextlib.suppress(InvalidData):
        sinks_read, coefficients = decode_lossy(
            [memoryview(data)], None, widths=[width], tokens=tokens, sink_tokens=sinks
        )[0]
        assert sinks_read.shape == (width, sinks)
        assert coefficients.shape == (width, tokens - sinks)


@given(st.lists(st.integers(1, 10**12), min_size=2, max_size=256))
def test_normalise(weights):
    shares = normalise(weights)
    assert sum(shares) == SLOTS
    assert min(shares) >= 1
    assert max(shares) < SLOTS
    order = np.argsort(weights, kind="stable")
    assert all(shares[a] <= shares[b] for a, b in itertools.pairwise(order) if weights[a] < weights[b])


def test_transform_round_trip(profile, kv_source):
    _, values = kv_source().draw(50, seed=3)
    channels = values[0].transpose(1, 0, 2).reshape(50, 32)
    transform = profile.transforms[1]
    assert np.abs(transform.inverse(transform.forward(channels)) - channels).max() < 2e-3 * np.abs(channels).max()


@pytest.mark.skipif(not native.AVAILABLE, reason="installed without a C++ compiler: NumPy is all there is")
@given(blocks=st.integers(1, 3), width=st.integers(1, 70), tokens=st.integers(0, 40), seed=st.integers(0, 99))
def test_native_inverse_is_within_a_thousandth_of_a_step(blocks, width, tokens, seed):
    rng = np.random.default_rng(seed)
    basis = np.stack([np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(blocks)]).astype(np.float32)
    transform = Transform(rng.normal(size=blocks * width).astype(np.float32), basis, 0.25)
    coefficients = rng.integers(-40, 40, (blocks * width, tokens)).astype(np.float32)
    expected = transform.inverse(coefficients)
    found = native.invert([transform.inverse_job(coefficients)])[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= 1e-3 * transform.step


def test_transform_sorts_channels_by_variance(profile, kv_source):
    _, values = kv_source().draw(2000, seed=4)
    channels = values[0].transpose(1, 0, 2).reshape(2000, 32)
    spread = profile.transforms[1].forward(channels).std(axis=1)
    assert spread[0] > 5 * spread[-1]
    assert (spread[1:] <= 1.3 * spread[:-1]).all()


def test_profile_file_round_trip(profile):
    parsed = Profile.from_bytes(profile.data)
    assert parsed.digest == profile.digest
    assert parsed.data == profile.data
    assert parsed.layout == profile.layout
    for ours, theirs in zip(profile.transforms, parsed.transforms, strict=True):
        assert ours.step == theirs.step
        assert np.array_equal(ours.basis, theirs.basis)
        assert np.array_equal(ours.mean, theirs.mean)


def test_profile_damage(profile):
    data = profile.data
    for broken in (b"", data[:11], data[:-3], b"XXXX" + data[4:], data[:6] + b"\1" + data[7:], data[:12] + b"junk"):
        with pytest.raises(InvalidData):
            Profile.from_bytes(broken)


@given(st.integers(0, 2**31), st.integers(0, 7))
def test_profile_flipped_bits(profile, place, bit):
    """A few bits of a zstandard frame mean nothing; what parses in spite of a flip still is not the same profile."""
    data = bytearray(profile.data)
    data[place % len(data)] ^= 1 << bit
    with contextlib.suppress(InvalidData):
        parsed = Profile.from_bytes(bytes(data))
        assert parsed.digest != profile.digest


def test_profile_bomb_is_refused_before_it_is_unpacked(profile, monkeypatch):
    monkeypatch.setattr(limits, "PROFILE_BYTES_MAX", 20_000)
    import zstandard

    bomb = profile.data[:12] + zstandard.ZstdCompressor().compress(bytes(10_000_000))
    with pytest.raises(InvalidData, match="declares 10000000 bytes, the limit is 20000"):
        Profile.from_bytes(bomb)


def test_calibration_needs_tokens_beyond_the_sinks(kv_source):
    source = kv_source()
    with pytest.raises(InvalidTensor, match="no token beyond the first 4"):
        codec.calibrate([codec.KvSample(*source.draw(4, seed=1))], source.layout)


def test_block_width():
    assert block_width(Layout.uniform(layers=1, kv_heads=8, head_dim=128).layers[0]) == 1024
    assert block_width(Layout.uniform(layers=1, kv_heads=12, head_dim=128).layers[0]) == 768
    assert block_width(Layout.uniform(layers=1, kv_heads=1, head_dim=576).layers[0]) == 576
    with pytest.raises(UnsupportedModel, match="2048, a transform block has at most 1024"):
        block_width(Layout.uniform(layers=1, kv_heads=1, head_dim=2048).layers[0])
