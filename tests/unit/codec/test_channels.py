"""KV to channels that know no position and back."""

import numpy as np
import pytest

from kvloom.codec import Kind, KvDtype, LayerLayout, Layout, Rope
from kvloom.codec.channels import Angles, RoomTable, empty_tensors, gather_channels, rooms_of
from kvloom.codec.entropy.native_lossy import tensor_row
from kvloom.codec.rope import rotate
from kvloom.errors import NonFiniteTensor

ROPE = Rope((1.0, 0.3))
LAYOUT = Layout(
    KvDtype.FLOAT32,
    (LayerLayout(2, 4, ROPE), LayerLayout(1, 6, None, value_head_dim=3), LayerLayout(1, 5, ROPE, value_head_dim=0)),
)
TOKENS, FIRST = 5, 70


@pytest.fixture
def kv():
    rng = np.random.default_rng(1)
    return tuple(
        [
            rng.normal(size=(layer.kv_heads, TOKENS, layer.head_dim_of(kind))).astype(np.float32)
            for layer in LAYOUT.layers
        ]
        for kind in Kind
    )


def test_channels_stand_layer_by_layer_keys_before_values_heads_in_order(kv):
    keys, values = kv
    channels = gather_channels(keys, values, LAYOUT, range(3), Angles(FIRST, TOKENS))
    assert channels.shape == (TOKENS, 8 + 8 + 6 + 3 + 5)
    assert np.array_equal(channels[:, 8:12], values[0][0])
    assert np.array_equal(channels[:, 12:16], values[0][1])
    assert np.array_equal(channels[:, 16:22], keys[1][0])
    assert np.array_equal(channels[:, 22:25], values[1][0])
    plain = rotate(keys[0], ROPE, -np.arange(FIRST, FIRST + TOKENS))
    assert np.allclose(channels[:, 4:8], plain[1], atol=1e-6)


@pytest.mark.parametrize("moved", [0, 3000])
def test_what_was_gathered_is_scattered_to_any_place(kv, moved):
    keys, values = kv
    layers = range(1, 3)
    channels = gather_channels(keys, values, LAYOUT, layers, Angles(FIRST, TOKENS))
    outputs = {(layer, kind): np.full_like((keys, values)[kind][layer], np.nan) for layer in layers for kind in Kind}
    for room in rooms_of(LAYOUT, layers, Angles(FIRST + moved, TOKENS), outputs):
        room.fill(channels)
    assert np.array_equal(outputs[1, Kind.KEYS], keys[1])
    assert np.array_equal(outputs[1, Kind.VALUES], values[1])
    wanted = rotate(keys[2], ROPE, np.full(TOKENS, moved))
    assert np.allclose(outputs[2, Kind.KEYS], wanted, atol=1e-4)


def test_only_wanted_outputs_are_written(kv):
    keys, values = kv
    channels = gather_channels(keys, values, LAYOUT, range(3), Angles(FIRST, TOKENS))
    only = {(1, Kind.VALUES): np.zeros_like(values[1])}
    for room in rooms_of(LAYOUT, range(3), Angles(FIRST, TOKENS), only):
        room.fill(channels)
    assert np.array_equal(only[1, Kind.VALUES], values[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(kv, bad):
    keys, values = kv
    values[1][0, 2, 1] = bad
    with pytest.raises(NonFiniteTensor, match="values of layer 1 hold 1 values"):
        gather_channels(keys, values, LAYOUT, range(3), Angles(FIRST, TOKENS))
    gather_channels(keys, values, LAYOUT, range(1), Angles(FIRST, TOKENS))


def test_angles_of_fewer_tokens_are_the_first_ones():
    all_cos, all_sin = Angles(9, 8).of(ROPE)
    cos, sin = Angles(9, 8).first(3).of(ROPE)
    assert np.array_equal(cos, all_cos[:3])
    assert np.array_equal(sin, all_sin[:3])


@pytest.mark.parametrize(
    ("dtype", "beyond"),
    [(KvDtype.FLOAT16, 1.2), (KvDtype.BFLOAT16, 1.003), (KvDtype.FLOAT8_E4M3FN, 1.2), (KvDtype.FLOAT8_E5M2, 1.2)],
)
def test_what_a_narrow_dtype_cannot_hold_becomes_its_largest_number_not_infinity(dtype, beyond):
    import ml_dtypes

    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=4, dtype=dtype, rope=Rope((0.5,)))
    largest = float(ml_dtypes.finfo(dtype.numpy).max)
    channels = np.full((2, 8), beyond * largest, np.float32)
    channels[1] *= -1
    outputs = {(0, kind): np.zeros((1, 2, 4), dtype.numpy) for kind in Kind}
    for room in rooms_of(layout, range(1), Angles(0, 2), outputs):
        with np.errstate(over="ignore"):
            room.fill(channels)
    assert (outputs[0, Kind.VALUES][0, 0].astype(float) == largest).all()
    assert (outputs[0, Kind.VALUES][0, 1].astype(float) == -largest).all()
    assert np.isfinite(outputs[0, Kind.KEYS].astype(float)).all()


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [([range(2), range(2, 3)], range(2)), ([range(1), range(1, 3)], range(1, 2)), ([range(3)], range(1))],
)
def test_a_table_of_rooms_tells_the_core_what_each_room_would(kv, blocks, wanted):
    layers = range(blocks[wanted.start].start, blocks[wanted.stop - 1].stop)
    longer = [[np.zeros((len(item), TOKENS + 3, item.shape[2]), np.float32) for item in own] for own in kv]
    held = [[item[:, 1 : TOKENS + 1] for item in own] for own in longer]
    keys, values = ([own[layer] for layer in layers] for own in held)
    angles = Angles(FIRST, TOKENS)
    found = RoomTable.of(LAYOUT, blocks).fill(wanted, keys, values, layers.start, angles)
    outputs = {(layer, kind): (keys, values)[kind][layer - layers.start] for layer in layers for kind in Kind}
    for index, rows in zip(wanted, found, strict=True):
        rooms = rooms_of(LAYOUT, blocks[index], angles, outputs)
        assert [tuple(row) for row in rows.tolist()] == [tensor_row(room.job(), TOKENS) for room in rooms]


def test_a_table_of_rooms_takes_all_layers_in_one_array():
    layout = Layout.uniform(layers=3, kv_heads=2, head_dim=4, rope=ROPE)
    cache = np.zeros((2, 3, 2, 9, 4), np.float32)
    keys, values = cache[0, :, :, 2:7], cache[1, ::-1, :, 1:6]
    table = RoomTable.of(layout, [range(2), range(2, 3)])
    together = table.fill(range(2), keys, values, 0, Angles(0, 5))
    apart = table.fill(range(2), list(keys), list(values), 0, Angles(0, 5))
    assert all(np.array_equal(one, other) for one, other in zip(together, apart, strict=True))


def test_room_for_tensors_starts_where_lines_do_and_nothing_overlaps():
    for layout in (LAYOUT, Layout.uniform(layers=3, kv_heads=2, head_dim=5, dtype=KvDtype.BFLOAT16)):
        keys, values = empty_tensors(layout, range(len(layout.layers)), TOKENS)
        pieces = [item for own in (keys, values) for item in ([own] if isinstance(own, np.ndarray) else own)]
        for number, piece in enumerate(pieces):
            assert piece.ctypes.data % 64 == 0
            piece[...] = number
        for number, piece in enumerate(pieces):
            assert (piece.astype(float) == number).all()
        for layer, spec in enumerate(layout.layers):
            for kind, own in zip(Kind, (keys, values), strict=True):
                assert own[layer].shape == (spec.kv_heads, TOKENS, spec.head_dim_of(kind))


def test_kept_angles_are_nobodys_to_change():
    cos, sin = Angles(3, 4).of(ROPE)
    with pytest.raises(ValueError, match="read-only"):
        cos[0] = 2
    assert Angles(3, 4).of(ROPE)[1] is sin
    long = Angles(0, 1 << 15)
    assert long.of(ROPE)[0] is long.of(ROPE)[0]
    assert Angles(0, 1 << 15).of(ROPE)[0] is not long.of(ROPE)[0]
