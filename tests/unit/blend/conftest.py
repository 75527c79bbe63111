"""Tiny models with random weights, of several architectures: what blending promises holds for any weights."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny_models import SIZES

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral-sliding": ("Mistral", {"sliding_window": 12}),
    "gemma3-mixed": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "cohere-interleaved": ("Cohere", {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "smollm3-no-rope-layer": ("SmolLM3", {"pad_token_id": 0, "no_rope_layers": [1, 1, 0, 1]}),
    "mixtral-experts": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-experts": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "llama-yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "qwen2vl-m-rope": (
        "Qwen2VL",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    ),
    "gpt-oss-sinks": (
        "GptOss",
        {
            "num_local_experts": 4,
            "head_dim": 8,
            "pad_token_id": 0,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "glm-partial-interleaved": ("Glm", {"head_dim": 16, "pad_token_id": 0}),
    "deepseek-latents": (
        "DeepseekV3",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 16,
            "kv_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for their own threads, much longer still on a busy machine."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """``tiny_model(name, **config)``: a model of that architecture in evaluation mode, always the same weights."""
    import torch
    import transformers

    def make(name: str, **config: Any) -> Any:
        family, special = ARCHITECTURES[name]
        settings = {**SIZES, **special, **config}
        torch.manual_seed(11)
        if family == "Qwen2VL":
            vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
            whole = transformers.Qwen2VLConfig(text_config=settings, vision_config=vision)
            return transformers.Qwen2VLForConditionalGeneration(whole).eval()
        config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
        return getattr(transformers, f"{family}ForCausalLM")(config_class(**settings)).eval()

    return make


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> Any:
    """Each architecture in turn."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def llama(tiny_model: Callable[..., Any]) -> Any:
    """The plainest of them."""
    return tiny_model("llama")
