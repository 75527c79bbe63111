"""Blending on real (tiny) models, against an oracle that computes every token and swaps stored KV in."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blending runs Transformers models")

from transformers import DynamicCache  # noqa: E402

from kvloom.blend import (  # noqa: E402
    AllTokens,
    BlendCache,
    Blender,
    BlendRequest,
    FirstTokens,
    KvCache,
    KvDeviation,
    NoTokens,
    PlacedChunk,
    QueryAttention,
    SelectionRule,
    carry,
)
from kvloom.clients.transformers import extract, model_layout, prefill  # noqa: E402
from kvloom.codec.layout import Kind  # noqa: E402
from kvloom.codec.rope import rotate  # noqa: E402
from kvloom.errors import InvalidRequest, InvalidTensor, LayoutMismatch, UnsupportedModel  # noqa: E402

PREFIX, CHUNKS, QUESTION = 6, (20, 17, 23), 5
TOTAL = PREFIX + sum(CHUNKS) + QUESTION


@pytest.fixture
def tokens():
    return np.random.default_rng(3).integers(3, 96, TOTAL)


def stored_chunk(model, layout, tokens, start, stop, *, place=None, unrotated=False):
    """The KV of ``tokens[start:stop]`` computed alone from position 0, to stand at ``place``."""
    cache = prefill(model, tokens[start:stop], cache=KvCache(layout, stop - start))
    keys, values = extract(cache, 0, stop - start)
    first = 0
    if unrotated:
        back = -np.arange(stop - start)
        keys, values = (
            [
                item if layer.rope_of(kind) is None else rotate(item, layer.rope_of(kind), back)
                for item, layer in zip(items, layout.layers, strict=True)
            ]
            for kind, items in zip(Kind, (keys, values), strict=True)
        )
        first = None
    return PlacedChunk(start if place is None else place, stop - start, keys, values, first)


def request_of(model, layout, tokens, **how):
    chunks = [stored_chunk(model, layout, tokens, 0, PREFIX)]
    start = PREFIX
    for length in CHUNKS:
        chunks.append(stored_chunk(model, layout, tokens, start, start + length, **how))
        start += length
    return BlendRequest(tokens, PREFIX, tuple(chunks))


def full_prefill(model, tokens):
    with torch.inference_mode():
        cache = DynamicCache()
        output = model(torch.from_numpy(tokens)[None], past_key_values=cache, use_cache=True)
    return output.logits[0, -1], cache


def divergence(reference, other):
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())


class SwappingCache(DynamicCache):
    """The oracle: every token is computed in every layer, then rows that were not to be are replaced as stored."""

    def __init__(self, stored, keep_stored):
        super().__init__()
        self.stored, self.keep_stored = stored, keep_stored

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        places = self.keep_stored[layer_idx]
        key_states[:, :, places] = self.stored[layer_idx][0][:, :, places]
        value_states[:, :, places] = self.stored[layer_idx][1][:, :, places]
        return super().update(key_states, value_states, layer_idx)


def oracle(model, layout, tokens, request, computed):
    """Logits and cache when layer ``i`` computes exactly the positions ``computed[i]``."""
    naive = KvCache(layout, TOTAL)
    from kvloom.blend.realign import Realigner

    realigner = Realigner(layout)
    stored = []
    for index, kv in enumerate(naive.kv_layers):
        for chunk in request.chunks:
            realigner.fill(kv, index, chunk)
        stored.append((kv.keys, kv.values))
    keep = [sorted(set(range(TOTAL)) - set(places)) for places in computed]
    with torch.inference_mode():
        cache = SwappingCache(stored, keep)
        output = model(torch.from_numpy(tokens)[None], past_key_values=cache, use_cache=True)
    return output.logits[0, -1], cache


@dataclass(frozen=True, slots=True)
class Listed(SelectionRule):
    """Chooses the offsets that are listed, whatever the KV."""

    ratio: float = 0.3
    wanted: tuple[int, ...] = ()
    decision_layer: ClassVar[int] = 1

    def scores(self, candidates):
        order = torch.zeros(candidates.count)
        order[list(self.wanted)] = 1.0
        return order


@pytest.mark.parametrize("rule", [AllTokens(), QueryAttention(1.0), KvDeviation(1.0), FirstTokens(1.0)])
def test_recomputing_everything_is_full_prefill(any_model, tokens, rule):
    layout = model_layout(any_model)
    blended = Blender(any_model, layout).blend(request_of(any_model, layout, tokens), rule)
    logits, cache = full_prefill(any_model, tokens)
    assert divergence(logits, blended.logits) <= 1e-6
    for mine, theirs in zip(blended.cache.kv_layers, cache.layers, strict=True):
        torch.testing.assert_close(mine.keys[:, :, :TOTAL], theirs.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.values[:, :, :TOTAL], theirs.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix_tokens", [0, PREFIX])
@pytest.mark.parametrize("shrink", [0.0, 0.5])
def test_selective_recompute_is_what_the_oracle_computes(any_model, tokens, prefix_tokens, shrink):
    layout = model_layout(any_model)
    request = request_of(any_model, layout, tokens)
    if prefix_tokens == 0:
        request = BlendRequest(tokens, 0, request.chunks[1:])
    seen = []

    @dataclass(frozen=True, slots=True)
    class Watched(KvDeviation):
        def scores(self, candidates):
            seen.append(KvDeviation.scores(self, candidates))
            return seen[-1]

    rule = Watched(ratio=0.3, shrink=shrink)
    blended = Blender(any_model, layout).blend(request, rule)
    stored = [p for chunk in request.chunks if chunk.start >= prefix_tokens for p in range(chunk.start, chunk.stop)]
    fresh = set(range(prefix_tokens, TOTAL)) - set(stored)
    computed, left = [set(range(prefix_tokens, TOTAL))] * 2, stored
    assert len(seen) == (2 if shrink else 1), "the last layer's tokens are chosen by what layer 2 made of its own"
    for layer in (2, 3):
        order = seen[min(layer - 2, len(seen) - 1)].argsort(descending=True, stable=True)
        among = stored if len(order) == len(stored) else left
        left = sorted(among[row] for row in order.tolist()[: round(rule.share(layer, 4) * len(stored))])
        computed.append(fresh | set(left))
    logits, cache = oracle(any_model, layout, tokens, request, computed)
    assert divergence(logits, blended.logits) <= 1e-6
    for layer, (mine, theirs) in enumerate(zip(blended.cache.kv_layers, cache.layers, strict=True)):
        torch.testing.assert_close(mine.keys[:, :, :TOTAL], theirs.keys, atol=1e-4, rtol=1e-4, msg=f"layer {layer}")
    assert blended.report.layer_tokens[2:] == tuple(len(places) for places in computed[2:])
    assert divergence(full_prefill(any_model, tokens)[0], blended.logits) > 1e-5


def test_naive_reuse_computes_only_fresh_tokens(any_model, tokens):
    layout = model_layout(any_model)
    request = request_of(any_model, layout, tokens)
    blended = Blender(any_model, layout).blend(request, NoTokens())
    fresh = set(range(TOTAL - QUESTION, TOTAL))
    logits, _ = oracle(any_model, layout, tokens, request, [fresh] * 4)
    assert divergence(logits, blended.logits) <= 1e-6
    assert blended.report.layer_tokens == (QUESTION,) * 4
    assert blended.report.recompute_ratio == 0.0
    assert blended.report.token_layer_cost == pytest.approx(QUESTION / (TOTAL - PREFIX))


def test_unrotated_chunks_blend_like_rotated_ones(any_model, tokens):
    layout = model_layout(any_model)
    blender = Blender(any_model, layout)
    rotated = blender.blend(request_of(any_model, layout, tokens), KvDeviation(0.2))
    unrotated = blender.blend(request_of(any_model, layout, tokens, unrotated=True), KvDeviation(0.2))
    torch.testing.assert_close(rotated.logits, unrotated.logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("reads_attention", [False, True])
def test_chunks_already_in_the_cache_are_turned_in_place(any_model, tokens, reads_attention):
    layout = model_layout(any_model)
    blender = Blender(any_model, layout)
    elsewhere = request_of(any_model, layout, tokens, unrotated=True)
    rule = Watching(0.2) if reads_attention else KvDeviation(0.2)
    expected = blender.blend(elsewhere, rule)
    cache = BlendCache(layout, TOTAL)
    arrays = [cache.layer_arrays(layer) for layer in range(4)]
    inside = []
    for chunk in elsewhere.chunks:
        place = slice(chunk.start, chunk.stop)
        for layer, array in enumerate(arrays):
            array.keys[:, place], array.values[:, place] = chunk.keys[layer], chunk.values[layer]
        keys, values = [a.keys[:, place] for a in arrays], [a.values[:, place] for a in arrays]
        inside.append(PlacedChunk(chunk.start, chunk.tokens, keys, values, chunk.first_position))
    found = blender.blend(BlendRequest(tokens, PREFIX, tuple(inside)), rule, cache=cache)
    assert found.cache is cache
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_the_exact_prefix_is_left_as_stored(llama, tokens):
    layout = model_layout(llama)
    request = request_of(llama, layout, tokens)
    for rule in (AllTokens(), KvDeviation(0.5), NoTokens()):
        cache = Blender(llama, layout).blend(request, rule).cache
        for layer in range(4):
            assert (cache.layer_arrays(layer).keys[:, :PREFIX] == request.chunks[0].keys[layer]).all()
            assert (cache.layer_arrays(layer).values[:, :PREFIX] == request.chunks[0].values[layer]).all()


def test_tokens_between_chunks_are_computed(llama, tokens):
    layout = model_layout(llama)
    request = request_of(llama, layout, tokens)
    gap = BlendRequest(tokens, PREFIX, (request.chunks[0], request.chunks[1], request.chunks[3]))
    blended = Blender(llama, layout).blend(gap, NoTokens())
    fresh = set(range(gap.chunks[1].stop, gap.chunks[2].start)) | set(range(TOTAL - QUESTION, TOTAL))
    logits, _ = oracle(llama, layout, tokens, gap, [fresh] * 4)
    assert divergence(logits, blended.logits) <= 1e-6
    assert blended.report.fresh_tokens == CHUNKS[1] + QUESTION


def test_a_chunk_may_stand_at_any_place(llama, tokens):
    """Chunks swapped: the same as storing the swapped prompt's chunks in order."""
    layout = model_layout(llama)
    first, second = tokens[PREFIX : PREFIX + 20], tokens[PREFIX + 20 : PREFIX + 37]
    swapped = np.concatenate([tokens[:PREFIX], second, first, tokens[PREFIX + 37 :]])
    prefix = stored_chunk(llama, layout, tokens, 0, PREFIX)
    moved = (
        stored_chunk(llama, layout, tokens, PREFIX + 20, PREFIX + 37, place=PREFIX),
        stored_chunk(llama, layout, tokens, PREFIX, PREFIX + 20, place=PREFIX + 17),
    )
    straight = (
        stored_chunk(llama, layout, swapped, PREFIX, PREFIX + 17),
        stored_chunk(llama, layout, swapped, PREFIX + 17, PREFIX + 37),
    )
    blender = Blender(llama, layout)
    one = blender.blend(BlendRequest(swapped, PREFIX, (prefix, *moved)), KvDeviation(0.3))
    other = blender.blend(BlendRequest(swapped, PREFIX, (prefix, *straight)), KvDeviation(0.3))
    assert torch.equal(one.logits, other.logits)


def test_the_rule_decides_which_tokens_are_computed(llama, tokens):
    layout = model_layout(llama)
    request = request_of(llama, layout, tokens)
    wanted = (0, 7, 30, 59)
    blended = Blender(llama, layout).blend(request, Listed(ratio=4 / 60, wanted=wanted))
    everything, fresh = set(range(PREFIX, TOTAL)), set(range(TOTAL - QUESTION, TOTAL))
    chosen = fresh | {PREFIX + row for row in wanted}
    _, cache = oracle(llama, layout, tokens, request, [everything, everything, chosen, chosen])
    for layer in range(4):
        torch.testing.assert_close(
            blended.cache.kv_layers[layer].values[:, :, :TOTAL], cache.layers[layer].values, atol=1e-5, rtol=1e-5
        )
    assert blended.report.layer_tokens == (TOTAL - PREFIX, 9, 9, 9)
    assert blended.report.probed_tokens == TOTAL - PREFIX


def test_more_recompute_comes_nearer_to_full_prefill(llama, tokens):
    layout = model_layout(llama)
    request = request_of(llama, layout, tokens)
    blender = Blender(llama, layout)
    truth, _ = full_prefill(llama, tokens)
    none, half, nearly = (
        divergence(truth, blender.blend(request, rule).logits)
        for rule in (NoTokens(), FirstTokens(0.5), KvDeviation(0.9))
    )
    assert none > half > nearly
    assert nearly < none / 10


def test_carrying_over_moves_what_is_not_computed_and_nothing_else(any_model, tokens, monkeypatch):
    monkeypatch.setattr(carry, "SAMPLES_MIN", 8)
    layout = model_layout(any_model)
    request = request_of(any_model, layout, tokens)
    blender = Blender(any_model, layout)
    plain, carried = (
        blender.blend(request, QueryAttention(0.5, sampled=0.5, sampled_max=1.0, carry=carry))
        for carry in (False, True)
    )
    assert plain.report.layer_tokens == carried.report.layer_tokens
    _, theirs = full_prefill(any_model, tokens)
    moved = 0
    for layer, (one, other) in enumerate(zip(plain.cache.kv_layers, carried.cache.kv_layers, strict=True)):
        assert torch.equal(one.values[:, :, :PREFIX], other.values[:, :, :PREFIX])
        values, carried_values = one.values[:, :, :TOTAL], other.values[:, :, :TOTAL]
        if layer == 0:
            torch.testing.assert_close(values, carried_values, atol=1e-5, rtol=1e-5)
        moved += bool((values != carried_values)[:, :, PREFIX : TOTAL - QUESTION].any())
        truth = theirs.layers[layer].values
        errors = [(found - truth)[:, :, PREFIX:].square().sum() for found in (values, carried_values)]
        assert errors[1] <= 1.2 * errors[0] + 1e-6, "where there is nothing to carry over, nearly nothing is"
    assert moved >= 2
    assert torch.isfinite(carried.logits).all()


def test_a_blended_cache_decodes_like_any_other(any_model, tokens):
    layout = model_layout(any_model)
    blended = Blender(any_model, layout).blend(request_of(any_model, layout, tokens), AllTokens())
    _, theirs = full_prefill(any_model, tokens)
    for token in (5, 9, 41):
        with torch.inference_mode():
            step = torch.tensor([[token]])
            mine = any_model(step, past_key_values=blended.cache, use_cache=True).logits
            reference = any_model(step, past_key_values=theirs, use_cache=True).logits
        torch.testing.assert_close(mine, reference, atol=1e-3, rtol=1e-3)
    assert blended.cache.length == TOTAL + 3


@dataclass(frozen=True, slots=True)
class Watching(SelectionRule):
    """Reads attention and keeps what it was told."""

    ratio: float = 0.3
    told: ClassVar[list] = []
    reads_attention: ClassVar[bool] = True

    def scores(self, candidates):
        self.told.append(candidates)
        return torch.zeros(candidates.count) if candidates.attention is None else candidates.attention.sum(0)


def test_the_attention_told_is_what_the_question_pays_to_the_kv_as_stored(any_model, tokens):
    layout = model_layout(any_model)
    request = request_of(any_model, layout, tokens)
    blended = Blender(any_model, layout).blend(request, Watching())
    cache = Blender(any_model, layout).blend(request, NoTokens()).cache
    cache.truncate(TOTAL - QUESTION)
    config = any_model.config.get_text_config()
    usual = config._attn_implementation
    any_model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            question = torch.from_numpy(tokens[-QUESTION:])[None]
            told = any_model(question, past_key_values=cache, output_attentions=True).attentions
    finally:
        any_model.set_attn_implementation(usual)
    stored = slice(PREFIX, TOTAL - QUESTION)
    lengths = torch.stack([kv.values[0, :, stored].norm(dim=-1).mean(dim=0) for kv in cache.kv_layers])
    expected = torch.stack([item[0].mean(dim=(0, 1))[stored] for item in told]) * lengths
    torch.testing.assert_close(Watching.told[-1].attention, expected, atol=1e-5, rtol=1e-4)
    assert blended.report.scored_tokens == QUESTION
    assert blended.report.layer_tokens == (QUESTION + round(0.3 * sum(CHUNKS)),) * 4
    stored = sum(CHUNKS)
    cost = (QUESTION + QUESTION + round(0.3 * stored)) / (stored + QUESTION)
    assert blended.report.token_layer_cost == pytest.approx(cost)


def test_only_the_tokens_after_the_last_chunk_are_asking(llama, tokens):
    layout = model_layout(llama)
    request = request_of(llama, layout, tokens)
    gap = BlendRequest(tokens, PREFIX, (request.chunks[0], request.chunks[1], request.chunks[3]))
    report = Blender(llama, layout).blend(gap, Watching()).report
    assert report.scored_tokens == CHUNKS[1] + QUESTION, "what is missing is computed to be looked at"
    told = Watching.told[-1].attention
    whole = BlendRequest(tokens[: -QUESTION + 1], PREFIX, gap.chunks)
    Blender(llama, layout).blend(whole, Watching())
    alone = Watching.told[-1].attention
    assert told.shape == alone.shape == (4, CHUNKS[0] + CHUNKS[2])
    assert not torch.allclose(told, alone)


def test_a_prompt_without_stored_chunks_is_computed_without_a_look(llama, tokens):
    layout = model_layout(llama)
    report = Blender(llama, layout).blend(BlendRequest(tokens, 0, ()), Watching())
    assert report.report.scored_tokens == 0
    assert Watching.told[-1].attention is None
    assert divergence(full_prefill(llama, tokens)[0], report.logits) <= 1e-6


def test_attention_and_kv_can_be_read_by_one_rule(llama, tokens):
    @dataclass(frozen=True, slots=True)
    class Both(Watching):
        decision_layer: ClassVar[int] = 1

        def scores(self, candidates):
            deviation = KvDeviation.scores(self, candidates)
            return deviation * candidates.attention.sum(0)

    layout = model_layout(llama)
    request = request_of(llama, layout, tokens)
    blender = Blender(llama, layout)
    report = blender.blend(request, Both(0.3)).report
    assert (report.probed_tokens, report.scored_tokens) == (TOTAL - PREFIX, QUESTION)
    assert divergence(full_prefill(llama, tokens)[0], blender.blend(request, Both(1.0)).logits) <= 1e-6


def test_eager_attention_blends_like_sdpa(tiny_model, tokens):
    fast, plain = tiny_model("gemma3-mixed"), tiny_model("gemma3-mixed")
    plain.set_attn_implementation("eager")
    results = []
    for model in (fast, plain):
        layout = model_layout(model)
        results.append(Blender(model, layout).blend(request_of(model, layout, tokens), KvDeviation(0.3)).logits)
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def test_half_precision_models_blend(tiny_model, tokens):
    model = tiny_model("llama").to(torch.bfloat16)
    layout = model_layout(model)
    blended = Blender(model, layout).blend(request_of(model, layout, tokens), AllTokens())
    assert divergence(full_prefill(model, tokens)[0], blended.logits) <= 1e-3
    some = Blender(model, layout).blend(request_of(model, layout, tokens), KvDeviation(0.9))
    assert divergence(full_prefill(model, tokens)[0], some.logits) < 0.05


def test_hooks_are_gone_after_success_and_after_failure(llama, tokens):
    layout = model_layout(llama)
    blender = Blender(llama, layout)
    request = request_of(llama, layout, tokens)
    blender.blend(request, KvDeviation())
    bad = PlacedChunk(PREFIX, CHUNKS[0], [k[:, :-1] for k in request.chunks[1].keys], request.chunks[1].values, 0)
    with pytest.raises(InvalidTensor, match="keys of layer 1 have shape"):
        blender.blend(BlendRequest(tokens, PREFIX, (request.chunks[0], bad)), KvDeviation())
    assert not any(module._forward_pre_hooks for module in llama.modules())
    assert divergence(full_prefill(llama, tokens)[0], blender.blend(request, AllTokens()).logits) <= 1e-6


def test_other_forwards_pass_through_while_a_blend_runs(llama, tokens):
    """The rule is asked in the middle of the blend: a forward made there must not see the hooks."""
    layout = model_layout(llama)
    before, _ = full_prefill(llama, tokens)
    during = []

    @dataclass(frozen=True, slots=True)
    class Meddling(KvDeviation):
        def scores(self, candidates):
            during.append(full_prefill(llama, tokens)[0])
            return KvDeviation.scores(self, candidates)

    Blender(llama, layout).blend(request_of(llama, layout, tokens), Meddling())
    assert torch.equal(during[0], before)


def test_stages_are_timed_by_the_clock_given(llama, tokens):
    layout = model_layout(llama)
    ticks = iter(range(1000))
    blended = Blender(llama, layout, clock=lambda: float(next(ticks))).blend(
        request_of(llama, layout, tokens), KvDeviation()
    )
    seconds = blended.report.seconds
    assert seconds.realign == 4.0
    assert seconds.select == 2.0
    assert seconds.total > seconds.realign + seconds.select


def test_what_cannot_be_blended_is_refused(llama, tiny_model, tokens):
    layout = model_layout(llama)
    blender = Blender(llama, layout)
    request = request_of(llama, layout, tokens)
    with pytest.raises(InvalidRequest, match=f"room for {TOTAL - 1} tokens, the prompt has {TOTAL}"):
        blender.blend(request, NoTokens(), cache=BlendCache(layout, TOTAL - 1))
    short = PlacedChunk(PREFIX, CHUNKS[0], request.chunks[1].keys[:3], request.chunks[1].values, 0)
    with pytest.raises(LayoutMismatch, match="keys of 3 and values of 4 layers"):
        blender.blend(BlendRequest(tokens, PREFIX, (request.chunks[0], short)), NoTokens())
    with pytest.raises(LayoutMismatch, match="4 decoder layers, the layout 2"):
        Blender(llama, model_layout(tiny_model("llama", num_hidden_layers=2)))
    flexible = tiny_model("llama")
    flexible.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModel, match="flash_attention_2"):
        Blender(flexible, layout)


def test_keys_that_know_their_position_for_good_cannot_be_moved(tiny_model, tokens):
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model("llama", rope_parameters=dynamic)
    layout = model_layout(model)
    with pytest.raises(UnsupportedModel, match="layer 1 has keys whose position cannot be undone"):
        Blender(model, layout).blend(request_of(model, layout, tokens), KvDeviation())
    unmoved = BlendRequest(tokens, PREFIX, (stored_chunk(model, layout, tokens, 0, PREFIX),))
    logits = Blender(model, layout).blend(unmoved, KvDeviation()).logits
    assert divergence(full_prefill(model, tokens)[0], logits) <= 1e-6
