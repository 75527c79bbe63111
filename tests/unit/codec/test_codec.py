"""The codec as its users call it: what comes back, at which level, and what is refused."""

import ml_dtypes
import numpy as np
import pytest

from kvloom import codec, limits
from kvloom.codec import EXACT, LOSSY_LEVELS, KvDtype, LayerLayout, Layout
from kvloom.codec.container import Container, join_layers, parse_header, select
from kvloom.errors import (
    ChunkTooLong,
    EmptyChunk,
    InvalidTensor,
    KeyMismatch,
    LayoutMismatch,
    LevelNotStored,
    MalformedContainer,
    NonFiniteTensor,
    ProfileMismatch,
    UnknownLevel,
)

ALL = (*LOSSY_LEVELS, EXACT)


def error_in_steps(decoded, original, profile, kind):
    """Root mean square error of each layer in quantiser steps."""
    difference = np.asarray(decoded, np.float64) - np.asarray(original, np.float64)
    steps = np.array([profile.transforms[2 * layer + kind].step for layer in range(len(difference))])
    return np.sqrt((difference**2).mean(axis=(1, 2, 3))) / steps


@pytest.mark.parametrize("dtype", list(KvDtype))
@pytest.mark.parametrize(("tokens", "first_position"), [(256, 0), (256, 512), (33, 2), (1, 0), (3, 1), (1, 9)])
def test_round_trip(kv_source, dtype, tokens, first_position):
    source = kv_source(dtype)
    profile = codec.calibrate([codec.KvSample(*source.draw(600, seed=1))], source.layout)
    keys, values = source.draw(tokens, seed=2, first_position=first_position)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, first_position=first_position, levels=ALL)
    exact_keys, exact_values = codec.decode(blob)
    assert exact_keys.tobytes() == keys.tobytes()
    assert exact_values.tobytes() == values.tobytes()
    assert exact_keys.dtype == keys.dtype
    rounding = {KvDtype.FLOAT32: 0.0, KvDtype.FLOAT16: 0.02}.get(dtype, 0.1)
    for level, bound in (("draft", 1.05), ("standard", 0.36)):
        decoded = codec.decode(blob, profile=profile, level=level)
        for kind in (0, 1):
            assert (error_in_steps(decoded[kind], (keys, values)[kind], profile, kind) <= bound + rounding).all()


def test_finer_levels_are_nearer(kv_source, profile):
    source = kv_source()
    keys, values = source.draw(256, seed=3)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile)
    errors = [
        np.mean(
            [error_in_steps(d, o, profile, k) for k, (d, o) in enumerate(zip(decoded, (keys, values), strict=True))]
        )
        for decoded in (codec.decode(blob, profile=profile, level=level) for level in LOSSY_LEVELS)
    ]
    assert errors[1] < errors[0] / 2
    bits = codec.info(blob).bits_per_value
    assert bits["draft"] < bits["standard"] < 5


def test_lossy_is_smaller_than_uncorrelated_coding_would_be(kv_source, profile):
    """The rotation earns its keep: the same steps without it cost more bits."""
    source = kv_source()
    keys, values = source.draw(512, seed=4)
    plain = codec.Profile(
        profile.layout,
        tuple(
            type(item)(item.mean, np.eye(item.basis.shape[1], dtype=np.float32)[None], item.step)
            for item in profile.transforms
        ),
        profile.dead_zone,
        profile.sink_tokens,
    )
    rotated_bytes, plain_bytes = (
        len(codec.encode(keys, values, layout=source.layout, profile=item)) for item in (profile, plain)
    )
    assert rotated_bytes < 0.8 * plain_bytes


def test_a_byte_prefix_is_a_level(kv_source, profile):
    source = kv_source()
    keys, values = source.draw(64, seed=5)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, levels=ALL)
    header = parse_header(blob)
    for level in LOSSY_LEVELS:
        prefix = blob[: header.level_end(level)]
        expected = codec.decode(blob, profile=profile, level=level)
        for cut in (prefix, codec.truncate(blob, level)):
            decoded = codec.decode(cut, profile=profile)
            assert np.array_equal(decoded[0], expected[0])
            assert np.array_equal(decoded[1], expected[1])
    exact = codec.truncate(blob, "exact")
    assert codec.decode(exact)[0].tobytes() == keys.tobytes()
    with pytest.raises(LevelNotStored, match="stored: exact"):
        codec.decode(exact, profile=profile, level="draft")


def test_layer_ranges_decode_alone_and_join(kv_source, profile):
    source = kv_source()
    keys, values = source.draw(20, seed=6)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, levels=ALL)
    header, parts = parse_header(blob), []
    for layers in (range(1), range(1, 3)):
        chosen = select(header, layers=layers)
        part = chosen.header + b"".join(blob[r.start : r.stop] for r in chosen.ranges)
        parts.append(part)
        decoded = codec.decode(part, level="exact")
        assert np.array_equal(decoded[0], keys[layers.start : layers.stop])
        expected = codec.decode(blob, profile=profile, level="standard")[1][layers.start : layers.stop]
        assert np.array_equal(codec.decode(part, profile=profile, level="standard")[1], expected)
    assert join_layers(parts) == blob


@pytest.mark.parametrize("level", ["exact", "standard"])
def test_keys_move_to_another_position(kv_source, profile, level):
    source = kv_source()
    keys, values = source.draw(40, seed=8, first_position=100)
    moved, _ = source.draw(40, seed=8, first_position=3000)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, first_position=100, levels=ALL)
    at_home = codec.decode(blob, profile=profile, level=level)
    away = codec.decode(blob, profile=profile, level=level, first_position=3000)
    assert np.array_equal(at_home[1], away[1])
    # Rotation keeps lengths: the error against the truth is the same in both places.
    home_error = np.abs(at_home[0] - keys).max()
    assert np.abs(away[0] - moved).max() <= 2 * home_error + 1e-4 * np.abs(keys).max()


def test_decode_into_slices_of_a_longer_cache(kv_source, profile):
    source = kv_source()
    keys, values = source.draw(30, seed=9, first_position=50)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, first_position=50, levels=ALL)
    for level in ("exact", "standard"):
        room = np.zeros((2, 3, 2, 100, 16), dtype=np.float32)
        codec.decode_into(
            Container.parse(blob), room[0, :, :, 50:80], room[1, :, :, 50:80], profile=profile, level=level
        )
        expected = codec.decode(blob, profile=profile, level=level)
        assert np.array_equal(room[0, :, :, 50:80], expected[0])
        assert np.array_equal(room[1, :, :, 50:80], expected[1])
        assert not room[:, :, :, :50].any()
        assert not room[:, :, :, 80:].any()


@pytest.mark.parametrize("dtype", list(KvDtype))
def test_exact_holds_every_bit_pattern(dtype):
    bits = dtype.bits
    rng = np.random.default_rng(11)
    raw = rng.integers(0, 2**bits, (1, 2, 64, 8), dtype=np.uint64).astype(f"u{bits // 8}")
    specials = np.array([0, -0.0, np.inf, -np.inf, np.nan], dtype=dtype.numpy).view(raw.dtype)
    raw.reshape(-1)[: len(specials)] = specials
    values = raw.view(dtype.numpy)
    layout = Layout.uniform(layers=1, kv_heads=2, head_dim=8, dtype=dtype)
    decoded = codec.decode(codec.encode(values, values, layout=layout))
    assert decoded[0].tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", list(KvDtype))
@pytest.mark.parametrize("fill", [0.0, 1.5])
def test_constant_tensors(dtype, fill):
    values = np.full((1, 1, 5, 4), fill, dtype=dtype.numpy)
    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=4, dtype=dtype)
    profile = codec.calibrate([codec.KvSample(values, values, 10)], layout)
    blob = codec.encode(values, values, layout=layout, profile=profile, levels=ALL, first_position=10)
    assert codec.decode(blob)[0].tobytes() == values.tobytes()
    assert np.allclose(codec.decode(blob, profile=profile, level="draft")[0].astype(float), fill, atol=0.01)


def test_outliers_escape(kv_source, profile):
    source = kv_source()
    keys, values = source.draw(64, seed=12, first_position=8)
    values[1, 0, 30, 3] = 1e5
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, first_position=8)
    decoded = codec.decode(blob, profile=profile)[1]
    step = profile.transforms[3].step
    # The basis is stored in float16: an outlier comes back to about one part in a thousand.
    assert abs(float(decoded[1, 0, 30, 3]) - 1e5) < 100 * step + 1e5 / 500
    assert (np.abs(decoded[1, :, :30] - values[1, :, :30]) < 6 * step).all()


def test_layers_of_different_shapes(rope):
    layers = (LayerLayout(2, 16, rope), LayerLayout(1, 8), LayerLayout(2, 16, codec.Rope((1.0, 0.1), interleaved=True)))
    layout = Layout(KvDtype.FLOAT32, layers)
    rng = np.random.default_rng(13)
    keys, values = (
        [rng.normal(size=(spec.kv_heads, 40, spec.head_dim)).astype(np.float32) for spec in layers] for _ in range(2)
    )
    profile = codec.calibrate([codec.KvSample(keys, values)], layout, strength_keys=0.01, strength_values=0.01)
    blob = codec.encode(keys, values, layout=layout, profile=profile, levels=ALL)
    for level, tolerance in (("exact", 0.0), ("standard", 0.05)):
        decoded = codec.decode(blob, profile=profile, level=level)
        for kind, originals in enumerate((keys, values)):
            for ours, original in zip(decoded[kind], originals, strict=True):
                assert np.abs(ours - original).max() <= tolerance


def test_wide_layers_are_coded_in_blocks(monkeypatch):
    monkeypatch.setattr(limits, "TRANSFORM_WIDTH_MAX", 16)
    layout = Layout.uniform(layers=1, kv_heads=6, head_dim=8)
    values = np.random.default_rng(14).normal(size=(1, 6, 50, 8)).astype(np.float32)
    profile = codec.calibrate([codec.KvSample(values, values)], layout, strength_values=0.02, strength_keys=0.02)
    assert profile.transforms[0].basis.shape == (3, 16, 16)
    blob = codec.encode(values, values, layout=layout, profile=profile)
    assert np.abs(codec.decode(blob, profile=profile)[1] - values).max() < 0.1


class TestRefusals:
    """Each bad input has one typed error whose line names the value and the limit."""

    @pytest.fixture
    def source(self, kv_source):
        return kv_source()

    def test_empty(self, source):
        keys = np.zeros((3, 2, 0, 16), np.float32)
        with pytest.raises(EmptyChunk, match="0 tokens, at least 1"):
            codec.encode(keys, keys, layout=source.layout)

    def test_too_long(self, source):
        keys = np.zeros((3, 2, limits.CHUNK_TOKENS_MAX + 1, 16), np.float32)
        with pytest.raises(ChunkTooLong, match=f"{limits.CHUNK_TOKENS_MAX + 1} tokens, the limit is"):
            codec.encode(keys, keys, layout=source.layout)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, source, profile, bad):
        keys, values = source.draw(8, seed=1)
        values[1, 1, 3, 5] = bad
        with pytest.raises(NonFiniteTensor, match="values of layer 1 hold 1 values"):
            codec.encode(keys, values, layout=source.layout, profile=profile)
        assert codec.decode(codec.encode(keys, values, layout=source.layout))[1].tobytes() == values.tobytes()

    @pytest.mark.parametrize(
        "change",
        [
            lambda k: k[:2],
            lambda k: k[:, :1],
            lambda k: k[..., :8],
            lambda k: k.astype(np.float64),
            lambda k: k.astype(ml_dtypes.bfloat16),
            lambda k: k[0],
        ],
    )
    def test_other_shape_or_dtype(self, source, change):
        keys, values = source.draw(8, seed=1)
        with pytest.raises(InvalidTensor):
            codec.encode(change(keys), values, layout=source.layout)
        with pytest.raises(InvalidTensor):
            codec.encode(keys, change(values), layout=source.layout)

    def test_values_of_other_length(self, source):
        keys, values = source.draw(8, seed=1)
        with pytest.raises(InvalidTensor, match=r"layout needs float32 \(2, 8, 16\)"):
            codec.encode(keys, values[:, :, :7], layout=source.layout)

    def test_profile(self, source, profile):
        keys, values = source.draw(8, seed=1)
        with pytest.raises(ProfileMismatch, match="got none"):
            codec.encode(keys, values, layout=source.layout, levels=LOSSY_LEVELS)
        blob = codec.encode(keys, values, layout=source.layout, profile=profile)
        other = codec.calibrate([codec.KvSample(keys, values)], source.layout)
        with pytest.raises(ProfileMismatch, match=profile.digest.hex()[:16]):
            codec.decode(blob, profile=other)
        with pytest.raises(ProfileMismatch, match="got none"):
            codec.decode(blob)

    def test_level_layout_and_key(self, source, profile):
        keys, values = source.draw(8, seed=1)
        blob = codec.encode(keys, values, layout=source.layout, content_key=bytes(range(32)))
        with pytest.raises(UnknownLevel, match="'fine' is unknown"):
            codec.decode(blob, level="fine")
        with pytest.raises(LevelNotStored, match="standard is not stored"):
            codec.decode(blob, level="standard", profile=profile)
        with pytest.raises(LayoutMismatch):
            codec.decode(blob, layout=Layout.uniform(layers=3, kv_heads=2, head_dim=16))
        with pytest.raises(KeyMismatch, match="not of 0000"):
            codec.decode(blob, content_key=bytes(32))
        with pytest.raises(InvalidTensor, match="coded together"):
            codec.encode(keys, values, layout=source.layout, profile=profile, levels=[codec.DRAFT])

    def test_damage(self, source, profile):
        keys, values = source.draw(8, seed=1)
        blob = bytearray(codec.encode(keys, values, layout=source.layout, profile=profile, levels=ALL))
        blob[-1] ^= 1
        with pytest.raises(MalformedContainer, match="level exact, layer 2, values"):
            codec.decode(bytes(blob))
