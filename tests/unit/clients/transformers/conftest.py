"""Tiny models with random weights, of any architecture that Transformers has."""

from collections.abc import Callable
from typing import Any

import pytest

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """``tiny(family, seed=2, **config)``: a causal model in evaluation mode, the same weights for the same seed.

    ``Qwen2VL`` comes whole, with a vision tower nobody looks through.
    """
    import torch
    import transformers

    def make(family: str, seed: int = 2, **config: Any) -> Any:
        torch.manual_seed(seed)
        if family == "Qwen2VL":
            vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
            whole = transformers.Qwen2VLConfig(text_config={**SIZES, **config}, vision_config=vision)
            return transformers.Qwen2VLForConditionalGeneration(whole).eval()
        config_class = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
        names = (f"{family}ForCausalLM", f"{family}LMHeadModel")
        model_class = next(found for name in names if (found := getattr(transformers, name, None)) is not None)
        return model_class(config_class(**{**SIZES, **config})).eval()

    return make


@pytest.fixture(scope="module")
def llama(tiny: Callable[..., Any]) -> Any:
    """The plainest of them."""
    return tiny("Llama")
