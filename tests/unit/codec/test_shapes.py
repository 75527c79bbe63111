"""Layers whose keys and values are not alike: what MLA keeps, with and without its projections absorbed."""

from dataclasses import dataclass

import numpy as np
import pytest

from kvloom import codec
from kvloom.codec import EXACT, LOSSY_LEVELS, STANDARD, KeyCoding, Kind, KvDtype, LayerLayout, Layout, Profile, Rope
from kvloom.codec.container import ContainerWriter, parse_header, select
from kvloom.codec.rope import rotate
from kvloom.errors import InvalidTensor, LayoutMismatch, MalformedContainer

ALL = (*LOSSY_LEVELS, EXACT)
ROTATED = Rope((1.0, 0.2, 0.01, 0.001))
SHAPES = {
    "one latent, its end rotated": LayerLayout(1, 24, Rope(ROTATED.inverse_frequencies, True, 16), value_head_dim=0),
    "a latent and what is rotated": LayerLayout(1, 16, Rope((0.0,)), value_head_dim=8, value_rope=ROTATED),
    "keys wider than values": LayerLayout(4, 12, Rope(ROTATED.inverse_frequencies, False, 4), value_head_dim=8),
    "values wider than keys": LayerLayout(2, 8, ROTATED, value_head_dim=16),
}


@dataclass(frozen=True)
class Source:
    """Draws KV of a layout's shapes, free of positions, and turns it to any place."""

    layout: Layout

    def plain(self, tokens: int, seed: int) -> list[list[np.ndarray]]:
        rng = np.random.default_rng(seed)
        mixes = np.random.default_rng(7)
        kinds: list[list[np.ndarray]] = [[], []]
        for layer in self.layout.layers:
            for kind in Kind:
                width = layer.width_of(kind)
                mix = mixes.normal(size=(width, width)) * np.exp(-np.arange(width) / 6)
                channels = (rng.laplace(size=(tokens, width)) @ mix.T).astype(np.float32)
                heads = channels.reshape(tokens, layer.kv_heads, layer.head_dim_of(kind))
                kinds[kind].append(heads.transpose(1, 0, 2))
        return kinds

    def draw(self, tokens: int, *, seed: int, first_position: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
        positions = np.arange(first_position, first_position + tokens)
        keys, values = (
            [
                item if layer.rope_of(kind) is None else rotate(item, layer.rope_of(kind), positions)
                for item, layer in zip(items, self.layout.layers, strict=True)
            ]
            for kind, items in zip(Kind, self.plain(tokens, seed), strict=True)
        )
        dtype = self.layout.dtype.numpy
        return [item.astype(dtype) for item in keys], [item.astype(dtype) for item in values]


@pytest.fixture(scope="module", params=[*SHAPES.values(), None], ids=[*SHAPES, "one of each"])
def source(request) -> Source:
    return Source(Layout(KvDtype.FLOAT32, (request.param,) * 2 if request.param else tuple(SHAPES.values())))


@pytest.fixture(scope="module")
def profile(source) -> Profile:
    return codec.calibrate([codec.KvSample(*source.draw(600, seed=1))], source.layout)


def errors(decoded, original) -> list[float]:
    """The root mean square error of every tensor that holds anything."""
    return [
        float(np.sqrt(((mine - theirs) ** 2).mean()))
        for mine, theirs in zip([*decoded[0], *decoded[1]], [*original[0], *original[1]], strict=True)
        if theirs.size
    ]


def relative_errors(decoded, original) -> list[float]:
    """As :func:`errors`, each in terms of how far the numbers stray from their mean."""
    deviations = [item.std() for item in [*original[0], *original[1]] if item.size]
    return [error / deviation for error, deviation in zip(errors(decoded, original), deviations, strict=True)]


@pytest.mark.parametrize("first_position", [0, 300])
def test_round_trip(source, profile, first_position):
    chunk = source.draw(70, seed=2, first_position=first_position)
    blob = codec.encode(*chunk, layout=source.layout, profile=profile, first_position=first_position, levels=ALL)
    exact = codec.decode(blob)
    for mine, theirs in zip([*exact[0], *exact[1]], [*chunk[0], *chunk[1]], strict=True):
        assert mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()
    assert max(relative_errors(codec.decode(blob, profile=profile, level="standard"), chunk)) < 0.5


@pytest.mark.parametrize("dtype", list(KvDtype))
def test_exact_round_trip_of_every_dtype(source, dtype):
    given = Source(Layout(dtype, source.layout.layers))
    chunk = given.draw(9, seed=3)
    keys, values = codec.decode(codec.encode(*chunk, layout=given.layout))
    assert [item.tobytes() for item in (*keys, *values)] == [item.tobytes() for item in (*chunk[0], *chunk[1])]


@pytest.mark.parametrize("level", ["exact", "standard"])
def test_what_is_rotated_moves_and_the_rest_stays(source, profile, level):
    chunk, there = source.draw(40, seed=4, first_position=10), source.draw(40, seed=4, first_position=2000)
    blob = codec.encode(*chunk, layout=source.layout, profile=profile, first_position=10, levels=ALL)
    at_home = errors(codec.decode(blob, profile=profile, level=level), chunk)
    away = errors(codec.decode(blob, profile=profile, level=level, first_position=2000), there)
    # Rotation keeps lengths: the error against the truth is the same in both places.
    assert np.allclose(at_home, away, rtol=1e-3, atol=1e-5)


def test_a_profile_comes_back_from_its_file(profile):
    again = Profile.from_bytes(profile.data)
    assert again.layout == profile.layout
    assert again.digest == profile.digest
    for mine, other in zip(again.blocks, profile.blocks, strict=True):
        assert [item.mean.tobytes() for item in mine.parts] == [item.mean.tobytes() for item in other.parts]


@pytest.mark.parametrize("level", LOSSY_LEVELS)
def test_the_generic_profile_takes_any_shape(source, level):
    chunk = source.draw(150, seed=6, first_position=40)
    there = source.draw(150, seed=6, first_position=900)
    generic = codec.generic_profile(source.layout)
    blob = codec.encode(*chunk, layout=source.layout, profile=generic, first_position=40)
    bound = {"draft": 1.2, "economy": 0.6, "standard": 0.3, "fine": 0.15}[level.name]
    assert max(relative_errors(codec.decode(blob, level=level), chunk)) < bound
    moved = codec.decode(blob, level=level, first_position=900)
    assert max(relative_errors(moved, there)) < bound


def test_a_layer_range_decodes_alone(source, profile):
    chunk = source.draw(20, seed=5)
    blob = codec.encode(*chunk, layout=source.layout, profile=profile, levels=ALL)
    header = parse_header(blob)

    def part(level):
        chosen = select(header, layers=range(1, 2), level=level)
        return chosen.header + b"".join(blob[item.start : item.stop] for item in chosen.ranges)

    keys, values = codec.decode(part(EXACT))
    assert (keys[0].tobytes(), values[0].tobytes()) == (chunk[0][1].tobytes(), chunk[1][1].tobytes())
    decoded = codec.decode(part(STANDARD), profile=profile)
    held = header.whole_blocks(range(1, 2))
    whole = codec.decode(blob, profile=profile, level=STANDARD)
    for kind in Kind:
        for mine, theirs in zip(decoded[kind], whole[kind][held.start : held.stop], strict=True):
            assert np.array_equal(mine, theirs)


def test_what_an_engine_gives_must_have_the_shapes_of_its_layout():
    source = Source(Layout(KvDtype.FLOAT32, (SHAPES["keys wider than values"],)))
    keys, values = source.draw(5, seed=6)
    with pytest.raises(InvalidTensor, match=r"values of layer 0.*needs float32 \(4, 5, 8\)"):
        codec.encode(keys, keys, layout=source.layout)
    with pytest.raises(InvalidTensor, match=r"keys of layer 0.*needs float32 \(4, 5, 12\)"):
        codec.encode(values, values, layout=source.layout)


def test_a_container_says_what_it_cannot_turn():
    layers = (LayerLayout(1, 8, ROTATED), LayerLayout(1, 8), LayerLayout(1, 8, Rope((0.0,))))
    layout = Layout(KvDtype.FLOAT32, layers)
    chunk = Source(layout).draw(30, seed=7)
    profile = codec.calibrate([codec.KvSample(*chunk)], layout)
    blob = codec.encode(*chunk, layout=layout, profile=profile, levels=ALL)
    assert codec.info(blob).key_coding == (KeyCoding.UNROTATED, KeyCoding.AS_GIVEN, KeyCoding.UNROTATED)
    for level in ("exact", "standard"):
        with pytest.raises(LayoutMismatch, match="cannot be moved"):
            codec.decode(blob, profile=profile, level=level, first_position=1)


def test_nothing_hides_in_the_segments_of_what_a_layer_does_not_have():
    layout = Layout(KvDtype.FLOAT32, (SHAPES["one latent, its end rotated"],))
    for stowaway in (b"", b"x"):
        writer = ContainerWriter(layout, tokens=1, first_position=0)
        writer.put(EXACT, 0, Kind.KEYS, b"not decoded here")
        writer.put(EXACT, 0, Kind.VALUES, stowaway)
        if stowaway:
            with pytest.raises(MalformedContainer, match="layer 0 has no values but 1 bytes of them"):
                parse_header(writer.commit())
        else:
            assert [item.length for item in parse_header(writer.commit()).segments] == [16, 0]


def test_bits_per_value_count_what_there_is():
    layout = Layout(KvDtype.FLOAT32, (SHAPES["one latent, its end rotated"],))
    blob = codec.encode(*Source(layout).draw(64, seed=8), layout=layout)
    assert codec.info(blob).bits_per_value["exact"] == pytest.approx(8 * len(blob) / (64 * 24))
