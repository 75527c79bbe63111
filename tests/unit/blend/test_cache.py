"""The caches: storage written in place, shared with NumPy, and refused where a model would overrun it."""

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="caches hold torch tensors")

from transformers import DynamicCache  # noqa: E402

from kvloom.blend.cache import BlendCache, KvCache, ProbeInterrupt, numpy_view, tensor_view  # noqa: E402
from kvloom.clients.transformers import model_layout  # noqa: E402
from kvloom.codec.layout import KvDtype, Layout  # noqa: E402
from kvloom.errors import InvalidRequest, LayoutMismatch, UnsupportedModel  # noqa: E402

LAYOUT = Layout.uniform(layers=2, kv_heads=3, head_dim=4)


def states(tokens, seed=0, heads=3, dim=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, tokens, dim, generator=generator), torch.randn(
        1, heads, tokens, dim, generator=generator
    )


def test_appended_tokens_come_back_in_order_without_moving_the_old_ones():
    cache = KvCache(LAYOUT, 10)
    first, second = states(4, 1), states(3, 2)
    early, _ = cache.update(*first, 0)
    keys, values = cache.update(*second, 0)
    assert keys.data_ptr() == early.data_ptr()
    assert torch.equal(keys, torch.cat([first[0], second[0]], dim=2))
    assert torch.equal(values, torch.cat([first[1], second[1]], dim=2))
    assert cache.get_seq_length() == 7
    assert cache.get_seq_length(1) == 0


def test_numpy_arrays_share_the_storage():
    cache = KvCache(LAYOUT, 6)
    arrays = cache.layer_arrays(1)
    assert arrays.keys.shape == (3, 6, 4)
    arrays.values[:, 2] = 7.0
    assert (cache.kv_layers[1].values[0, :, 2] == 7.0).all()


def test_brain_float_arrays_share_the_storage():
    cache = KvCache(Layout.uniform(layers=1, kv_heads=1, head_dim=2, dtype=KvDtype.BFLOAT16), 3)
    array = cache.layer_arrays(0).keys
    assert array.dtype == ml_dtypes.bfloat16
    array[0, 1] = [1.5, -2.0]
    assert cache.kv_layers[0].keys[0, 0, 1].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.filterwarnings("error")
def test_array_to_tensor_and_back_is_the_same_memory(dtype, writeable):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    array.flags.writeable = writeable
    tensor = tensor_view(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert (numpy_view(tensor) == array).all()
    assert not writeable or np.shares_memory(numpy_view(tensor), array)


def test_a_view_keeps_its_memory_alive():
    array = np.arange(100_000, dtype=np.float32)
    array.flags.writeable = False
    tensor = tensor_view(array)
    del array
    np.full(100_000, -1, dtype=np.float32)
    assert tensor[99_999] == 99_999


def test_truncate_forgets_and_declares():
    cache = KvCache(LAYOUT, 8)
    cache.update(*states(5), 0)
    cache.truncate(2)
    assert [layer.get_seq_length() for layer in cache.layers] == [2, 2]
    keys, _ = cache.update(*states(1, 9), 0)
    assert keys.shape[2] == 3
    cache.crop(-1)
    assert cache.length == 2
    cache.reset()
    assert cache.length == 0


@pytest.mark.parametrize("length", [-1, 9])
def test_truncate_stays_within_the_storage(length):
    with pytest.raises(InvalidRequest, match=f"cache length {length} is outside 0 to 8"):
        KvCache(LAYOUT, 8).truncate(length)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidRequest, match="capacity is 0"):
        KvCache(LAYOUT, 0)
    cache = KvCache(LAYOUT, 4)
    with pytest.raises(InvalidRequest, match="room for 4 tokens, 5 are needed"):
        cache.update(*states(5), 0)
    with pytest.raises(LayoutMismatch, match="2 heads of 4"):
        cache.update(*states(1, heads=2), 0)
    with pytest.raises(LayoutMismatch, match="batch 2"):
        cache.update(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4), 0)


def test_placed_rows_are_scattered_once_and_later_ones_appended():
    cache = BlendCache(LAYOUT, 9)
    for array in (cache.layer_arrays(0).keys, cache.layer_arrays(0).values):
        array[:] = -1.0
    cache.truncate(2)
    keys, values = states(3, 4)
    cache.place(0, torch.tensor([3, 5, 6]), 7)
    merged, _ = cache.update(keys, values, 0)
    assert merged.shape[2] == 7
    assert torch.equal(merged[:, :, [3, 5, 6]], keys)
    assert (merged[:, :, [0, 1, 2, 4]] == -1.0).all()
    more = states(1, 5)
    appended, _ = cache.update(*more, 0)
    assert torch.equal(appended[:, :, 7:], more[0])


def test_a_probe_takes_the_rows_and_leaves_the_storage():
    cache = BlendCache(LAYOUT, 4)
    rows = states(2)
    cache.begin_probe()
    with pytest.raises(ProbeInterrupt):
        cache.update(*rows, 1)
    probed = cache.end_probe()
    assert probed is not None
    assert torch.equal(probed[0], rows[0])
    assert cache.end_probe() is None
    assert cache.length == 0
    cache.update(*rows, 0)
    assert cache.length == 2


def test_generate_runs_on_it_as_on_a_dynamic_cache(any_model):
    prompt = torch.tensor([[5, 9, 30, 2, 77, 41]])
    how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = any_model.generate(prompt, past_key_values=DynamicCache(config=any_model.config), **how)
    cache = KvCache(model_layout(any_model), 26)
    assert torch.equal(any_model.generate(prompt, past_key_values=cache, **how), expected)
    assert cache.length == 25


def test_a_dtype_no_model_computes_in_is_refused():
    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=2, dtype=KvDtype.FLOAT8_E5M2)
    with pytest.raises(UnsupportedModel, match="float8_e5m2 cannot be computed in"):
        KvCache(layout, 4)
