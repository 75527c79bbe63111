"""Models on our caches: prefill, extract, decode."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Transformers client runs torch models")

from transformers import DynamicCache  # noqa: E402

from kvloom.blend import KvCache  # noqa: E402
from kvloom.clients.transformers import extract, greedy, model_layout, prefill  # noqa: E402
from kvloom.errors import InvalidRequest  # noqa: E402

TOKENS = np.array([5, 17, 5, 80, 5, 44, 5])


def test_prefill_continues_a_cache_as_if_it_had_been_one(llama):
    layout = model_layout(llama)
    parts = prefill(llama, TOKENS[:3], cache=KvCache(layout, 7))
    assert prefill(llama, TOKENS[3:], cache=parts) is parts
    whole = prefill(llama, TOKENS)
    assert whole.capacity == 7
    for mine, other in zip(extract(parts, 0, 7)[0], extract(whole, 0, 7)[0], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("tokens", [np.empty(0, dtype=np.int64), np.zeros((1, 3), dtype=np.int64)])
def test_prefill_needs_a_list_of_tokens(llama, tokens):
    with pytest.raises(InvalidRequest, match="shape"):
        prefill(llama, tokens)


def test_extract_gives_views_of_what_was_computed(llama):
    cache = prefill(llama, TOKENS)
    keys, values = extract(cache, 2, 5)
    assert [item.shape for item in keys + values] == [(2, 3, 8)] * 6
    assert all(np.shares_memory(item, cache.layer_arrays(layer).keys) for layer, item in enumerate(keys))
    for start, stop in ((-1, 2), (3, 3), (4, 2), (5, 8)):
        with pytest.raises(InvalidRequest, match=f"tokens {start} to {stop} are not in the cache"):
            extract(cache, start, stop)


def test_greedy_goes_on_as_generate_does(llama):
    layout = model_layout(llama)
    cache = prefill(llama, TOKENS[:-1], cache=KvCache(layout, 20))
    found = greedy(llama, cache, int(TOKENS[-1]), 8)
    how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = llama.generate(torch.from_numpy(TOKENS)[None], past_key_values=DynamicCache(), **how)
    assert found == expected[0, len(TOKENS) :].tolist()
    assert cache.length == len(TOKENS) + 7
    assert greedy(llama, cache, 5, 0) == []
