"""Realignment: keys turned to a new place are the keys the model would have made there."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="realignment writes into torch caches")

from kvloom.blend.cache import KvCache  # noqa: E402
from kvloom.blend.realign import Realigner, rotate_into  # noqa: E402
from kvloom.blend.request import PlacedChunk  # noqa: E402
from kvloom.codec.layout import KvDtype, LayerLayout, Layout, Rope  # noqa: E402
from kvloom.codec.rope import cos_sin, rotate  # noqa: E402
from kvloom.errors import InvalidTensor, UnsupportedModel  # noqa: E402

ROPES = [
    Rope((1.0, 0.1, 0.01, 0.001)),
    Rope((1.0, 0.1, 0.01, 0.001), interleaved=True),
    Rope((0.7, 0.05)),
    Rope((0.7, 0.05), interleaved=True),
    Rope((0.0,)),
    Rope((0.7, 0.05), first_dim=4),
    Rope((0.7, 0.05), interleaved=True, first_dim=1),
]


def keys_of(tokens, seed=0, heads=2, dim=8):
    return np.random.default_rng(seed).standard_normal((heads, tokens, dim)).astype(np.float32)


@pytest.mark.parametrize("rope", ROPES)
@given(position=st.integers(0, 20_000), start=st.integers(0, 60))
def test_moving_equals_computing_there(rope, position, start):
    plain = keys_of(5)
    layout = Layout.uniform(layers=1, kv_heads=2, head_dim=8, rope=rope)
    there = rotate(plain, rope, start + np.arange(5))
    for stored, first in ((rotate(plain, rope, position + np.arange(5)), position), (plain, None)):
        kv = KvCache(layout, 65).kv_layers[0]
        Realigner(layout).fill(kv, 0, PlacedChunk(start, 5, [stored], [plain], first))
        np.testing.assert_allclose(kv.keys[0, :, start : start + 5].numpy(), there, atol=2e-5)
        assert (kv.values[0, :, start : start + 5].numpy() == plain).all()


@pytest.mark.parametrize("rope", ROPES)
def test_turning_in_place_equals_turning_elsewhere(rope):
    keys = torch.from_numpy(keys_of(6))
    cos, sin = (torch.from_numpy(table) for table in cos_sin(rope, np.arange(3, 9)))
    out = torch.full((2, 6, 8), torch.nan)
    rotate_into(out, keys, rope, cos, sin)
    rotate_into(keys, keys, rope, cos, sin)
    assert torch.equal(out, keys)
    np.testing.assert_allclose(out.numpy(), rotate(keys_of(6), rope, np.arange(3, 9)), atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(ml_dtypes.bfloat16, 0.03), (np.float16, 0.004)])
def test_half_precision_is_rotated_in_float32(dtype, tolerance):
    rope = ROPES[0]
    keys = keys_of(4).astype(dtype)
    layout = Layout.uniform(
        layers=1, kv_heads=2, head_dim=8, rope=rope, dtype=KvDtype.FLOAT16 if dtype == np.float16 else KvDtype.BFLOAT16
    )
    kv = KvCache(layout, 10).kv_layers[0]
    Realigner(layout).fill(kv, 0, PlacedChunk(6, 4, [keys], [keys], 0))
    expected = rotate(keys.astype(np.float32), rope, np.full(4, 6))
    np.testing.assert_allclose(kv.keys[0, :, 6:].float().numpy(), expected, atol=tolerance)
    assert (kv.values[0, :, 6:].float().numpy() == keys.astype(np.float32)).all()


def test_a_chunk_at_its_own_place_is_copied_bit_for_bit():
    layout = Layout.uniform(layers=1, kv_heads=2, head_dim=8, rope=ROPES[0])
    kv = KvCache(layout, 9).kv_layers[0]
    keys = keys_of(3)
    Realigner(layout).fill(kv, 0, PlacedChunk(5, 3, [keys], [keys], 5))
    assert (kv.keys[0, :, 5:8].numpy() == keys).all()


def test_each_layer_turns_by_its_own_rope():
    layout = Layout(KvDtype.FLOAT32, (LayerLayout(2, 8, ROPES[0]), LayerLayout(2, 8, ROPES[1])))
    cache, keys = KvCache(layout, 8), keys_of(3)
    realigner = Realigner(layout)
    chunk = PlacedChunk(4, 3, [keys, keys], [keys, keys], None)
    for layer in range(2):
        realigner.fill(cache.kv_layers[layer], layer, chunk)
        expected = rotate(keys, layout.layers[layer].rope, 4 + np.arange(3))
        np.testing.assert_allclose(cache.layer_arrays(layer).keys[:, 4:7], expected, atol=1e-6)


def test_values_turn_where_a_model_keeps_what_it_rotates_there():
    """MLA latents: the keys know no position, the values do."""
    latent = LayerLayout(1, 8, Rope((0.0,)), value_head_dim=4, value_rope=ROPES[2])
    layout = Layout(KvDtype.FLOAT32, (latent,))
    keys, plain = keys_of(3, heads=1), keys_of(3, seed=1, heads=1, dim=4)
    for stored, first in ((rotate(plain, ROPES[2], 20 + np.arange(3)), 20), (plain, None)):
        kv = KvCache(layout, 9).kv_layers[0]
        Realigner(layout).fill(kv, 0, PlacedChunk(5, 3, [keys], [stored], first))
        assert (kv.keys[0, :, 5:8].numpy() == keys).all()
        expected = rotate(plain, ROPES[2], 5 + np.arange(3))
        np.testing.assert_allclose(kv.values[0, :, 5:8].numpy(), expected, atol=1e-5)


def test_wrong_shapes_and_unmovable_layers_are_refused():
    layout = Layout.uniform(layers=1, kv_heads=2, head_dim=8)
    kv, keys = KvCache(layout, 9).kv_layers[0], keys_of(3)
    with pytest.raises(UnsupportedModel, match=r"layer 0 .* computed at 0 cannot stand at 5"):
        Realigner(layout).fill(kv, 0, PlacedChunk(5, 3, [keys], [keys], 0))
    with pytest.raises(UnsupportedModel, match="un-rotated"):
        Realigner(layout).fill(kv, 0, PlacedChunk(5, 3, [keys], [keys], None))
    with pytest.raises(InvalidTensor, match=r"values of layer 0 have shape \(2, 2, 8\), the layout says \(2, 3, 8\)"):
        Realigner(layout).fill(kv, 0, PlacedChunk(0, 3, [keys], [keys[:, :2]], 0))
