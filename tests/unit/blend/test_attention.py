"""Reading attention: the weights that a model's layers really use, whichever way they form them."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="attention is torch's")

from torch.nn import functional  # noqa: E402

from kvloom.blend import KvCache  # noqa: E402
from kvloom.blend import attention as module  # noqa: E402
from kvloom.blend.attention import AttentionReader, GroupedAttention, attention_logits  # noqa: E402
from kvloom.clients.transformers import model_layout, prefill  # noqa: E402
from kvloom.errors import UnsupportedModel  # noqa: E402

TOTAL, ASKING = 40, 7


def read(model, layout, tokens, *, queries, held=0):
    """Weights of every layer ``[heads, queries, keys]``, of a forward of what comes after ``held`` tokens."""
    cache = KvCache(layout, len(tokens))
    if held:
        prefill(model, tokens[:held], cache=cache)
    found = [[] for _ in layout.layers]
    rest = torch.from_numpy(tokens[held:])[None]
    reader = AttentionReader(lambda layer, _, weights: found[layer].append(weights), len(tokens), queries)
    with torch.inference_mode(), reader:
        model(input_ids=rest, past_key_values=cache)
    reader.check(len(layout.layers))
    return [torch.cat(blocks, dim=1) for blocks in found]


@pytest.mark.parametrize("held", [0, 25])
def test_fused_and_eager_attention_are_read_alike(any_model, held, monkeypatch):
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    tokens = np.random.default_rng(7).integers(3, 96, TOTAL)
    layout = model_layout(any_model)
    usual = any_model.config.get_text_config()._attn_implementation
    fused = read(any_model, layout, tokens, queries=ASKING, held=held)
    any_model.set_attn_implementation("eager")
    try:
        eager = read(any_model, layout, tokens, queries=ASKING, held=held)
        with torch.inference_mode():
            told = any_model(torch.from_numpy(tokens)[None], output_attentions=True).attentions
    finally:
        any_model.set_attn_implementation(usual)
    for layer, (one, other, truth) in enumerate(zip(fused, eager, told, strict=True)):
        assert one.shape == (any_model.config.get_text_config().num_attention_heads, ASKING, TOTAL)
        torch.testing.assert_close(one, truth[0, :, -ASKING:], atol=1e-5, rtol=1e-4, msg=f"fused, layer {layer}")
        torch.testing.assert_close(other, truth[0, :, -ASKING:], atol=1e-5, rtol=1e-4, msg=f"eager, layer {layer}")


def test_a_lone_token_is_read_whatever_shape_transformers_gives_it(any_model):
    tokens = np.random.default_rng(8).integers(3, 96, TOTAL)
    layout = model_layout(any_model)
    cache = prefill(any_model, tokens[:-1], cache=KvCache(layout, TOTAL))
    found = []
    reader = AttentionReader(lambda *seen: found.append(seen[2]), TOTAL, 1, alone=True)
    with torch.inference_mode(), reader:
        any_model(input_ids=torch.from_numpy(tokens[-1:])[None], past_key_values=cache)
    whole = read(any_model, layout, tokens, queries=1)
    for lone, last in zip(found, whole, strict=True):
        torch.testing.assert_close(lone, last, atol=1e-5, rtol=1e-4)


def test_logits_are_those_of_the_attention_that_runs():
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(1, heads, n, 8, generator=generator) for heads, n in ((4, 5), (2, 9), (2, 9)))
    allowed = torch.rand(1, 1, 5, 9, generator=generator) > 0.3
    allowed[..., 0] = True
    for how in ({}, {"scale": 0.7}, {"attn_mask": allowed}, {"attn_mask": torch.randn(1, 4, 5, 9)}):
        expected = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True, **how)[0]
        weights = attention_logits(query, key, how, slice(0, 5)).softmax(-1)
        torch.testing.assert_close(weights @ value[0].repeat_interleave(2, dim=0), expected)
        some = attention_logits(query, key, how, slice(2, 4)).softmax(-1)
        torch.testing.assert_close(some, weights[:, 2:4])
    square = functional.scaled_dot_product_attention(key, key, value, is_causal=True)[0]
    causal = attention_logits(key, key, {"is_causal": True}, slice(0, 9)).softmax(-1)
    torch.testing.assert_close(causal @ value[0], square)


def test_other_threads_are_not_read():
    states = torch.randn(1, 2, 4, 8)
    seen = []

    def attend():
        functional.scaled_dot_product_attention(states, states, states)

    with AttentionReader(lambda *item: seen.append(item), 4, 4):
        other = threading.Thread(target=attend)
        other.start()
        other.join()
        assert not seen
        attend()
    assert len(seen) == 1
    attend()
    assert len(seen) == 1


def test_a_model_that_does_not_attend_as_expected_is_refused():
    states = torch.randn(1, 2, 4, 8)
    reader = AttentionReader(lambda *_: None, 4, 4)
    with reader:
        functional.scaled_dot_product_attention(states, states, states)
    reader.check(1)
    with pytest.raises(UnsupportedModel, match="seen 1 times in 2 layers"):
        reader.check(2)
    with (
        pytest.raises(UnsupportedModel, match="attention of 4 tokens was seen where 5 are asking"),
        AttentionReader(lambda *_: None, 4, 5),
    ):
        functional.scaled_dot_product_attention(states, states, states)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_in_groups_is_the_attention_asked_for(window, kv_heads, monkeypatch):
    monkeypatch.setattr(module, "_GROUP_ROWS", 3)
    generator = torch.Generator().manual_seed(3)
    places = torch.randperm(60, generator=generator)[:20].sort().values
    keys = torch.arange(60)
    hidden = keys > places[:, None]
    if window is not None:
        hidden |= keys <= places[:, None] - window
    mask = torch.zeros(1, 1, 20, 60).masked_fill_(hidden, float("-inf"))
    query, key, value = (
        torch.randn(1, n, m, 8, generator=generator) for n, m in ((4, 20), (kv_heads, 60), (kv_heads, 60))
    )
    how = {"attn_mask": mask, "enable_gqa": kv_heads < 4, "scale": 0.3}
    expected = functional.scaled_dot_product_attention(query, key, value, **how)
    calls = []

    def counted(*args, **given):
        calls.append(args[1].shape[2])
        return functional.scaled_dot_product_attention(*args, **given)

    with GroupedAttention() as grouped:
        torch.testing.assert_close(functional.scaled_dot_product_attention(query, key, value, **how), expected)
    torch.testing.assert_close(grouped.attend(counted, query, key, value, **how), expected)
    assert len(calls) == 6
    assert max(calls) <= (60 if window is None else 40)
    assert sum(calls) < 0.8 * 6 * 60
    calls.clear()
    grouped.attend(counted, query, key, value, **{**how, "attn_mask": mask == 0})
    assert calls == [60], "what is not understood runs as it is"
