"""The model under test, its KV of a context, and what it says after a context."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvloom.blend.cache import KvCache
from kvloom.clients.transformers import extract, load_gemma3, load_smollm2, model_layout, prefill
from kvloom.codec import Layout

from .texts import TokenIds

CONTEXT, FOLLOWING, CHUNK = 768, 128, 256
CONTEXT_TOKENS = CONTEXT + FOLLOWING + 1
"""Each of the ``FOLLOWING`` distributions has the token that really came next."""
CALIBRATION_TOKENS = 1024

FloatArray = NDArray[np.float32]
MODELS = {"smollm2": load_smollm2, "gemma3": load_gemma3}


@dataclass(frozen=True, slots=True)
class Kv:
    """Keys and values of consecutive tokens, per layer float32 ``[kv_heads, tokens, head_dim]``, keys rotated."""

    keys: list[FloatArray]
    values: list[FloatArray]


@dataclass(frozen=True, slots=True)
class Subject:
    """A loaded model; ``name`` is one of ``MODELS``, ``folder`` names the weights."""

    name: str
    model: Any
    tokenizer: Any
    folder: Path
    layout: Layout

    @classmethod
    def load(cls, name: str) -> "Subject":
        """The model called ``name``."""
        loaded = MODELS[name]()
        return cls(name, loaded.model, loaded.tokenizer, loaded.folder, model_layout(loaded.model))

    def kv(self, ids: TokenIds) -> Kv:
        """The KV of ``ids`` as a context of its own; arrays of the caller's."""
        keys, values = extract(prefill(self.model, ids, cache=KvCache(self.layout, len(ids))), 0, len(ids))
        return Kv([np.array(item) for item in keys], [np.array(item) for item in values])

    @torch.inference_mode()
    def following(self, ids: TokenIds, keys: Sequence[FloatArray], values: Sequence[FloatArray]) -> Tensor:
        """Logits float32 ``[FOLLOWING, vocabulary]`` of a text ``ids`` whose context has this KV."""
        cache = KvCache(self.layout, CONTEXT + FOLLOWING)
        for layer in range(len(self.layout.layers)):
            room = cache.layer_arrays(layer)
            room.keys[:, :CONTEXT] = keys[layer]
            room.values[:, :CONTEXT] = values[layer]
        cache.truncate(CONTEXT)
        rest = torch.from_numpy(ids[CONTEXT : CONTEXT + FOLLOWING])[None]
        logits: Tensor = self.model(input_ids=rest, past_key_values=cache, use_cache=True).logits[0]
        return logits.float()
