"""The codec as its users call it: what comes back, at which level, and what is refused."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from kvloom import codec, limits
from kvloom.codec import EXACT, LOSSY_LEVELS, KvDtype, LayerLayout, Layout
from kvloom.codec.container import Container, ContainerWriter, Kind, join_layers, parse_header, select
from kvloom.errors import (
    ChunkTooLong,
    EmptyChunk,
    InvalidData,
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


def relative_errors(decoded, original):
    """Root mean square error of each layer of keys or values over the spread of its numbers."""
    difference = np.asarray(decoded, np.float64) - np.asarray(original, np.float64)
    spread = np.asarray(original, np.float64).std(axis=(1, 2, 3))
    return np.sqrt((difference**2).mean(axis=(1, 2, 3))) / spread


@pytest.mark.parametrize("dtype", list(KvDtype))
@pytest.mark.parametrize(("tokens", "first_position"), [(256, 0), (256, 512), (33, 2), (1, 0), (3, 1), (1, 9)])
def test_round_trip(kv_source, dtype, tokens, first_position):
    source = kv_source(dtype)
    profile = codec.calibrate([codec.KvSample(*source.draw(600, seed=1))], source.layout, block_channels=128)
    keys, values = source.draw(tokens, seed=2, first_position=first_position)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, first_position=first_position, levels=ALL)
    exact_keys, exact_values = codec.decode(blob)
    assert exact_keys.tobytes() == keys.tobytes()
    assert exact_values.tobytes() == values.tobytes()
    assert exact_keys.dtype == keys.dtype
    if tokens < 3:
        return  # a handful of numbers has no spread to speak of
    for level, bound in (("draft", 1.0), ("economy", 0.5), ("standard", 0.25), ("fine", 0.15)):
        decoded = codec.decode(blob, profile=profile, level=level)
        for kind in (0, 1):
            assert (relative_errors(decoded[kind], (keys, values)[kind]) <= bound).all()


def test_finer_levels_are_nearer(kv_source, profile):
    source = kv_source()
    keys, values = source.draw(256, seed=3)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile)
    errors = [
        np.mean([relative_errors(d, o) for d, o in zip(decoded, (keys, values), strict=True)])
        for decoded in (codec.decode(blob, profile=profile, level=level) for level in LOSSY_LEVELS)
    ]
    for coarser, finer in pairwise(errors):
        assert finer < 0.65 * coarser
    bits = codec.info(blob).bits_per_value
    assert [bits[str(level)] for level in LOSSY_LEVELS] == sorted(bits.values())
    assert bits["fine"] - bits["standard"] < 1.1


def test_lossy_is_smaller_than_uncorrelated_coding_would_be(kv_source, profile):
    """The transform earns its keep: the same error without it costs more bits."""
    source = kv_source()
    keys, values = source.draw(512, seed=4)
    plain = codec.generic_profile(source.layout)
    transformed, by_channel = (
        codec.encode(keys, values, layout=source.layout, profile=item) for item in (profile, plain)
    )
    errors = [
        np.mean(relative_errors(codec.decode(blob, profile=profile, level="standard")[0], keys))
        for blob in (transformed, by_channel)
    ]
    assert errors[0] < 1.2 * errors[1]
    assert codec.info(transformed).bits_per_value["standard"] < 0.9 * codec.info(by_channel).bits_per_value["standard"]


def test_layers_that_resemble_each_other_are_cheaper_in_one_block(rope):
    layout = codec.Layout.uniform(layers=4, kv_heads=1, head_dim=8, rope=None)
    mix = np.random.default_rng(1).normal(size=(4, 64, 3)) / 2

    def draw(seed, tokens=600):
        hidden = np.random.default_rng(seed).laplace(size=(3, tokens))
        noise = 0.05 * np.random.default_rng(seed + 100).normal(size=(4, 16, tokens))
        both = np.einsum("lcj,jt->lct", mix[:, :16], hidden) + noise
        both = both.reshape(4, 2, 1, 8, tokens).transpose(1, 0, 2, 4, 3).astype(np.float32)
        return both[0], both[1]

    sizes = []
    for channels in (16, 64):
        profile = codec.calibrate([codec.KvSample(*draw(1, 2000))], layout, block_channels=channels)
        assert profile.block_layers == channels // 16
        keys, values = draw(2)
        blob = codec.encode(keys, values, layout=layout, profile=profile)
        decoded = codec.decode(blob, profile=profile, level="standard")
        assert relative_errors(decoded[0], keys).max() < 0.25
        sizes.append(codec.info(blob).bits_per_value["standard"])
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("generic", [False, True])
def test_a_level_is_the_same_whether_finer_ones_are_there_or_not(kv_source, profile, generic):
    """Nothing drifts: what a level decodes to and costs does not depend on refinements."""
    source = kv_source()
    used = codec.generic_profile(source.layout) if generic else profile
    keys, values = source.draw(90, seed=15)
    whole = codec.encode(keys, values, layout=source.layout, profile=used)
    assert codec.encode(keys, values, layout=source.layout, profile=used) == whole
    for level in LOSSY_LEVELS:
        alone = codec.encode(keys, values, layout=source.layout, profile=used, levels=[level])
        assert parse_header(alone).levels == LOSSY_LEVELS[: level.code + 1]
        assert alone == codec.truncate(whole, level)
        for kind in (0, 1):
            mine, theirs = (codec.decode(blob, profile=used, level=level)[kind] for blob in (alone, whole))
            assert mine.tobytes() == theirs.tobytes()


def test_a_level_needs_only_its_bytes(kv_source, profile):
    """Every byte that a level or a block does not need may be anything."""
    source = kv_source()
    keys, values = source.draw(50, seed=16)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, levels=ALL)
    header = parse_header(blob)
    for level in LOSSY_LEVELS:
        for layers in (None, range(1, 2), range(2, 3)):
            chosen = select(header, level=level, layers=layers)
            torn = bytearray(np.random.default_rng(1).bytes(len(blob)))
            for item in chosen.ranges:
                torn[item.start : item.stop] = blob[item.start : item.stop]
            part = chosen.header + b"".join(torn[item.start : item.stop] for item in chosen.ranges)
            held = range(3) if layers is None else header.whole_blocks(layers)
            decoded = codec.decode(part, profile=profile)
            expected = codec.decode(blob, profile=profile, level=level)
            for kind in (0, 1):
                assert np.array_equal(decoded[kind], expected[kind][held.start : held.stop])


def test_only_the_token_at_position_0_has_the_mean_of_such_tokens(kv_source):
    source = kv_source()
    samples = []
    for seed in range(6):
        keys, values = source.draw(100, seed=seed)
        values[:, :, 0] += 50
        samples.append(codec.KvSample(keys, values))
    profile = codec.calibrate(samples, source.layout)
    for block in profile.blocks:
        assert np.abs(block.parts[0].origin_mean - block.parts[0].mean).max() > 40
    keys, values = source.draw(40, seed=17)
    sizes = {}
    for offset in (0.0, 50.0):
        for first_position in (0, 1):
            moved = values.copy()
            moved[:, :, 0] += offset
            blob = codec.encode(keys, moved, layout=source.layout, profile=profile, first_position=first_position)
            decoded = codec.decode(blob, profile=profile)[1]
            assert np.abs(decoded - moved).max() < 3
            sizes[offset, first_position] = codec.info(blob).level_bytes["draft"]
    assert sizes[50.0, 0] < sizes[50.0, 1]
    assert sizes[0.0, 1] < sizes[0.0, 0]
    # Moved from position 0 to another, a token keeps what it was coded with.
    blob = codec.encode(keys, values, layout=source.layout, profile=profile)
    here, there = (codec.decode(blob, profile=profile, first_position=at)[1] for at in (0, 700))
    assert np.array_equal(here, there)


SMOLLM2 = Layout.uniform(layers=30, kv_heads=3, head_dim=64)


def test_overhead_at_smollm2s_layout_is_small():
    """Header, heads, classes, gains and lane states of a chunk of 256 tokens: at most 0.06 bit per value."""
    rng = np.random.default_rng(18)
    mix = rng.normal(size=(30, 2, 192, 192)) * np.exp(-np.arange(192) / 40)

    def draw(tokens):
        noise = rng.laplace(size=(30, 2, tokens, 192))
        both = np.einsum("lktc,lkdc->lktd", noise, mix).reshape(30, 2, tokens, 3, 64).transpose(1, 0, 3, 2, 4)
        return both.astype(np.float32)

    profile = codec.calibrate([codec.KvSample(*draw(600))], SMOLLM2)
    assert profile.block_layers == 6
    for used in (profile, codec.generic_profile(SMOLLM2)):
        found = codec.info(codec.encode(*draw(256), layout=SMOLLM2, profile=used, first_position=256))
        values = 256 * SMOLLM2.values_per_token
        for level in LOSSY_LEVELS:
            assert 0 < 8 * found.side_bytes[str(level)] / values <= 0.06
            assert found.side_bytes[str(level)] < found.level_bytes[str(level)]


def test_side_bytes_are_counted_once_and_grow_with_the_level(kv_source, profile):
    source = kv_source()
    blob = codec.encode(*source.draw(60, seed=19), layout=source.layout, profile=profile, levels=ALL)
    found = codec.info(blob)
    assert list(found.side_bytes) == [str(level) for level in LOSSY_LEVELS]
    sizes = list(found.side_bytes.values())
    assert sizes == sorted(sizes)
    assert sizes[0] > parse_header(codec.truncate(blob, "draft")).header_bytes
    for level in LOSSY_LEVELS:
        assert codec.info(codec.truncate(blob, level)).side_bytes == {
            str(item): found.side_bytes[str(item)] for item in LOSSY_LEVELS if item < level
        } | {str(level): found.side_bytes[str(level)]}


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
    for layers in (range(2), range(2, 3)):
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


@pytest.mark.parametrize("dtype", [KvDtype.FLOAT32, KvDtype.BFLOAT16])
def test_exact_is_packed_where_it_pays_or_where_it_is_asked_for(dtype):
    values = np.random.default_rng(12).standard_normal((1, 2, 256, 64)).astype(dtype.numpy)
    layout = Layout.uniform(layers=1, kv_heads=2, head_dim=64, dtype=dtype)
    packed, plain, default = (
        codec.encode(values, values, layout=layout, exact_packed=choice) for choice in (True, False, None)
    )
    assert len(packed) < 0.9 * 2 * values.nbytes < 2 * values.nbytes < len(plain)
    assert default == (plain if dtype is KvDtype.FLOAT32 else packed)
    for blob in (packed, plain):
        assert codec.decode(blob)[1].tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", list(KvDtype))
def test_exact_is_seen_where_it_lies_unless_it_is_packed(kv_source, dtype):
    source = kv_source(dtype)
    keys, values = source.draw(40, seed=6)
    plain, packed = (
        Container.parse(codec.encode(keys, values, layout=source.layout, levels={EXACT}, exact_packed=packed))
        for packed in (False, True)
    )
    views = codec.exact_views(plain)
    for found, expected in zip(views, (keys, values), strict=True):
        assert [view.tobytes() for view in found] == [array.tobytes() for array in expected]
        assert all(view.dtype == keys.dtype and not view.flags.writeable for view in found)
        assert all(np.shares_memory(view, np.frombuffer(plain.data, np.uint8)) for view in found)
    assert codec.exact_views(packed) is None
    with pytest.raises(LevelNotStored):
        codec.exact_views(Container.parse(codec.encode(keys, values, layout=source.layout, levels=LOSSY_LEVELS)))


def test_layers_without_values_are_not_seen_where_they_lie():
    latent = LayerLayout(kv_heads=1, head_dim=8, value_head_dim=0)
    layout = Layout(KvDtype.FLOAT32, (latent,))
    blob = codec.encode(
        [np.ones((1, 5, 8), np.float32)],
        [np.ones((1, 5, 0), np.float32)],
        layout=layout,
        levels={EXACT},
        exact_packed=False,
    )
    assert codec.exact_views(Container.parse(blob)) is None


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
    # One token pays for its outlier; nobody else notices.
    assert abs(float(decoded[1, 0, 30, 3]) - 1e5) < 1e5 / 50
    plain = values.copy()
    plain[1, 0, 30, 3] = 0
    alone = codec.decode(
        codec.encode(keys, plain, layout=source.layout, profile=profile, first_position=8), profile=profile
    )[1]
    assert (np.abs(decoded[:, :, :30] - values[:, :, :30]) < np.abs(alone - plain).max() + 0.5).all()


def test_layers_of_different_shapes(rope):
    layers = (LayerLayout(2, 16, rope), LayerLayout(1, 8), LayerLayout(2, 16, codec.Rope((1.0, 0.1), interleaved=True)))
    layout = Layout(KvDtype.FLOAT32, layers)
    rng = np.random.default_rng(13)
    keys, values = (
        [rng.normal(size=(spec.kv_heads, 40, spec.head_dim)).astype(np.float32) for spec in layers] for _ in range(2)
    )
    profile = codec.calibrate([codec.KvSample(keys, values)], layout, step_scale=0.02)
    blob = codec.encode(keys, values, layout=layout, profile=profile, levels=ALL)
    for level, tolerance in (("exact", 0.0), ("standard", 0.05)):
        decoded = codec.decode(blob, profile=profile, level=level)
        for kind, originals in enumerate((keys, values)):
            for ours, original in zip(decoded[kind], originals, strict=True):
                assert np.abs(ours - original).max() <= tolerance


@pytest.mark.parametrize("dtype", [KvDtype.FLOAT8_E4M3FN, KvDtype.FLOAT8_E5M2])
def test_what_a_narrow_dtype_cannot_hold_becomes_its_largest_number(dtype):
    largest = float(ml_dtypes.finfo(dtype.numpy).max)
    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=8, dtype=dtype)
    signs = np.random.default_rng(21).choice([-largest, largest], (1, 1, 64, 8)).astype(dtype.numpy)
    blob = codec.encode(signs, signs, layout=layout, profile=codec.generic_profile(layout))
    decoded = codec.decode(blob, level="economy")[0].astype(np.float32)
    assert np.isfinite(decoded).all()
    assert (decoded * signs.astype(np.float32) > 0).all()
    assert np.abs(decoded).max() == largest


def test_wide_layers_are_transformed_in_parts():
    layout = Layout.uniform(layers=1, kv_heads=6, head_dim=8)
    values = np.random.default_rng(14).normal(size=(1, 6, 50, 8)).astype(np.float32)
    profile = codec.calibrate([codec.KvSample(values, values)], layout, block_channels=16, step_scale=0.05)
    assert [part.width for part in profile.blocks[0].parts] == [16] * 6
    blob = codec.encode(values, values, layout=layout, profile=profile)
    assert np.abs(codec.decode(blob, profile=profile)[1] - values).max() < 0.05


def test_decoding_more_than_the_limit_is_refused_before_anything_is_allocated():
    layout = Layout.uniform(layers=limits.LAYERS_MAX, kv_heads=limits.KV_HEADS_MAX, head_dim=limits.HEAD_DIM_MAX)
    writer = ContainerWriter(layout, tokens=limits.CHUNK_TOKENS_MAX, first_position=0)
    for layer in range(limits.LAYERS_MAX):
        for kind in Kind:
            writer.put(EXACT, layer, kind, b"")
    with pytest.raises(InvalidData, match=str(limits.DECODED_BYTES_MAX)):
        codec.decode(writer.commit())


def test_more_levels_than_the_profile_has_are_invalid_data(kv_source):
    source = kv_source()
    keys, values = source.draw(20, seed=20)
    few = codec.calibrate([codec.KvSample(keys, values)], source.layout, refinements=1)
    blob = codec.encode(keys, values, layout=source.layout, profile=few)
    assert parse_header(blob).levels == LOSSY_LEVELS[:2]
    with pytest.raises(InvalidTensor, match="the profile has 2 levels"):
        codec.encode(keys, values, layout=source.layout, profile=few, levels=[codec.FINE])
    container = Container.parse(blob)
    writer = ContainerWriter(
        source.layout, tokens=20, first_position=0, block_layers=few.block_layers, profile_digest=few.digest
    )
    for level in LOSSY_LEVELS:
        for item in container.header.segments:
            if item.level == LOSSY_LEVELS[min(level.code, 1)]:
                writer.put(level, item.layer, None, bytes(container.segment(item.level, item.layer)))
    with pytest.raises(InvalidData, match="its profile has 2 levels"):
        codec.decode(writer.commit(), profile=few)


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
        generic = codec.encode(keys, values, layout=source.layout, levels=LOSSY_LEVELS)
        assert codec.info(generic).header.profile_digest == codec.generic_profile(source.layout).digest
        blob = codec.encode(keys, values, layout=source.layout, profile=profile)
        other = codec.calibrate([codec.KvSample(keys, values)], source.layout)
        with pytest.raises(ProfileMismatch, match=profile.digest.hex()[:16]):
            codec.decode(blob, profile=other)
        with pytest.raises(ProfileMismatch, match="got none"):
            codec.decode(blob)

    def test_level_layout_and_key(self, source, profile):
        keys, values = source.draw(8, seed=1)
        blob = codec.encode(keys, values, layout=source.layout, content_key=bytes(range(32)))
        with pytest.raises(UnknownLevel, match="'finest' is unknown"):
            codec.decode(blob, level="finest")
        with pytest.raises(LevelNotStored, match="standard is not stored"):
            codec.decode(blob, level="standard", profile=profile)
        with pytest.raises(LayoutMismatch):
            codec.decode(blob, layout=Layout.uniform(layers=3, kv_heads=2, head_dim=16))
        with pytest.raises(KeyMismatch, match="not of 0000"):
            codec.decode(blob, content_key=bytes(32))
        with pytest.raises(InvalidTensor, match="0 levels"):
            codec.encode(keys, values, layout=source.layout, profile=profile, levels=[])

    def test_damage(self, source, profile):
        keys, values = source.draw(8, seed=1)
        blob = bytearray(codec.encode(keys, values, layout=source.layout, profile=profile, levels=ALL))
        blob[-1] ^= 1
        with pytest.raises(MalformedContainer, match="level exact, layer 2, values"):
            codec.decode(bytes(blob))
