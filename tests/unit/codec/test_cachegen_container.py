"""CacheGen in a container: levels that stand alone, any of them, beside ``exact``, and recognised by whoever reads."""

import itertools

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom import codec
from kvloom.codec import DRAFT, ECONOMY, EXACT, FINE, LOSSY_LEVELS, STANDARD, KvSample, Layout, LossyCodec
from kvloom.codec.cachegen import BIN_SCALES, calibrate_cachegen, decode_cachegen, encode_cachegen
from kvloom.codec.container import Container, ContainerWriter, join_layers, parse_header, select, verify
from kvloom.codec.header import checksum
from kvloom.codec.layout import Kind, LayerLayout
from kvloom.codec.rope import rotate
from kvloom.errors import (
    ConfigError,
    InvalidData,
    InvalidTensor,
    LevelNotStored,
    MalformedContainer,
    ProfileMismatch,
    TruncatedBody,
)

TOKENS = 30
ALL = (*LOSSY_LEVELS, EXACT)


@pytest.fixture(scope="module")
def source(kv_source):
    return kv_source()


@pytest.fixture(scope="module")
def cachegen(source):
    return calibrate_cachegen([KvSample(*source.draw(400, seed=1))], source.layout)


@pytest.fixture(scope="module")
def chunk(source):
    return source.draw(TOKENS, seed=2)


@pytest.fixture(scope="module")
def blob(source, cachegen, chunk):
    return codec.encode(*chunk, layout=source.layout, profile=cachegen, levels=ALL)


def decoded_alone(source, cachegen, chunk, level):
    payloads = encode_cachegen(*chunk, layout=source.layout, profile=cachegen, level=level.code)
    return decode_cachegen(payloads, layout=source.layout, profile=cachegen, level=level.code, tokens=TOKENS)


@pytest.mark.parametrize("level", LOSSY_LEVELS)
def test_each_level_decodes_from_the_container_and_alone(source, cachegen, chunk, blob, level):
    expected = decoded_alone(source, cachegen, chunk, level)
    alone = codec.truncate(blob, level)
    assert parse_header(alone).levels == (level,)
    assert parse_header(alone).codec is LossyCodec.CACHEGEN
    for data in (blob, alone):
        found = codec.decode(data, profile=cachegen, level=level)
        for kind in Kind:
            assert np.array_equal(found[kind], np.stack(expected[kind]))


def test_exact_stands_beside_and_is_bit_exact_without_a_profile(chunk, blob):
    for data in (blob, codec.truncate(blob, EXACT)):
        found = codec.decode(data)
        assert found[0].tobytes() == chunk[0].tobytes()
        assert found[1].tobytes() == chunk[1].tobytes()
    alone = parse_header(codec.truncate(blob, EXACT))
    assert alone.codec is LossyCodec.KVLOOM, "exact has no codec of its own: the same bytes either way"


@given(levels=st.sets(st.sampled_from(ALL), min_size=1))
def test_any_subset_of_levels_is_a_container(source, cachegen, chunk, levels):
    data = codec.encode(*chunk, layout=source.layout, profile=cachegen, levels=levels)
    header = verify(data)
    assert header.levels == tuple(sorted(levels))
    lossy = levels - {EXACT}
    assert codec.info(data).codec is (LossyCodec.CACHEGEN if lossy else None)
    assert header.block_layers == 0
    for level in lossy:
        codec.decode(data, profile=cachegen, level=level)
    for level in set(ALL) - levels:
        with pytest.raises(LevelNotStored):
            codec.decode(data, profile=cachegen, level=level)


def test_a_byte_prefix_that_ends_at_a_level_is_a_container(cachegen, blob):
    header = parse_header(blob)
    for count, level in enumerate(LOSSY_LEVELS, start=1):
        cut = blob[: header.level_end(level)]
        assert verify(cut).levels == LOSSY_LEVELS[:count]
        assert np.array_equal(
            codec.decode(cut, profile=cachegen, level=level)[0], codec.decode(blob, profile=cachegen, level=level)[0]
        )
        with pytest.raises(TruncatedBody):
            verify(cut[:-1])


def test_layers_are_selected_and_joined(source, cachegen, blob):
    header = parse_header(blob)
    parts = []
    for layers in (range(1), range(1, 3)):
        selection = select(header, layers=layers, level=ECONOMY)
        parts.append(selection.header + b"".join(blob[item.start : item.stop] for item in selection.ranges))
        assert verify(parts[-1]).layers == layers, "no blocks: a layer range is not widened"
    assert join_layers(parts) == codec.truncate(blob, ECONOMY)
    alone = codec.decode(parts[1], profile=cachegen)
    assert np.array_equal(alone[0], codec.decode(blob, profile=cachegen, level=ECONOMY)[0][1:])


def test_keys_move_to_another_position(source, cachegen, chunk, blob):
    stayed = codec.decode(blob, profile=cachegen, level=STANDARD)
    moved = codec.decode(blob, profile=cachegen, level=STANDARD, first_position=40)
    for layer, spec in enumerate(source.layout.layers):
        expected = rotate(stayed[0][layer], spec.rope, np.full(1, 40))
        assert np.abs(moved[0][layer] - expected).max() < 1e-4
    assert np.array_equal(moved[1], stayed[1])


def test_info_counts_each_level_alone(blob):
    info = codec.info(blob)
    assert info.codec is LossyCodec.CACHEGEN
    bits = [info.bits_per_value[level.name] for level in LOSSY_LEVELS]
    assert bits == sorted(set(bits))
    for level in LOSSY_LEVELS:
        assert info.level_bytes[level.name] == len(codec.truncate(blob, level))


def test_codec_and_profile_must_agree(source, cachegen, profile, chunk, blob):
    arguments = {"layout": source.layout, "levels": [STANDARD]}
    named = codec.encode(*chunk, profile=cachegen, codec="cachegen", **arguments)
    assert named == codec.encode(*chunk, profile=cachegen, **arguments)
    assert named == codec.encode(*chunk, profile=cachegen, codec=LossyCodec.CACHEGEN, **arguments)
    with pytest.raises(ProfileMismatch, match=r"codec kvloom asked for, the profile is cachegen's"):
        codec.encode(*chunk, profile=cachegen, codec="kvloom", **arguments)
    with pytest.raises(ProfileMismatch, match=r"codec cachegen asked for, the profile is kvloom's"):
        codec.encode(*chunk, profile=profile, codec="cachegen", **arguments)
    with pytest.raises(ConfigError, match=r"'zip' is not one of kvloom, cachegen"):
        codec.encode(*chunk, profile=cachegen, codec="zip", **arguments)
    for levels in ([STANDARD], None):
        with pytest.raises(ProfileMismatch, match="got none"):
            codec.encode(*chunk, codec="cachegen", layout=source.layout, levels=levels)
    other = calibrate_cachegen([KvSample(*chunk)], source.layout)
    for wrong in (None, profile, other):
        with pytest.raises(ProfileMismatch, match=cachegen.digest.hex()[:16]):
            codec.decode(blob, profile=wrong, level=DRAFT)
    ours = codec.encode(*chunk, profile=profile, layout=source.layout)
    with pytest.raises(ProfileMismatch):
        codec.decode(ours, profile=cachegen)


def test_a_profile_of_fewer_levels_codes_those(source, chunk):
    two = calibrate_cachegen([KvSample(*source.draw(100, seed=1))], source.layout, bin_scales=(2.0, 1.0))
    assert two.levels == (DRAFT, ECONOMY)
    assert parse_header(codec.encode(*chunk, layout=source.layout, profile=two)).levels == (DRAFT, ECONOMY)
    with pytest.raises(InvalidTensor, match="level fine asked for, the profile has 2 levels"):
        codec.encode(*chunk, layout=source.layout, profile=two, levels=[FINE])


def test_both_kinds_of_profile_file_are_told_apart(cachegen, profile):
    assert codec.parse_profile(cachegen.data).digest == cachegen.digest == blake3(cachegen.data).digest()
    assert codec.parse_profile(profile.data).digest == profile.digest
    assert codec.parse_profile(cachegen.data).codec is LossyCodec.CACHEGEN
    assert codec.parse_profile(profile.data).codec is LossyCodec.KVLOOM
    for junk in (b"", b"KVLX" + cachegen.data[4:]):
        with pytest.raises(InvalidData, match="expected one of"):
            codec.parse_profile(junk)


def test_layers_unlike_each_other_and_layers_without_values():
    layout = Layout(
        codec.KvDtype.FLOAT32,
        (LayerLayout(2, 4), LayerLayout(1, 6, value_head_dim=3), LayerLayout(1, 5, value_head_dim=0)),
    )
    rng = np.random.default_rng(3)
    drawn = [
        [rng.normal(size=(spec.kv_heads, 25, spec.head_dim_of(kind))).astype(np.float32) for spec in layout.layers]
        for kind in Kind
    ]
    profile = codec.parse_profile(calibrate_cachegen([KvSample(*drawn)], layout).data)
    data = codec.encode(*drawn, layout=layout, profile=profile, levels=[FINE, EXACT])
    assert next(item for item in parse_header(data).segments if (item.layer, item.kind) == (2, Kind.VALUES)).length == 0
    found = codec.decode(data, profile=profile, level=FINE)
    for kind, layer in itertools.product(Kind, range(3)):
        assert found[kind][layer].shape == drawn[kind][layer].shape
        # Half a bin of the deepest third, and the anchors' own error.
        assert (
            np.abs(found[kind][layer] - drawn[kind][layer]).max(initial=0.0) <= 1.5 * BIN_SCALES[FINE.code] / 2 + 0.05
        )


def rewritten(data: bytes, *, flags: int | None = None, levels: int | None = None, blocks: int | None = None) -> bytes:
    """``data`` with other header fields and a checksum that holds."""
    head = bytearray(data[: parse_header(data).header_bytes])
    for offset, value in ((6, flags), (22, levels), (23, blocks)):
        if value is not None:
            head[offset] = value
    head[-8:] = checksum(head[:-8])
    return bytes(head) + data[len(head) :]


def test_flags_that_do_not_fit_are_refused(source, cachegen, profile, chunk, blob):
    ours = codec.encode(*chunk, layout=source.layout, profile=profile)
    exact = codec.encode(*chunk, layout=source.layout)
    assert rewritten(blob, flags=1) == blob
    for broken, why in (
        (rewritten(blob, flags=0), "neither is known"),
        (rewritten(blob, flags=3), "flags 0 and 1"),
        (rewritten(blob, flags=2), "flags 0 and 1"),
        (rewritten(blob, levels=3), "declares 3"),
        (rewritten(blob, blocks=1), "blocks of 1 layers"),
        (rewritten(ours, flags=1), "neither is known"),
        (rewritten(exact, flags=1), "has no lossy level"),
    ):
        with pytest.raises(MalformedContainer, match=why):
            verify(broken)


def test_ours_needs_every_coarser_level(source):
    """What CacheGen may do, ours may not: a refinement without its base decodes to nothing."""
    for mode in LossyCodec:
        writer = ContainerWriter(
            source.layout,
            tokens=TOKENS,
            first_position=0,
            block_layers=0 if mode is LossyCodec.CACHEGEN else 3,
            profile_digest=bytes([1] * 32),
            codec=mode,
        )
        if mode is LossyCodec.CACHEGEN:
            for layer, kind in itertools.product(range(3), Kind):
                writer.put(STANDARD, layer, kind, b"x")
            assert verify(writer.commit()).levels == (STANDARD,)
        else:
            writer.put(STANDARD, 0, None, b"x")
            with pytest.raises(MalformedContainer, match="holds lossy levels"):
                writer.commit()


@given(data=st.data())
def test_hostile_segments_with_checksums_intact_are_invalid_data(source, cachegen, blob, data):
    container = Container.parse(blob)
    level = data.draw(st.sampled_from(LOSSY_LEVELS))
    writer = ContainerWriter(
        source.layout,
        tokens=data.draw(st.just(TOKENS) | st.integers(1, 60)),
        first_position=0,
        profile_digest=cachegen.digest,
        codec=LossyCodec.CACHEGEN,
    )
    for layer, kind in itertools.product(range(3), Kind):
        payload = bytearray(container.segment(level, layer, kind))
        for _ in range(data.draw(st.integers(0, 2))):
            payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
        writer.put(level, layer, kind, bytes(payload))
    try:
        keys, values = codec.decode(writer.commit(), profile=cachegen)
    except InvalidData:
        return
    assert np.isfinite(keys).all()
    assert np.isfinite(values).all()


def test_the_container_round_trips_through_its_own_reader(blob):
    container = Container.parse(blob)
    writer = ContainerWriter(
        container.header.layout,
        tokens=container.header.tokens,
        first_position=container.header.first_position,
        profile_digest=container.header.profile_digest,
        codec=container.header.codec,
    )
    for item in container.header.segments:
        writer.put(item.level, item.layer, item.kind, bytes(container.segment(item.level, item.layer, item.kind)))
    assert writer.commit() == blob
