"""The generic profile: any layout on first contact, the same at both ends."""

import tracemalloc

import numpy as np
import pytest

from kvloom import codec, limits
from kvloom.codec import LOSSY_LEVELS, Kind, KvDtype, LayerLayout, Layout, Profile, Rope, generic_profile
from kvloom.codec.generic import STANDARD_SHARE


def test_it_is_the_layouts_alone():
    layout = Layout.uniform(layers=2, kv_heads=2, head_dim=8)
    again = Layout.uniform(layers=2, kv_heads=2, head_dim=8)
    generic_profile.cache_clear()
    first = generic_profile(layout).digest
    generic_profile.cache_clear()
    assert generic_profile(again).digest == first
    assert generic_profile(Layout.uniform(layers=2, kv_heads=2, head_dim=8, dtype=KvDtype.FLOAT16)).digest != first
    assert first.hex()[:32] == "ae7e39660da847055d39bd68c67a342c"


def test_a_reader_needs_no_profile(kv_source):
    source = kv_source()
    keys, values = source.draw(100, seed=2, first_position=30)
    profile = generic_profile(source.layout)
    blob = codec.encode(keys, values, layout=source.layout, profile=profile, first_position=30)
    for level in LOSSY_LEVELS:
        alone, given = codec.decode(blob, level=level), codec.decode(blob, level=level, profile=profile)
        assert np.array_equal(alone[0], given[0])
        assert np.array_equal(alone[1], given[1])


def test_errors_are_the_share_of_each_tensors_spread_that_was_chosen(kv_source):
    source = kv_source()
    keys, values = source.draw(256, seed=3)
    blob = codec.encode(keys, values, layout=source.layout, profile=generic_profile(source.layout))
    decoded = codec.decode(blob, level="standard")
    for kind, original in zip(Kind, (keys, values), strict=True):
        for layer in range(3):
            flat = original[layer].transpose(1, 0, 2).reshape(256, -1)
            spread = np.sqrt(((flat - flat.mean(axis=0)) ** 2).mean())
            error = np.sqrt(((np.asarray(decoded[kind][layer]) - original[layer]) ** 2).mean())
            # Uniform in a cell would be 0.29 steps, keys' spread is measured where they are not rotated.
            assert 0.15 < error / (STANDARD_SHARE[kind] * spread) < 0.4


def test_offsets_and_units_are_the_chunks_own(kv_source):
    """The same numbers in other units, around other means, cost the same bits."""
    source = kv_source()
    layout = source.layout.as_given()
    keys, values = source.draw(200, seed=4)
    sizes = [
        len(codec.encode(k.astype(np.float32), values, layout=layout, profile=generic_profile(layout)))
        for k in (keys, 1000 * keys, keys + 1e3 * np.random.default_rng(1).normal(size=(3, 2, 1, 16)))
    ]
    assert abs(sizes[1] - sizes[0]) < 0.01 * sizes[0]
    # Means farther off than a symbol reaches cost an escape each.
    assert sizes[2] - sizes[0] < 8 * 3 * 32 + 0.02 * sizes[0]


@pytest.mark.parametrize("dtype", [KvDtype.FLOAT32, KvDtype.FLOAT16, KvDtype.BFLOAT16])
@pytest.mark.parametrize(("start", "gap"), [(0, 0), (1, 0), (7, 3), (0, 16)])
def test_it_matters_not_where_in_memory_tensors_begin(dtype, start, gap):
    layout = Layout.uniform(layers=2, kv_heads=2, head_dim=48, dtype=dtype, rope=Rope((1.0, 0.25, 0.01)))
    rng = np.random.default_rng(6)
    keys, values = (rng.normal(size=(2, 2, 150, 48)).astype(dtype.numpy) for _ in range(2))
    blob = codec.encode(keys, values, layout=layout, profile=generic_profile(layout))
    expected = codec.decode(blob)
    shape = (2, 2, 2, 150, 48 + gap)
    room = np.zeros(np.prod(shape) + start + 1, dtype.numpy)
    held = room[start : start + np.prod(shape)].reshape(shape)
    codec.decode_into(codec.Container.parse(blob), held[0, ..., :48], held[1, ..., :48])
    for found, wanted in zip((held[0], held[1]), expected, strict=True):
        assert np.array_equal(found[..., :48], wanted)
        assert not found[..., 48:].any()
    assert not room[:start].any()
    assert not room[-1].any()


@pytest.mark.parametrize("level", LOSSY_LEVELS)
def test_channels_that_do_not_change_come_back(level):
    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=4)
    keys = np.broadcast_to(np.array([1.5, -3.0, 0.0, 1e4], np.float32), (1, 1, 20, 4)).copy()
    blob = codec.encode(keys, 0 * keys, layout=layout, profile=generic_profile(layout))
    decoded = codec.decode(blob, level=level)
    assert np.allclose(decoded[0], keys, rtol=1e-3)
    assert np.allclose(decoded[1], 0)


def test_more_channels_than_a_part_has_are_split():
    layout = Layout(KvDtype.FLOAT32, (LayerLayout(20, 4096, value_head_dim=0),))
    profile = generic_profile(layout)
    widths = [part.width for part in profile.blocks[0].parts]
    assert widths == [limits.PART_CHANNELS_MAX, 20 * 4096 - limits.PART_CHANNELS_MAX]
    assert [part.start for part in profile.blocks[0].parts] == [0, limits.PART_CHANNELS_MAX]
    keys = [np.random.default_rng(5).normal(size=(20, 3, 4096)).astype(np.float32)]
    values = [np.zeros((20, 3, 0), np.float32)]
    blob = codec.encode(keys, values, layout=layout, profile=profile)
    decoded = codec.decode(blob, level="fine")[0]
    assert np.sqrt(((decoded[0] - keys[0]) ** 2).mean()) < 0.15


def test_the_widest_layout_there_may_be_costs_next_to_nothing():
    layout = Layout(KvDtype.FLOAT8_E5M2, (LayerLayout(limits.KV_HEADS_MAX, limits.HEAD_DIM_MAX),) * 4)
    generic_profile.cache_clear()
    tracemalloc.start()
    try:
        generic_profile(layout)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
        generic_profile.cache_clear()


def test_it_survives_its_own_file():
    layout = Layout.uniform(layers=2, kv_heads=1, head_dim=4, rope=Rope((1.0, 0.1)))
    profile = generic_profile(layout)
    read = Profile.from_bytes(profile.data)
    for mine, theirs in zip(read.blocks, profile.blocks, strict=True):
        for part, original in zip(mine.parts, theirs.parts, strict=True):
            assert part.adaptive
            assert np.array_equal(part.scale, original.scale)


@pytest.mark.filterwarnings("ignore:overflow", "error:invalid value")
def test_no_token_is_taken_for_drained_where_norms_overflow():
    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=8)
    keys, values = np.random.default_rng(4).uniform(-1e30, 1e30, (2, 1, 1, 32, 8)).astype(np.float32)
    ordinary = codec.encode(keys / 1e30, values / 1e30, layout=layout, levels=[codec.STANDARD])
    blob = codec.encode(keys, values, layout=layout, levels=[codec.STANDARD])
    assert abs(len(blob) - len(ordinary)) < 8
    for decoded, given in zip(codec.decode(blob), (keys, values), strict=True):
        assert np.abs(decoded / 1e30 - given / 1e30).max() < 0.3
