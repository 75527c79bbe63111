"""Parallel encoding on real (tiny) models: the paper's formula, its positions, and nothing else changed."""

from itertools import permutations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blending runs Transformers models")

from torch.nn import functional  # noqa: E402

from kvloom.blend import Blender, BlendRequest, KvCache, NoTokens, ParallelEncoding, PlacedChunk  # noqa: E402
from kvloom.clients.transformers import extract, model_layout, prefill  # noqa: E402
from kvloom.errors import InvalidRequest, UnsupportedModel  # noqa: E402

PREFIX, QUESTION = 5, 4


@pytest.fixture
def tokens():
    return np.random.default_rng(4).integers(3, 96, 60)


def request_of(model, layout, prefix, documents, question):
    """Documents computed right after the prefix, one behind the other in the prompt."""
    cache = prefill(model, prefix, cache=KvCache(layout, len(prefix)))
    chunks = [PlacedChunk(0, len(prefix), *extract(cache, 0, len(prefix)), first_position=0)]
    start = len(prefix)
    for document in documents:
        room = KvCache(layout, len(prefix) + len(document))
        room.copy_from(cache, len(prefix))
        prefill(model, document, cache=room)
        keys, values = extract(room, len(prefix), room.length)
        chunks.append(PlacedChunk(start, len(document), keys, values, first_position=len(prefix)))
        start += len(document)
    return BlendRequest(np.concatenate([prefix, *documents, question]), len(prefix), tuple(chunks))


def answered(model, layout, request, how, steps=0):
    """Logits of the question's last token and of ``steps`` tokens after it."""
    with how.attention(request):
        blended = Blender(model, layout).blend(how.arranged(request), NoTokens(), room_tokens=steps + 1)
        found = [blended.logits]
        for token in range(5, 5 + steps):
            with torch.inference_mode():
                step = model(torch.tensor([[token]]), past_key_values=blended.cache)
            found.append(step.logits[0, -1])
    return torch.stack(found)


def test_one_document_untempered_is_full_prefill(any_model, tokens):
    layout = model_layout(any_model)
    request = request_of(any_model, layout, tokens[:PREFIX], [tokens[PREFIX:40]], tokens[40 : 40 + QUESTION])
    found = answered(any_model, layout, request, ParallelEncoding(1.0, 1.0))
    with torch.inference_mode():
        expected = any_model(torch.from_numpy(request.token_ids)[None]).logits[0, -1:]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "mixtral-experts", "glm-partial-interleaved", "deepseek-latents"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_documents_have_no_order(tiny_model, name, implementation, tokens):
    model = tiny_model(name)
    model.set_attn_implementation(implementation)
    layout = model_layout(model)
    documents = [tokens[5:20], tokens[20:28], tokens[28:45]]
    how = ParallelEncoding(0.8, 0.7)
    found = [
        answered(model, layout, request_of(model, layout, tokens[:5], list(order), tokens[50:54]), how, steps=3)
        for order in permutations(documents)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-3, rtol=1e-3)
    plain = answered(
        model, layout, request_of(model, layout, tokens[:5], documents, tokens[50:54]), ParallelEncoding(1.0, 1.0)
    )
    assert not torch.allclose(plain[0], found[0][0], atol=1e-2)


def test_eager_attention_is_tempered_like_fused(tiny_model, tokens):
    results = []
    for implementation in ("sdpa", "eager"):
        model = tiny_model("gemma3-mixed")
        model.set_attn_implementation(implementation)
        layout = model_layout(model)
        request = request_of(model, layout, tokens[:5], [tokens[5:20], tokens[20:28]], tokens[50:54])
        results.append(answered(model, layout, request, ParallelEncoding(0.5, 0.8), steps=2))
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def test_attention_is_the_papers_formula(llama):
    """Two softmaxes, over the chunks and over the rest, put together by their masses, the chunks' one scaled."""
    generator = torch.Generator().manual_seed(6)
    query, key, value = (torch.randn(1, heads, n, 8, generator=generator) for heads, n in ((4, 3), (2, 12), (2, 12)))
    request = BlendRequest(
        np.arange(12),
        2,
        (PlacedChunk(0, 2, (), (), 0), PlacedChunk(2, 4, (), (), 2), PlacedChunk(6, 3, (), (), 2)),
    )
    how = ParallelEncoding(temperature=0.6, scale=0.7)
    with how.attention(request):
        found = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)[0]
    keys, values = key[0].repeat_interleave(2, dim=0), value[0].repeat_interleave(2, dim=0)
    logits = query[0] @ keys.transpose(1, 2) / 8**0.5
    chunks, rest = logits[..., 2:9] / 0.6, torch.cat([logits[..., :2], logits[..., 9:]], dim=-1)
    rest_values = torch.cat([values[:, :2], values[:, 9:]], dim=1)
    masses = torch.stack([0.7 * chunks.logsumexp(-1), rest.logsumexp(-1)]).softmax(0)
    expected = masses[0, ..., None] * (chunks.softmax(-1) @ values[:, 2:9])
    expected = expected + masses[1, ..., None] * (rest.softmax(-1) @ rest_values)
    torch.testing.assert_close(found, expected)


def test_what_parallel_encoding_needs(llama, tiny_model, tokens):
    layout = model_layout(llama)
    request = request_of(llama, layout, tokens[:5], [tokens[5:20], tokens[20:28]], tokens[50:54])
    how = ParallelEncoding()
    with pytest.raises(InvalidRequest, match="needs a chunk for the exact prefix and others"):
        how.arranged(BlendRequest(tokens, 0, ()))
    alone = PlacedChunk(5, 15, request.chunks[1].keys, request.chunks[1].values, 0)
    with pytest.raises(InvalidRequest, match="computed at 5, after the prefix"):
        how.arranged(BlendRequest(request.token_ids, 5, (request.chunks[0], alone)))
    for wrong in ({"temperature": 0.0}, {"scale": float("nan")}, {"scale": 11.0}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(wrong))} of parallel encoding is"):
            ParallelEncoding(**wrong)
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model("llama", rope_parameters=dynamic)
    fixed = model_layout(model)
    request = request_of(model, fixed, tokens[:5], [tokens[5:20], tokens[20:28]], tokens[50:54])
    with pytest.raises(UnsupportedModel, match="cannot be undone"):
        answered(model, fixed, request, how)
