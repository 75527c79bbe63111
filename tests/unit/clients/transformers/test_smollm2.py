"""The same on the real model: its layout, its keys, and blending real text."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the model runs on torch")

from kvloom.blend import AllTokens, Blender, BlendRequest, KvCache, KvDeviation, NoTokens, PlacedChunk
from kvloom.clients.transformers import extract, greedy, model_identity, model_layout, prefill
from kvloom.codec.rope import rotate

pytestmark = pytest.mark.model

DOCUMENTS = (
    "The with statement wraps a block with methods defined by a context manager. Its name is Ada.\n\n",
    "A generator function contains a yield expression. The colour of the barn is green.\n\n",
    "The del statement removes names from the local or global namespace. Bob lives in Oslo.\n\n",
)
QUESTION = "Question: What is the colour of the barn?\nAnswer: The colour of the barn is"


@pytest.fixture(scope="module")
def layout(smollm2):
    return model_layout(smollm2.model)


def tokens_of(smollm2, text):
    return np.array(smollm2.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)


def test_layout_and_identity(smollm2, layout):
    assert len(layout.layers) == 30
    assert {(layer.kv_heads, layer.head_dim, layer.rope.rotary_dim) for layer in layout.layers} == {(3, 64, 64)}
    assert layout.bytes_per_token == 2 * 30 * 3 * 64 * 4
    kept = model_identity(smollm2.model, layout=layout, folder=smollm2.folder)
    assert kept == model_identity(smollm2.model, layout=layout)


def test_real_keys_unrotated_do_not_know_their_position(smollm2, layout):
    tokens = np.concatenate([tokens_of(smollm2, text) for text in DOCUMENTS * 3])
    keys, _ = extract(prefill(smollm2.model, tokens, cache=KvCache(layout, len(tokens))), 0, len(tokens))
    plain = rotate(np.ascontiguousarray(keys[0]), layout.layers[0].rope, -np.arange(len(tokens)))
    most = np.bincount(tokens).argmax()
    places = np.flatnonzero(tokens == most)
    assert len(places) > 5
    assert np.abs(plain[:, places] - plain[:, places[:1]]).max() <= 1e-4 * np.abs(plain).max()


def test_blending_real_text(smollm2, layout):
    model = smollm2.model
    parts = [tokens_of(smollm2, text) for text in DOCUMENTS]
    question = tokens_of(smollm2, QUESTION)
    prompt = np.concatenate([*parts, question])
    chunks, start = [], 0
    for part in parts:
        cache = prefill(model, part, cache=KvCache(layout, len(part)))
        keys, values = extract(cache, 0, len(part))
        chunks.append(PlacedChunk(start, len(part), keys, values, 0))
        start += len(part)
    request = BlendRequest(prompt, 0, tuple(chunks))
    blender = Blender(model, layout)
    full, naive, blended = (blender.blend(request, rule) for rule in (AllTokens(), NoTokens(), KvDeviation(0.5)))

    def divergence(other):
        p, q = full.logits.double().log_softmax(-1), other.logits.double().log_softmax(-1)
        return float((p.exp() * (p - q)).sum())

    plain = prefill(model, prompt[:-1], cache=KvCache(layout, len(prompt) + 8))
    answer = greedy(model, plain, int(prompt[-1]), 1)
    assert int(full.logits.argmax()) == answer[0]
    assert smollm2.tokenizer.decode(answer).strip() == "green"
    assert divergence(blended) < 0.5 * divergence(naive)
    assert int(blended.logits.argmax()) == answer[0]
