"""What a model's KV is, found out from tiny models with random weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Transformers client runs torch models")

import transformers  # noqa: E402

from kvloom.blend import KvCache  # noqa: E402
from kvloom.clients.transformers import extract, model_layout, prefill, probing  # noqa: E402
from kvloom.codec.layout import AttentionKind, KvDtype, Rope  # noqa: E402
from kvloom.codec.rope import rotate  # noqa: E402
from kvloom.errors import UnsupportedModel  # noqa: E402

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
MLA = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "kv_lora_rank": 24,
    "q_lora_rank": 16,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "head_dim": 8,
}
TOKENS = np.array([5, 17, 5, 80, 5, 44, 5])


def test_layout_of_a_plain_model(llama):
    layout = model_layout(llama)
    assert layout.dtype == KvDtype.FLOAT32
    assert len(layout.layers) == 3
    assert len(set(layout.layers)) == 1
    layer = layout.layers[0]
    assert (layer.kv_heads, layer.head_dim, layer.attention) == (2, 8, AttentionKind.FULL)
    np.testing.assert_allclose(layer.rope.inverse_frequencies, 10_000.0 ** -(np.arange(4) / 4), rtol=1e-6)
    assert not layer.rope.interleaved


@pytest.mark.parametrize(
    ("family", "config", "rotary_dim", "interleaved"),
    [
        ("Llama", {}, 8, False),
        ("Qwen3", {"head_dim": 16}, 16, False),
        ("Phi3", {"partial_rotary_factor": 0.5, "pad_token_id": 0}, 4, False),
        ("Cohere", {"pad_token_id": 0}, 8, True),
        ("Glm", {"head_dim": 16, "pad_token_id": 0}, 8, True),
        ("Llama", {"rope_parameters": YARN}, 8, False),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 8, False),
    ],
)
def test_unrotated_keys_do_not_know_their_position(tiny, family, config, rotary_dim, interleaved):
    """One token at several positions has, in the first layer, one and the same key once its rotation is undone."""
    model = tiny(family, **config)
    layout = model_layout(model)
    rope = layout.layers[0].rope
    assert (rope.rotary_dim, rope.interleaved) == (rotary_dim, interleaved)
    long = np.concatenate([TOKENS, np.full(400, 9), TOKENS])
    keys, _ = extract(prefill(model, long, cache=KvCache(layout, len(long))), 0, len(long))
    same = np.flatnonzero(long == 5)
    plain = rotate(np.ascontiguousarray(keys[0]), rope, -np.arange(len(long)))[:, same]
    assert np.abs(plain - plain[:, :1]).max() <= 1e-4
    assert np.abs(keys[0][:, same] - keys[0][:, same[:1]]).max() > 1e-2


def test_layers_of_different_kinds(tiny):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    layout = model_layout(tiny("Gemma3", head_dim=16, sliding_window=12, layer_types=kinds))
    assert [layer.window_tokens for layer in layout.layers] == [12, 0, 12]
    assert layout.layers[0].attention == AttentionKind.SLIDING
    local, everywhere = layout.layers[0].rope, layout.layers[1].rope
    assert local.inverse_frequencies[-1] > 10 * everywhere.inverse_frequencies[-1]


def test_a_window_without_layer_types_is_seen(tiny):
    assert model_layout(tiny("Mistral", sliding_window=12)).layers[0].window_tokens == 12


def test_layers_without_positions_turn_by_nothing(tiny):
    layout = model_layout(tiny("SmolLM3", no_rope_layers=[1, 0, 1], pad_token_id=0))
    assert layout.layers[1].rope == Rope((0.0,))
    assert layout.layers[0].rope.rotary_dim == 8


def test_positions_that_no_rotation_explains_are_left_in_the_keys(tiny):
    dynamic = tiny("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert {layer.rope for layer in model_layout(dynamic).layers} == {None}
    learned = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)
    layout = model_layout(transformers.GPT2LMHeadModel(learned).eval())
    assert {layer.rope for layer in layout.layers} == {None}
    assert (layout.layers[0].kv_heads, layout.layers[0].head_dim) == (4, 8)


def test_positions_that_a_model_counts_itself_are_not_taken_for_none(tiny):
    """Bart's decoder has learned positions and ignores those it is told: single tokens all look alike."""
    bart = tiny("Bart", d_model=32, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=48)
    assert {layer.rope for layer in model_layout(bart).layers} == {None}


@pytest.mark.parametrize(("family", "config"), [("Bloom", {"n_layer": 2, "n_head": 4}), ("Falcon", {"alibi": True})])
def test_keys_that_know_no_position_turn_by_nothing(tiny, family, config):
    """ALiBi lives in the scores."""
    assert {layer.rope for layer in model_layout(tiny(family, **config)).layers} == {Rope((0.0,))}


def test_frequencies_that_depend_on_the_length_are_left_in_the_keys(tiny):
    factors = {"short_factor": [1.0, 1.2], "long_factor": [2.0, 3.0], "original_max_position_embeddings": 256}
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, **factors}
    longrope = tiny("Phi3", pad_token_id=0, original_max_position_embeddings=256, rope_parameters=scaling)
    assert {layer.rope for layer in model_layout(longrope).layers} == {None}


def test_latents_have_a_rope_of_their_own(tiny):
    """Transformers keeps the latent of MLA as keys and what it rotates as values."""
    layer = model_layout(tiny("DeepseekV2", **MLA)).layers[2]
    assert (layer.kv_heads, layer.head_dim, layer.value_head_dim) == (1, 24, 8)
    assert layer.rope == Rope((0.0,))
    assert (layer.value_rope.rotary_dim, layer.value_rope.interleaved) == (8, True)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("first_dim", [0, 12])
def test_either_end_of_a_head_may_be_rotated(interleaved, first_dim):
    """The first dimensions by Phi, the last by MLA whose projections are not absorbed."""
    true = Rope((1.0, 0.1, 0.01, 0.001), interleaved, first_dim)
    positions, rng = torch.tensor([0, 3, 211]), np.random.default_rng(1)
    plain = np.repeat(rng.standard_normal((6, 1, 20)).astype(np.float32), 3, axis=1)
    states = torch.from_numpy(rotate(plain, true, positions.numpy())).unflatten(0, (3, 2)).permute(0, 2, 1, 3)
    tables = [probing._Table((1.0, 0.2, 0.03, 0.004), False), probing._Table(true.inverse_frequencies, False)]
    assert probing._find_rope(states, positions, tables) == true
    assert probing._find_rope(states, positions, tables[:1]) is None
    assert probing._find_rope(states, positions, [probing._Table(true.inverse_frequencies, True)]) is None


def test_an_encoder_decoder_model_is_refused():
    config = transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        model_layout(transformers.T5ForConditionalGeneration(config).eval())


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, KvDtype.BFLOAT16), (torch.float16, KvDtype.FLOAT16)])
def test_half_precision_models_are_understood(tiny, dtype, name):
    layout = model_layout(tiny("Llama").to(dtype))
    assert layout.dtype == name
    assert layout.layers[2].rope is not None


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("Qwen3Next", {"head_dim": 16}, "layer 0 keeps a LinearAttentionLayer"),
        ("Llama4", {"num_local_experts": 2, "head_dim": 16, "intermediate_size_mlp": 32, "pad_token_id": 0}, "chunked"),
        ("Mamba", {"state_size": 4}, "layer 0 keeps a LinearAttentionLayer"),
        ("FalconH1", {}, "layer 0 keeps a LinearAttentionAndFullAttentionLayer"),
        ("DeepseekV32", {**MLA, "index_n_heads": 2, "index_head_dim": 16}, "layer 0 keeps a DynamicIndexedLayer"),
    ],
)
def test_caches_of_another_kind_are_refused(tiny, family, config, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        model_layout(tiny(family, **config))
