"""Gradients of what comes next with respect to the KV: right, of every shape of KV, the same for the same seed."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Transformers client runs torch models")

from transformers import DynamicCache  # noqa: E402
from transformers.modeling_outputs import CausalLMOutput  # noqa: E402

from kvloom.blend import KvCache  # noqa: E402
from kvloom.clients.transformers import (  # noqa: E402
    SequencePlan,
    calibration_samples,
    extract,
    model_layout,
    prefill,
)
from kvloom.clients.transformers.sensitivity import ContextGraph  # noqa: E402
from kvloom.codec.layout import KvDtype, LayerLayout, Layout  # noqa: E402
from kvloom.errors import InvalidRequest, NonFiniteTensor, UnsupportedModel  # noqa: E402

pytestmark = pytest.mark.model

PLAN = SequencePlan(context_tokens=20, following_tokens=6, draws=2)
TEXT = np.random.default_rng(3).integers(1, 96, 40)
WINDOW = 12
MLA = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MODELS = {
    "llama": ("Llama", {}),
    "qkv bias": ("Qwen2", {}),
    "q/k norm": ("Qwen3", {"head_dim": 16}),
    "hybrid windows": ("Gemma3", {"head_dim": 16, **MIXED}),
    "sinks": ("GptOss", {"num_local_experts": 4, "head_dim": 8, "pad_token_id": 0, **MIXED}),
    "mla": ("DeepseekV3", MLA),
    "alibi": ("Bloom", {"n_layer": 3, "n_head": 4}),
    "learned positions": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4}),
}


def lively(model):
    """The same model with weights large enough that what stands in its context matters to it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def logits_with(model, layout, keys, values, following):
    """Logits of ``following`` in float64 after a context whose KV is given: no cache of ours on the way."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(torch.from_numpy(key)[None].double(), torch.from_numpy(value)[None].double(), layer)
    with torch.inference_mode():
        ids = torch.from_numpy(following)[None]
        return model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0].double()


@pytest.fixture(scope="module")
def small(tiny):
    """A lively model with a small vocabulary; its float64 twin, its layout, and the KV of its context as float64."""
    model = lively(tiny("Llama", vocab_size=13, num_hidden_layers=2))
    layout = model_layout(model)
    text = TEXT % 13
    keys, values = extract(prefill(model, text[:8], cache=KvCache(layout, 8)), 0, 8)
    twin = lively(tiny("Llama", vocab_size=13, num_hidden_layers=2)).double()
    context = [item.astype(np.float64) for item in keys], [item.astype(np.float64) for item in values]
    return model, twin, layout, text, context


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_gradient_is_that_of_finite_differences(small, kind, rng):
    model, twin, layout, text, (keys, values) = small
    labels = torch.tensor([3, 11, 0, 7])
    graph = ContextGraph(model, layout, text[:12], 8)
    gradient = getattr(graph.gradient(labels), kind)

    def log_probability(layer, place, by):
        moved = {"keys": list(keys), "values": list(values)}
        moved[kind][layer] = moved[kind][layer].copy()
        moved[kind][layer][place] += by
        logits = logits_with(twin, layout, moved["keys"], moved["values"], text[8:12])
        return float(logits.log_softmax(-1)[torch.arange(4), labels].sum())

    largest = max(float(np.abs(item).max()) for item in gradient)
    for layer in range(2):
        strongest = np.unravel_index(np.abs(gradient[layer]).argmax(), gradient[layer].shape)
        anywhere = tuple(int(rng.integers(size)) for size in gradient[layer].shape)
        for place in (strongest, anywhere):
            # Llama's norms are in float32 even in a float64 model: a smaller step would measure their rounding.
            slope = (log_probability(layer, place, 2e-3) - log_probability(layer, place, -2e-3)) / 4e-3
            assert float(gradient[layer][place]) == pytest.approx(slope, rel=1e-2, abs=1e-3 * largest)


def flat(item):
    return np.concatenate([part.ravel() for part in (*item.keys, *item.values)]).astype(np.float64)


def moved_by(context, error):
    """The context's KV plus ``error``, one vector over keys and values of all layers."""
    parts = [*context[0], *context[1]]
    places = np.cumsum([part.size for part in parts])[:-1]
    moved = [part + e.reshape(part.shape) for part, e in zip(parts, np.split(error, places), strict=True)]
    return moved[: len(context[0])], moved[len(context[0]) :]


def divergence(small, following, error):
    """The KL divergence that moving the context's KV by ``error`` makes, summed over the following tokens.

    The mean of moving it either way, from which what is of third order has gone.
    """
    _, twin, layout, _, context = small
    before, *after = (
        logits_with(twin, layout, *moved_by(context, by), following).log_softmax(-1)
        for by in (np.zeros_like(error), error, -error)
    )
    return sum(float((before.exp() * (before - moved)).sum()) for moved in after) / 2


def test_fisher_of_all_labels_is_the_hessian_of_the_divergence(small, rng):
    """One token follows, so that the expectation can be taken over every label there is."""
    model, _, layout, text, _ = small
    graph = ContextGraph(model, layout, text[:9], 8)
    gradients = np.stack([flat(graph.gradient(torch.tensor([label]))) for label in range(13)])
    weights = graph.probabilities[0].double().numpy()
    for _ in range(5):
        error = rng.normal(size=gradients.shape[1])
        error *= 1e-2 / np.sqrt(weights @ (gradients @ error) ** 2)
        predicted = 0.5 * weights @ (gradients @ error) ** 2
        assert predicted == pytest.approx(divergence(small, text[8:9], error), rel=0.05)


def test_mean_over_draws_predicts_the_divergence(small, rng):
    model, _, layout, text, _ = small
    plan = SequencePlan(context_tokens=8, following_tokens=4, draws=600)
    (sample,) = calibration_samples(model, [text], plan=plan, layout=layout, seed=7)
    gradients = np.stack([flat(item) for item in sample.gradients])
    error = rng.normal(size=gradients.shape[1])
    error *= 1e-2 / np.sqrt(((gradients @ error) ** 2).mean())
    predicted = 0.5 * ((gradients @ error) ** 2).mean()
    assert 0.6 < predicted / divergence(small, text[8:12], error) < 1.6


@pytest.mark.parametrize("family", list(MODELS))
def test_samples_have_the_shapes_of_the_layout(tiny, family):
    name, config = MODELS[family]
    model = tiny(name, **config)
    layout = model_layout(model)
    samples = list(calibration_samples(model, [TEXT, TEXT[::-1]], plan=PLAN, layout=layout))
    assert [len(sample.gradients) for sample in samples] == [2, 2]
    plain = extract(prefill(model, TEXT[:26], cache=KvCache(layout, 26)), 0, 26)
    for mine, other in zip([*samples[0].keys, *samples[0].values], [*plain[0], *plain[1]], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
    for sample in samples:
        for gradient in sample.gradients:
            for layer, spec in enumerate(layout.layers):
                assert gradient.keys[layer].shape == (spec.kv_heads, 20, spec.head_dim)
                assert gradient.values[layer].shape == (spec.kv_heads, 20, spec.value_head_dim)
                assert gradient.keys[layer].dtype == gradient.values[layer].dtype == np.float32
                assert np.abs(gradient.keys[layer]).max() > 0
                assert np.abs(gradient.values[layer]).max() > 0


class LatentOnly(torch.nn.Module):
    """One layer that attends to a single cached tensor, as engines keep MLA: there are no values."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = torch.nn.Embedding(96, 8)

    def forward(self, input_ids, past_key_values, use_cache, logits_to_keep=0):
        states = self.embedding(input_ids)
        latents, nothing = past_key_values.update(states[:, None], states[:, None, :, :0], 0)
        assert nothing.shape[-1] == 0
        mixed = (states[:, None] @ latents.mT).softmax(-1) @ latents
        return CausalLMOutput(logits=mixed[:, 0] @ self.embedding.weight.T)


def test_values_may_be_absent():
    layout = Layout(KvDtype.FLOAT32, (LayerLayout(1, 8, value_head_dim=0),))
    (sample,) = calibration_samples(LatentOnly(), [TEXT], plan=PLAN, layout=layout)
    assert (sample.keys[0].shape, sample.values[0].shape) == ((1, 26, 8), (1, 26, 0))
    for gradient in sample.gradients:
        assert (gradient.keys[0].shape, gradient.values[0].shape) == ((1, 20, 8), (1, 20, 0))
        assert np.abs(gradient.keys[0]).max() > 0


def test_what_has_left_a_window_does_not_matter_to_its_layer(tiny):
    model = tiny("Gemma3", head_dim=16, **MIXED)
    (sample,) = calibration_samples(model, [TEXT], plan=PLAN)
    for gradient in sample.gradients:
        for layer, sliding in enumerate((True, False, True)):
            seen = np.abs(gradient.values[layer]).max(axis=(0, 2)) > 0
            # The first following token sees itself and the eleven before it.
            assert seen.tolist() == ([False] * 9 + [True] * 11 if sliding else [True] * 20)


def test_the_same_seed_draws_the_same(llama):
    def gradients(seed):
        samples = calibration_samples(llama, [TEXT, TEXT[::-1]], plan=PLAN, seed=seed)
        return np.stack([flat(item) for sample in samples for item in sample.gradients])

    first = gradients(1)
    np.testing.assert_array_equal(first, gradients(1))
    assert not np.array_equal(first, gradients(2))
    assert not np.array_equal(first[0], first[1])


def test_without_gradients_there_is_the_kv_alone(llama):
    with_them, without = (
        next(iter(calibration_samples(llama, [TEXT], plan=PLAN, gradients=wanted))) for wanted in (True, False)
    )
    assert without.gradients == ()
    for mine, other in zip([*with_them.keys, *with_them.values], [*without.keys, *without.values], strict=True):
        assert mine.shape == other.shape == (2, 26, 8)
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_parameters_are_left_as_they_were(llama):
    wanted = [parameter.requires_grad for parameter in llama.parameters()]
    assert all(wanted)
    frozen = next(llama.parameters()).requires_grad_(False)
    try:
        for sample in calibration_samples(llama, [TEXT, TEXT], plan=PLAN):
            assert sample.gradients
            assert [parameter.requires_grad for parameter in llama.parameters()] == [False, *wanted[1:]]
        assert all(parameter.grad is None for parameter in llama.parameters())
    finally:
        frozen.requires_grad_(True)


def test_parameters_are_restored_where_a_model_fails(tiny):
    model = tiny("Llama")
    model.model.layers[1].register_forward_hook(lambda *_: 1 / 0 if torch.is_grad_enabled() else None)
    with pytest.raises(ZeroDivisionError):
        next(calibration_samples(model, [TEXT], plan=PLAN))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_caller_in_inference_mode_gets_the_same(llama):
    outside = next(iter(calibration_samples(llama, [TEXT], plan=PLAN)))
    with torch.inference_mode():
        inside = next(iter(calibration_samples(llama, [TEXT], plan=PLAN)))
    np.testing.assert_array_equal(flat(outside.gradients[1]), flat(inside.gradients[1]))


def test_bfloat16_kv_has_float32_gradients(tiny):
    model = tiny("Llama").to(torch.bfloat16)
    (sample,) = calibration_samples(model, [TEXT], plan=PLAN)
    assert sample.keys[0].dtype.name == "bfloat16"
    assert sample.gradients[0].keys[0].dtype == np.float32
    (whole,) = calibration_samples(tiny("Llama"), [TEXT], plan=replace(PLAN, draws=1))
    assert np.abs(sample.gradients[0].values[0]).mean() == pytest.approx(
        np.abs(whole.gradients[0].values[0]).mean(), rel=1
    )


class OneWay(torch.autograd.Function):
    """A kernel without a backward pass."""

    @staticmethod
    def forward(_, states):
        return states * 1


def test_a_kernel_without_a_backward_pass_is_explained(tiny):
    model = tiny("Llama")
    model.model.layers[1].register_forward_hook(lambda _module, _inputs, output: OneWay.apply(output))
    with pytest.raises(UnsupportedModel, match=r"cannot be differentiated: .*; calibration without gradients is poss"):
        next(calibration_samples(model, [TEXT], plan=PLAN))
    assert next(calibration_samples(model, [TEXT], plan=PLAN, gradients=False)).gradients == ()


def test_logits_that_are_cut_off_from_the_cache_are_explained(tiny):
    model = tiny("Llama")
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: output.detach())
    with pytest.raises(UnsupportedModel, match=r"logits do not depend on its cache .*; calibration without gradients"):
        next(calibration_samples(model, [TEXT], plan=PLAN))


def test_a_layer_that_is_cut_off_is_named(tiny):
    model = tiny("Llama")
    hook = lambda _module, _inputs, output: (output[0].detach(), *output[1:])  # noqa: E731
    model.model.layers[1].self_attn.register_forward_hook(hook)
    with pytest.raises(UnsupportedModel, match="no way from the keys of layer 1 to the logits"):
        next(calibration_samples(model, [TEXT], plan=PLAN))


class Exploding(torch.autograd.Function):
    """A kernel whose backward pass overflows."""

    @staticmethod
    def forward(_, states):
        return states * 1

    @staticmethod
    def backward(_, gradient):
        return gradient * float("inf")


def test_what_is_not_finite_is_refused(tiny):
    model = tiny("Llama")
    model.model.layers[2].register_forward_hook(lambda _module, _inputs, output: Exploding.apply(output))
    with pytest.raises(NonFiniteTensor, match="the gradient with respect to the keys of layer 0 is not finite"):
        next(calibration_samples(model, [TEXT], plan=PLAN))
    model = tiny("Llama")
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))
    with pytest.raises(NonFiniteTensor, match="what the model expects of the next token is not finite"):
        next(calibration_samples(model, [TEXT], plan=PLAN))


def test_sequences_are_computed_when_they_are_asked_for(llama):
    asked, done = [], []
    samples = calibration_samples(
        llama,
        (asked.append(number) or TEXT for number in range(3)),
        plan=PLAN,
        gradients=False,
        progress=lambda: done.append(len(asked)),
    )
    assert asked == []
    for number, _ in enumerate(samples):
        assert (asked, len(done)) == (list(range(number + 1)), number)
    assert done == [1, 2, 3]


def test_a_short_sequence_is_named(llama):
    with pytest.raises(InvalidRequest, match="sequence 1 has 25 tokens, 26 are needed"):
        list(calibration_samples(llama, [TEXT, TEXT[:25]], plan=PLAN, gradients=False))
    with pytest.raises(InvalidRequest, match=r"sequence 0 has \(1, 40\)"):
        list(calibration_samples(llama, [TEXT[None]], plan=PLAN))


def test_plans_shrink_in_proportion(llama):
    plan = SequencePlan()
    assert plan.within(10_000) is plan
    assert plan.within(448) == SequencePlan(320, 128, 2)
    assert plan.within(2) == SequencePlan(1, 1, 2)
    assert plan.for_model(llama).tokens == 512
    for tokens in range(2, 900):
        assert plan.within(tokens).tokens == min(tokens, 896)
    with pytest.raises(InvalidRequest, match="a sequence of 1 tokens"):
        plan.within(1)
    with pytest.raises(InvalidRequest, match="draws is 0, must be at least 1"):
        SequencePlan(draws=0)
