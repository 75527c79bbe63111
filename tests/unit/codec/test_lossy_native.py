"""With and without the compiled core: the same bytes, and tensors that agree to a thousandth of a quantiser step."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec import LOSSY_LEVELS, KvDtype, LayerLayout, Layout, Rope, decode, encode
from kvloom.codec.channels import Angles, gather_channels
from kvloom.codec.codec import decode_into
from kvloom.codec.container import Container
from kvloom.codec.entropy import native
from kvloom.codec.entropy.model import REFINEMENTS_MAX
from kvloom.codec.generic import generic_profile
from kvloom.codec.profile import Block, Part, Profile
from kvloom.codec.quantise import FINE_MAX, symbols_of
from kvloom.errors import InvalidTensor, NonFiniteTensor

pytestmark = [
    pytest.mark.skipif(not native.AVAILABLE, reason="installed without a C++ compiler: the reference is all there is"),
    pytest.mark.filterwarnings("ignore:kvloom's compiled core"),
]

ROPE = Rope(tuple(float(x) for x in 10000.0 ** (-np.arange(6) / 6)))
ODD = Rope(tuple(float(x) for x in 1000.0 ** (-np.arange(5) / 5)), interleaved=True, first_dim=3)


def layout_of(dtype=KvDtype.FLOAT32):
    layers = (LayerLayout(2, 12, ROPE), LayerLayout(3, 14, ODD, value_head_dim=5), LayerLayout(1, 9))
    return Layout(dtype, layers)


def profile_of(layout, seed):
    """A profile with bases, gains and parts that are no multiple of anything."""
    rng = np.random.default_rng(seed)
    blocks = []
    for widths in ([31, 1, 16, 57], [18]):
        parts, at = [], 0
        for width in widths:
            mean, origin = rng.normal(size=(2, width)).astype(np.float32)
            basis = np.rint(127 * np.linalg.qr(rng.normal(size=(width, width)))[0]).astype(np.int8)
            scale = np.exp(rng.normal(size=width) - 7).astype(np.float32)
            classes = rng.integers(20, 60, width).astype(np.uint8)
            parts.append(Part(at, mean, origin, scale, basis if width != 16 else None, classes))
            at += width
        weights = (0.3 * rng.normal(size=at)).astype(np.float32)
        blocks.append(Block(tuple(parts), weights, 2.0))
    return Profile(layout, 2, REFINEMENTS_MAX, tuple(blocks))


def draw(layout, tokens, seed):
    rng = np.random.default_rng(seed)
    dtype = layout.dtype.numpy
    return tuple(
        [
            (rng.laplace(size=(spec.kv_heads, tokens, width)) * np.exp(rng.normal(size=width))).astype(dtype)
            for spec, width in zip(layout.layers, widths, strict=True)
        ]
        for widths in zip(*[(spec.head_dim, spec.value_head_dim) for spec in layout.layers], strict=True)
    )


@pytest.mark.parametrize("kind", ["generic", "calibrated"])
@pytest.mark.parametrize(("tokens", "first_position"), [(1, 0), (70, 3), (33, 0)])
def test_both_executions_make_the_same_bytes_and_read_each_others(monkeypatch, kind, tokens, first_position):
    layout = layout_of()
    profile = generic_profile(layout) if kind == "generic" else profile_of(layout, 1)
    keys, values = draw(layout, tokens, 2)
    values[0][0, tokens // 2] *= 3e4  # escapes

    def run():
        blob = encode(keys, values, layout=layout, profile=profile, first_position=first_position)
        return blob, [decode(blob, profile=profile, level=level) for level in LOSSY_LEVELS]

    blob, decoded = run()
    with monkeypatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        other_blob, other = run()
    assert blob == other_blob
    for mine, theirs in zip(decoded, other, strict=True):
        for a, b in zip([*mine[0], *mine[1]], [*theirs[0], *theirs[1]], strict=True):
            # Channels of 1 and of 3e4 stand in one head: the float32 of the rotation is what differs.
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


@pytest.mark.parametrize("dtype", list(KvDtype))
def test_decode_into_places_of_any_stride(dtype):
    layout = layout_of(dtype)
    profile = profile_of(layout, 3)
    keys, values = draw(layout, 21, 4)
    blob = encode(keys, values, layout=layout, profile=profile)
    expected = decode(blob, profile=profile, level="standard")
    rooms = []
    for arrays, step in zip(expected, (-1, 2), strict=True):
        wide = [np.zeros((a.shape[0], 50, 2 * a.shape[2]), a.dtype) for a in arrays]
        rooms.append(
            [w[:, 5:26, : a.shape[2]] if step < 0 else w[:, 5:26, ::2] for w, a in zip(wide, arrays, strict=True)]
        )
    decode_into(Container.parse(blob), rooms[0], rooms[1], profile=profile, level="standard")
    for arrays, wanted in zip(rooms, expected, strict=True):
        for array, other in zip(arrays, wanted, strict=True):
            assert np.array_equal(array.astype(np.float32), other.astype(np.float32))
            assert not array.base[:, :5].any()
            assert not array.base[:, 26:].any()


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, REFINEMENTS_MAX), st.integers(0, 2**32))
def test_the_quantisers_agree(width, tokens, refinements, seed):
    rng = np.random.default_rng(seed)
    coefficients = rng.laplace(size=(width, tokens)) * np.exp(rng.normal(size=(width, 1)) * rng.choice([1, 6]))
    exact = rng.integers(-9, 10, (width, tokens)) + 0.625  # on the edge of a cell
    coefficients = np.where(rng.random((width, tokens)) < 0.3, exact, coefficients).clip(-1e6, 1e6).astype(np.float32)
    coefficients[0, 0] = -0.0
    gains = rng.integers(0, 16, tokens).astype(np.uint8)
    mine = symbols_of([coefficients, coefficients[:1]], gains, refinements)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        theirs = symbols_of([coefficients, coefficients[:1]], gains, refinements)
    for a, b in zip(mine, theirs, strict=True):
        assert np.array_equal(a.peaks, b.peaks)
        for level, other in zip(a.levels, b.levels, strict=True):
            assert np.array_equal(level, other)


@pytest.mark.parametrize("worst", [FINE_MAX, -2.0 * FINE_MAX, 1e38, np.inf, np.nan])
def test_a_coefficient_past_the_limit_is_refused(worst):
    coefficients = np.zeros((3, 20), np.float32)
    coefficients[1, 17] = worst
    with pytest.raises(InvalidTensor, match="quantiser steps"):
        symbols_of([coefficients], np.zeros(20, np.uint8), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_way_in_is_the_references(monkeypatch, dtype):
    layout = layout_of()
    keys, values = ([array.astype(dtype) for array in arrays] for arrays in draw(layout, 40, 6))
    keys = [array[:, ::-1] for array in keys]
    mine = gather_channels(keys, values, layout, range(3), Angles(7, 40))
    monkeypatch.setattr(native, "AVAILABLE", False)
    assert np.abs(mine - gather_channels(keys, values, layout, range(3), Angles(7, 40))).max() < 1e-5
    values[1][0, 3, 2] = np.nan
    with pytest.raises(NonFiniteTensor, match="values of layer 1 hold 1 "):
        gather_channels(keys, values, layout, range(3), Angles(7, 40))
    monkeypatch.setattr(native, "AVAILABLE", True)
    with pytest.raises(NonFiniteTensor, match="values of layer 1 hold 1 "):
        gather_channels(keys, values, layout, range(3), Angles(7, 40))
