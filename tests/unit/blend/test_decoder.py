"""Finding the decoder layers of models nobody told us about."""

import pytest

torch = pytest.importorskip("torch", reason="decoder layers are torch modules")

from transformers import MambaConfig, MambaForCausalLM  # noqa: E402

from kvloom.blend.decoder import decoder_layers  # noqa: E402
from kvloom.errors import UnsupportedModel  # noqa: E402


def test_layers_are_found_in_order(any_model):
    layers = decoder_layers(any_model)
    assert len(layers) == 4
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3]


def test_a_model_without_a_cache_in_its_layers_is_refused():
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    with pytest.raises(UnsupportedModel, match=r"MambaForCausalLM: need one list of 2 decoder layers .* found none"):
        decoder_layers(MambaForCausalLM(MambaConfig(**sizes)))


def test_two_candidates_are_refused(llama):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = llama.config
            self.left, self.right = llama.model.layers, torch.nn.ModuleList(list(llama.model.layers))

    with pytest.raises(UnsupportedModel, match="found left, right"):
        decoder_layers(Twice())
