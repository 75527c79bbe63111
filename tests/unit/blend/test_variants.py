"""Variants: what is recorded is the model's own attention, and the one that fits a prompt best is found."""

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blending runs Transformers models")

from kvloom.blend import Blender, BlendRequest, ChunkVariant, RecordedNeed, best_variant, record_variants  # noqa: E402
from kvloom.clients.transformers import extract, model_layout, prefill  # noqa: E402
from kvloom.errors import InvalidRequest  # noqa: E402

STARTS, TOTAL = [4, 19, 30], 42


@pytest.fixture
def tokens():
    return np.random.default_rng(5).integers(3, 96, TOTAL + 6)


def variant(before=(), leaned=(), own=(1.0, 1.0, 1.0, 1.0)):
    """A variant without KV."""
    table = np.array(leaned, dtype=np.float32).reshape(len(before), len(own))
    return ChunkVariant((), (), 0, tuple(before), table, np.array(own, dtype=np.float32))


def test_what_is_recorded_is_what_the_model_attends_to(any_model, tokens):
    layout = model_layout(any_model)
    variants = record_variants(any_model, layout, tokens[:TOTAL], STARTS, ["a", "b", "c"])
    usual = any_model.config.get_text_config()._attn_implementation
    any_model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            told = any_model(torch.from_numpy(tokens[:TOTAL])[None], output_attentions=True).attentions
    finally:
        any_model.set_attn_implementation(usual)
    weights = torch.stack(told)[:, 0].mean(dim=(0, 1)).numpy()
    cache = prefill(any_model, tokens[:TOTAL])
    for number, (item, start, stop) in enumerate(zip(variants, STARTS, (*STARTS[1:], TOTAL), strict=True)):
        assert item.before == ("a", "b", "c")[:number]
        assert (item.first_position, item.tokens) == (start, stop - start)
        np.testing.assert_allclose(item.own, weights[start:stop, start:stop].sum(axis=1), atol=1e-5)
        for place, (first, last) in enumerate(pairwise(STARTS)):
            if place < number:
                np.testing.assert_allclose(item.leaned[place], weights[start:stop, first:last].sum(axis=1), atol=1e-5)
        keys, values = extract(cache, start, stop)
        for layer in range(len(layout.layers)):
            np.testing.assert_allclose(item.keys[layer], keys[layer], atol=1e-4)
            np.testing.assert_allclose(item.values[layer], values[layer], atol=1e-4)


def test_the_overhead_is_what_is_lost_times_how_much_it_mattered():
    leaned = variant("ab", [[0.3] * 4, [0.1] * 4])
    impact = 1 / (1 + np.exp(-1.6 / 4))
    assert leaned.fix_overhead("ab") == 0.0
    assert leaned.fix_overhead("xaby") == 0.0
    assert leaned.fix_overhead("a") == pytest.approx(impact * 0.25)
    assert leaned.fix_overhead("b") == pytest.approx(impact * 0.75)
    assert leaned.fix_overhead("xy") == pytest.approx(impact)
    assert leaned.fix_overhead("ba") == pytest.approx(impact), "everything there, all of it in the other order"
    assert variant().fix_overhead("") == 0.0
    assert variant().fix_overhead("a") == pytest.approx(0.5), "never leaned on anything"


def test_the_variant_with_the_least_to_mend_is_chosen():
    one, other = variant("ab", [[0.3] * 4, [0.1] * 4]), variant("cd", [[0.3] * 4, [0.1] * 4])
    assert best_variant([one, other], "cd") is other
    assert best_variant([one, other], "ax") is one
    with pytest.raises(InvalidRequest, match="no variants"):
        best_variant([], "a")


def test_tokens_that_leaned_on_what_is_missing_come_first():
    item = variant("ab", [[0.1, 0.9, 0.2, 0.4], [0.8, 0.1, 0.1, 0.1]])
    assert np.argsort(-item.placed(7, "b").need).tolist() == [1, 3, 2, 0]
    assert np.argsort(-item.placed(7, "a").need).tolist()[0] == 0
    assert np.argsort(-item.placed(7, "ba").need).tolist()[0] == 1, "all there in another order: what leaned at all"


def test_chunks_share_the_recompute_by_their_overhead():
    light, heavy = (
        variant("ab", [[0.1] * 20, [0.9] * 20], [1.0] * 20),
        variant("ab", [[0.9] * 20, [0.1] * 20], [1.0] * 20),
    )
    needs = np.concatenate([light.placed(0, "b").need, heavy.placed(20, "b").need])
    chosen = np.argsort(-needs, kind="stable")[:20]
    assert light.fix_overhead("b") * 9 == pytest.approx(heavy.fix_overhead("b"))
    assert (chosen < 20).sum() == 2


def test_blending_variants_recomputes_what_they_say(llama, tokens):
    layout = model_layout(llama)
    earlier = np.concatenate([tokens[:4], tokens[30:TOTAL], tokens[19:30], tokens[4:19]])
    recorded = dict(zip("cba", record_variants(llama, layout, earlier, [4, 16, 27], list("cba")), strict=True))
    prefix = record_variants(llama, layout, tokens[:4], [0], ["prefix"])[0]
    chunks = [prefix.placed(0, ())]
    for number, (name, start) in enumerate(zip("abc", STARTS, strict=True)):
        chunks.append(recorded[name].placed(start, "abc"[:number]))
    request = BlendRequest(tokens, 4, tuple(chunks))
    assert request.needs().size == TOTAL - 4
    blender = Blender(llama, layout)
    report = blender.blend(request, RecordedNeed(0.25)).report
    assert report.recompute_ratio == pytest.approx(0.25, abs=0.02)
    assert (report.probed_tokens, report.scored_tokens) == (0, 0)
    with torch.inference_mode():
        truth = llama(torch.from_numpy(tokens)[None]).logits[0, -1].log_softmax(-1)

    def divergence(ratio):
        found = blender.blend(request, RecordedNeed(ratio)).logits.log_softmax(-1)
        return float((truth.exp() * (truth - found)).sum())

    assert divergence(1.0) <= 1e-6 < divergence(0.5) < divergence(0.0)


def test_a_rule_of_recorded_need_wants_it_for_every_chunk(llama, tokens):
    layout = model_layout(llama)
    plain = record_variants(llama, layout, tokens[:30], [0, 19], "ab")
    with_need = plain[1].placed(19, "a")
    assert BlendRequest(tokens, 19, (plain[0].placed(0, ()), with_need)).needs().tolist() == with_need.need.tolist()
    bare = [item.placed(start, ()) for item, start in zip(plain, (0, 19), strict=True)]
    object.__setattr__(bare[1], "need", None)
    with pytest.raises(InvalidRequest, match="recorded need has to have it for every chunk"):
        Blender(llama, layout).blend(BlendRequest(tokens, 19, tuple(bare)), RecordedNeed(0.5))


@pytest.mark.parametrize("starts", [[], [4, 4], [9, 4], [TOTAL], [-1]])
def test_a_prompt_is_divided_in_order(llama, tokens, starts):
    with pytest.raises(InvalidRequest, match="do not divide a prompt of 42 tokens"):
        record_variants(llama, model_layout(llama), tokens[:TOTAL], starts, list(range(len(starts))))
