"""Every shape of KV there is, from model to bytes and back: tiny models with random weights, built from configurations.

For each: what probing finds, that un-rotated KV is the same wherever the text stands, that ``exact`` is exact, and
that a lossy level decodes to what the model computes, at home and at another place.
"""

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models run on torch")

from transformers import DynamicCache  # noqa: E402

from kvloom import codec  # noqa: E402
from kvloom.blend import KvCache  # noqa: E402
from kvloom.clients.transformers import extract, model_layout, prefill  # noqa: E402
from kvloom.codec.layout import AttentionKind, KeyCoding, Kind, Layout, Rope  # noqa: E402
from kvloom.codec.rope import rotate  # noqa: E402
from kvloom.errors import LayoutMismatch  # noqa: E402

pytestmark = pytest.mark.model

TOKENS, AWAY = 100, 150
FULL, SLIDING = AttentionKind.FULL, AttentionKind.SLIDING
WINDOW = 12
MLA = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@dataclass(frozen=True)
class Expected:
    """What a model's layers should be found to be; ``rotary_dim`` 0 stands for no position, None for one unknown."""

    kv_heads: int
    head_dim: int
    rotary_dim: int | None
    interleaved: bool = False
    value_head_dim: int | None = None
    value_rotary_dim: int = 0
    attention: tuple[AttentionKind, ...] = (FULL, FULL, FULL)


MODELS = {
    "mha": ("Llama", {"num_key_value_heads": 4}, Expected(4, 8, 8)),
    "gqa": ("Llama", {"num_key_value_heads": 2}, Expected(2, 8, 8)),
    "mqa": ("Llama", {"num_key_value_heads": 1}, Expected(1, 8, 8)),
    "qkv bias": ("Qwen2", {}, Expected(2, 8, 8)),
    "q/k norm": ("Qwen3", {"head_dim": 16}, Expected(2, 16, 16)),
    "head dim 256": ("Gemma", {"head_dim": 256, "num_key_value_heads": 1}, Expected(1, 256, 256)),
    "hybrid windows": ("Gemma3", {"head_dim": 16, **MIXED}, Expected(2, 16, 16, attention=(SLIDING, FULL, SLIDING))),
    "window": ("Mistral", {"sliding_window": WINDOW}, Expected(2, 8, 8, attention=(SLIDING,) * 3)),
    "sinks": (
        "GptOss",
        {"num_local_experts": 4, "head_dim": 8, "pad_token_id": 0, **MIXED},
        Expected(2, 8, 8, attention=(SLIDING, FULL, SLIDING)),
    ),
    "experts": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, Expected(2, 8, 8)),
    "partial": ("Phi", {"pad_token_id": 0}, Expected(2, 8, 4)),
    "partial, quarter": ("StableLm", {"pad_token_id": 0}, Expected(2, 8, 2)),
    "partial, interleaved": ("Glm", {"head_dim": 16, "pad_token_id": 0}, Expected(2, 16, 8, interleaved=True)),
    "yarn": ("Llama", {"rope_parameters": YARN}, Expected(2, 8, 8)),
    "llama 3 scaling": ("Llama", {"rope_parameters": LLAMA3}, Expected(2, 8, 8)),
    "linear scaling": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        Expected(2, 8, 8),
    ),
    "m-rope, text": ("Qwen2VL", {"rope_parameters": MROPE}, Expected(2, 8, 8)),
    "mla": ("DeepseekV3", MLA, Expected(1, 24, 0, value_head_dim=8, value_rotary_dim=8)),
    "mla, yarn": (
        "DeepseekV3",
        {**MLA, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
        Expected(1, 24, 0, value_head_dim=8, value_rotary_dim=8),
    ),
    "mla, interleaved": ("DeepseekV2", MLA, Expected(1, 24, 0, value_head_dim=8, value_rotary_dim=8, interleaved=True)),
    "alibi": ("Bloom", {"n_layer": 3, "n_head": 4}, Expected(4, 8, 0)),
    "learned positions": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4}, Expected(4, 8, None)),
    "dynamic scaling": ("Llama", {"rope_parameters": DYNAMIC}, Expected(2, 8, None)),
}
TEXT = np.random.default_rng(3).integers(1, 96, TOKENS)


@dataclass(frozen=True)
class Subject:
    """A model, what it should be, what it was found to be, and its KV of one text at position 0."""

    model: object
    expected: Expected
    layout: Layout
    keys: list[np.ndarray]
    values: list[np.ndarray]

    def at(self, first_position: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The KV of the same text when its first token stands at another position."""
        cache = KvCache(self.layout, TOKENS)
        positions = torch.arange(first_position, first_position + TOKENS)[None]
        with torch.inference_mode():
            self.model(
                input_ids=torch.from_numpy(TEXT)[None],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        return extract(cache, 0, TOKENS)


@pytest.fixture(scope="module", params=list(MODELS))
def subject(request, tiny) -> Subject:
    family, config, expected = MODELS[request.param]
    model = tiny(family, **config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as zeros and ones, which hide mistakes
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    layout = model_layout(model)
    keys, values = extract(prefill(model, TEXT, cache=KvCache(layout, TOKENS)), 0, TOKENS)
    return Subject(model, expected, layout, keys, values)


@pytest.fixture(scope="module")
def profile(subject) -> codec.Profile:
    return codec.calibrate([codec.KvSample(subject.keys, subject.values)], subject.layout)


def unrotated(layout, keys, values, first_position):
    positions = -np.arange(first_position, first_position + TOKENS)
    return [
        item if layer.rope_of(kind) is None else rotate(np.ascontiguousarray(item), layer.rope_of(kind), positions)
        for kind, items in zip(Kind, (keys, values), strict=True)
        for layer, item in zip(layout.layers, items, strict=True)
    ]


def movable(subject) -> None:
    if subject.expected.rotary_dim is None:
        pytest.skip("its keys cannot be turned")


def test_probing_finds_what_it_is(subject):
    expected = subject.expected
    assert [layer.attention for layer in subject.layout.layers] == list(expected.attention)
    assert [layer.window_tokens for layer in subject.layout.layers] == [
        WINDOW if kind is SLIDING else 0 for kind in expected.attention
    ]
    for layer in subject.layout.layers:
        assert (layer.kv_heads, layer.head_dim) == (expected.kv_heads, expected.head_dim)
        assert layer.value_head_dim == (expected.value_head_dim or expected.head_dim)
        if expected.rotary_dim is None:
            assert layer.rope is None
        elif expected.rotary_dim == 0:
            assert layer.rope == Rope((0.0,))
        else:
            assert (layer.rope.rotary_dim, layer.rope.interleaved) == (expected.rotary_dim, expected.interleaved)
        if expected.value_rotary_dim:
            assert layer.value_rope.rotary_dim == expected.value_rotary_dim
            assert layer.value_rope.interleaved == expected.interleaved
        else:
            assert layer.value_rope is None


def test_unrotated_kv_is_the_same_wherever_the_text_stands(subject):
    movable(subject)
    here = unrotated(subject.layout, subject.keys, subject.values, 0)
    there = unrotated(subject.layout, *subject.at(AWAY), AWAY)
    for mine, other in zip(here, there, strict=True):
        assert np.abs(mine - other).max() <= 1e-4


def test_rotated_kv_is_not_the_same_elsewhere(subject):
    """So that the test above says something."""
    if not (subject.expected.rotary_dim or subject.expected.value_rotary_dim):
        pytest.skip("nothing in it turns")
    keys, values = subject.at(AWAY)
    for layer in range(len(keys)):
        moved = max(
            np.abs(keys[layer] - subject.keys[layer]).max(), np.abs(values[layer] - subject.values[layer]).max()
        )
        assert moved > 1e-2


def test_exact_is_exact(subject):
    keys, values = codec.decode(codec.encode(subject.keys, subject.values, layout=subject.layout))
    for mine, theirs in zip([*keys, *values], [*subject.keys, *subject.values], strict=True):
        assert mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()


def test_lossy_is_near_at_home_and_away(subject, profile):
    blob = codec.encode(subject.keys, subject.values, layout=subject.layout, profile=profile)
    places = [(None, (subject.keys, subject.values))]
    if subject.expected.rotary_dim is not None:
        places.append((AWAY, subject.at(AWAY)))
    for first_position, (keys, values) in places:
        decoded = codec.decode(blob, profile=profile, level="standard", first_position=first_position)
        for mine, theirs in zip([*decoded[0], *decoded[1]], [*keys, *values], strict=True):
            # Noise in place of KV, or KV turned the wrong way, would be off by one deviation and more.
            assert np.sqrt(((mine - theirs) ** 2).mean()) < 0.5 * theirs.std()


def test_a_container_says_how_its_keys_are_coded(subject, profile):
    blob = codec.encode(
        subject.keys, subject.values, layout=subject.layout, profile=profile, levels=(*codec.LOSSY_LEVELS, codec.EXACT)
    )
    fixed = subject.expected.rotary_dim is None
    assert set(codec.info(blob).key_coding) == {KeyCoding.AS_GIVEN if fixed else KeyCoding.UNROTATED}
    if fixed:
        for level in ("exact", "standard"):
            with pytest.raises(LayoutMismatch, match="cannot be moved"):
                codec.decode(blob, profile=profile, level=level, first_position=1)


def test_our_cache_is_as_good_as_their_own(subject):
    """Their caches forget what has left a window; ours keep it, and the model must not see it."""
    rest = torch.from_numpy(TEXT[:7])[None]
    ours, theirs = KvCache(subject.layout, TOKENS + 7), DynamicCache(config=subject.model.config)
    prefill(subject.model, TEXT, cache=ours)
    with torch.inference_mode():
        subject.model(input_ids=torch.from_numpy(TEXT)[None], past_key_values=theirs, use_cache=True)
        logits = [
            subject.model(input_ids=rest, past_key_values=cache, use_cache=True).logits for cache in (ours, theirs)
        ]
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert [item.shape[1] for item in extract(ours, 0, TOKENS + 7)[0]] == [TOKENS + 7] * 3


def test_keys_of_images_are_coded_as_they_are(tiny):
    """Under M-RoPE a token of an image has a position on three axes, and no rotation by one number undoes that."""
    model = tiny("Qwen2VL", rope_parameters=MROPE)
    layout = model_layout(model)
    text = torch.arange(TOKENS)
    grid = torch.stack([torch.full((TOKENS,), 5), 5 + text // 10, 5 + text % 10])  # time, row, column
    cache = KvCache(layout, TOKENS)
    with torch.inference_mode():
        ids = torch.from_numpy(TEXT)[None]
        model(input_ids=ids, position_ids=grid[:, None], past_key_values=cache, use_cache=True)
    keys, values = extract(cache, 0, TOKENS)
    plain = rotate(np.ascontiguousarray(keys[0]), layout.layers[0].rope, -np.arange(TOKENS))
    same = np.flatnonzero(np.bincount(TEXT).argmax() == TEXT)
    assert np.abs(plain[:, same] - plain[:, same[:1]]).max() > 1e-3
    given = layout.as_given()
    blob = codec.encode(keys, values, layout=given, profile=codec.calibrate([codec.KvSample(keys, values)], given))
    assert set(codec.info(blob).key_coding) == {KeyCoding.AS_GIVEN}
    assert given.digest() != layout.digest()
