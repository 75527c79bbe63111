"""A gate is what the model itself makes of blended prompts; a pipeline goes by it, for that model only."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="blending runs torch models")

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

from kvloom.blend.gate import BlendGate, QualityTarget, RatioQuality  # noqa: E402
from kvloom.blend.select import FirstTokens  # noqa: E402
from kvloom.clients.rag.blending import DocumentBlender, Refused  # noqa: E402
from kvloom.clients.rag.documents import PromptTemplate  # noqa: E402
from kvloom.clients.rag.gating import gated, measure_gate  # noqa: E402
from kvloom.clients.rag.trials import trials_of  # noqa: E402
from kvloom.clients.transformers import model_layout  # noqa: E402
from kvloom.codec.generic import generic_profile  # noqa: E402
from kvloom.codec.profile import Profile  # noqa: E402

pytestmark = pytest.mark.model

FINGERPRINT = b"m" * 32
TEXT = " ".join(f"w{n}" for n in range(400))


class ByteTokenizer:
    """One token a byte."""

    chat_template = None
    bos_token = "\x01"

    def __call__(self, text, *, add_special_tokens, verbose):
        return {"input_ids": list(text.encode())}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=256, max_position_embeddings=4096, initializer_range=0.2, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def template():
    return PromptTemplate(ByteTokenizer())


TRIALS = trials_of([TEXT], 3, words=20)


def test_the_target_decides_which_ratio_it_is(model, template):
    told = []
    measure = {"fingerprint": FINGERPRINT, "progress": lambda: told.append(None)}
    easy = measure_gate(model, template, TRIALS, target=QualityTarget(10.0, 0.0), **measure)
    assert easy.chosen.ratio == min(item.ratio for item in easy.measured) == 0.05
    assert (easy.prompts, easy.reason, len(told)) == (3, "", 3 * len(easy.measured))
    impossible = measure_gate(model, template, TRIALS, target=QualityTarget(1e-12, 1.0), **measure)
    assert impossible.chosen is None
    assert "at most 1e-12" in impossible.reason
    kls = [item.kl for item in impossible.measured]
    assert kls == sorted(kls, reverse=True)
    assert kls[-1] > 0


def test_what_the_codec_loses_counts(model, template):
    target, generic = QualityTarget(1e-12, 1.0), generic_profile(model_layout(model))
    plain = measure_gate(model, template, TRIALS, fingerprint=FINGERPRINT, target=target)
    coded = measure_gate(model, template, TRIALS, fingerprint=FINGERPRINT, target=target, profile=generic)
    assert coded.measured[-1].kl != plain.measured[-1].kl
    profile = gated(generic, model, template, TRIALS, fingerprint=FINGERPRINT, target=target)
    assert Profile.from_bytes(profile.data).blend_gate == coded.to_bytes()


def test_models_that_cannot_be_blended_get_a_gate_that_says_why(template):
    torch.manual_seed(0)
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=2048, n_embd=16, n_layer=2, n_head=2)).eval()
    gate = measure_gate(learned, template, TRIALS, fingerprint=FINGERPRINT)
    assert gate.refusal == gate.reason == "2 of 2 layers, the first 0, have keys whose position cannot be undone"
    blender = DocumentBlender(learned, model_layout(learned), FINGERPRINT, None)
    assert "position cannot be undone" in blender.refusal
    assert blender.blend(None) == Refused(blender.refusal)


def test_prompts_longer_than_the_model_are_not_tried(template, model):
    short = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "max_position_embeddings": 128})).eval()
    gate = measure_gate(short, template, TRIALS, fingerprint=FINGERPRINT)
    assert "the model was made for 128" in gate.reason


def test_a_pipeline_goes_by_the_gate_of_its_own_model(model):
    layout = model_layout(model)
    generic = generic_profile(layout)
    target = QualityTarget(0.05, 0.5)

    def with_gate(fingerprint, kl):
        gate = BlendGate(fingerprint, target, 2, (RatioQuality(0.25, kl, 0.0, 1.0),))
        return replace(generic, blend_gate=gate.to_bytes())

    blender = DocumentBlender(model, layout, FINGERPRINT, None)
    unmeasured = blender.rule.ratio
    blender.follow(with_gate(FINGERPRINT, 0.01))
    assert (blender.rule.ratio, blender.refusal) == (0.25, "")
    blender.follow(with_gate(FINGERPRINT, 0.2))
    assert "misses the quality" in blender.refusal
    blender.follow(with_gate(b"x" * 32, 0.2))
    assert (blender.rule.ratio, blender.refusal, blender.gate) == (unmeasured, "", None)
    blender.follow(replace(generic, blend_gate=b"of tomorrow"))
    assert "cannot be read" in blender.refusal
    blender.follow(None)
    assert blender.refusal == ""
    chosen = DocumentBlender(model, layout, FINGERPRINT, FirstTokens(0.4))
    chosen.follow(with_gate(FINGERPRINT, 0.2))
    assert (chosen.rule, chosen.refusal) == (FirstTokens(0.4), "")
