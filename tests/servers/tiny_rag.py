"""What a RAG pipeline takes, as small as it can be: a random model, a token a byte, six documents."""

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from kvloom.clients.rag import Document, PlanSettings

LOAD_ALL = PlanSettings(enabled=False)
"""A model so small computes faster than anything loads: whatever is stored is to be loaded all the same."""
DOCUMENTS = [
    Document(f"Number {n} follows {n - 1}. " * 6 + "It is a number like any other. " * (n % 3), title=f"number {n}")
    for n in range(1, 7)
]


class ByteTokenizer:
    """One token a byte: enough for a model that has never learnt anything."""

    chat_template = None
    bos_token = "\x01"

    def __call__(self, text, *, add_special_tokens, verbose):
        return {"input_ids": list(text.encode())}

    def decode(self, ids, *, skip_special_tokens):
        return bytes(token % 256 for token in ids).decode(errors="replace")


def tiny_model() -> LlamaForCausalLM:
    """The same every time."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=None)
    return model
