"""Run a model on our caches: prefill, take KV out, decode greedily, compare what two caches make it say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...blend.cache import KvCache
from ...errors import InvalidRequest
from .probing import model_layout

__all__ = ["divergence", "extract", "greedy", "log_probabilities", "next_logits", "prefill", "said"]


@torch.inference_mode()
def prefill(model: Any, token_ids: NDArray[np.int64], *, cache: KvCache | None = None) -> KvCache:
    """Run ``token_ids`` ``[n]`` after what ``cache`` holds (default: nothing, a new cache of just that size)."""
    ids = np.asarray(token_ids, dtype=np.int64)
    if cache is None:
        cache = KvCache(model_layout(model), max(1, ids.size), model.device)
    next_logits(model, cache, ids)
    return cache


@torch.inference_mode()
def next_logits(model: Any, cache: KvCache, token_ids: NDArray[np.int64]) -> Tensor:
    """Run ``token_ids`` ``[n]`` after what ``cache`` holds; the last one's logits ``[vocabulary]``."""
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.ndim != 1 or ids.size == 0:
        raise InvalidRequest(f"token ids to prefill have shape {ids.shape}, need a list of at least 1")
    tokens = torch.from_numpy(ids).to(model.device)
    output = model(input_ids=tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: Tensor = output.logits[0, -1]
    return logits


@torch.inference_mode()
def log_probabilities(model: Any, cache: KvCache, token_ids: NDArray[np.int64]) -> Tensor:
    """Run ``token_ids`` ``[n]``; after each of them, float64 log-probabilities ``[n, vocabulary]``."""
    tokens = torch.from_numpy(np.asarray(token_ids, dtype=np.int64)).to(model.device)
    logits: Tensor = model(input_ids=tokens[None], past_key_values=cache, use_cache=True).logits[0]
    return logits.double().log_softmax(-1)


@torch.inference_mode()
def said(model: Any, cache: KvCache, logits: Tensor, answer: Sequence[int]) -> Tensor:
    """Log-probabilities float64 ``[answer, vocabulary]`` of each token of ``answer`` after those before it.

    ``cache`` holds the prompt, ``logits`` ``[vocabulary]`` are its last token's; all but the last of ``answer`` is run.
    """
    first = logits.double().log_softmax(-1)[None]
    if len(answer) < 2:
        return first
    return torch.cat([first, log_probabilities(model, cache, np.asarray(answer[:-1], dtype=np.int64))])


def divergence(expected: Tensor, found: Tensor) -> Tensor:
    """The KL divergence (nats) ``[n]`` of log-probabilities ``found`` ``[n, vocabulary]`` from ``expected``."""
    return (expected.exp() * (expected - found)).sum(-1)


def extract(cache: KvCache, start: int, stop: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Views of the keys and values of tokens ``[start, stop)``, per layer ``[kv_heads, tokens, head_dim]``.

    They share the cache's memory: good until the cache is written to at those tokens again.
    """
    if not 0 <= start < stop <= cache.length:
        raise InvalidRequest(f"tokens {start} to {stop} are not in the cache, which holds {cache.length}")
    arrays = [cache.layer_arrays(layer) for layer in range(len(cache.layout.layers))]
    return [item.keys[:, start:stop] for item in arrays], [item.values[:, start:stop] for item in arrays]


@torch.inference_mode()
def greedy(model: Any, cache: KvCache, last_token: int, count: int) -> list[int]:
    """The ``count`` most likely tokens after ``last_token``, which the cache does not hold yet."""
    found: list[int] = []
    for _ in range(count):
        token = torch.tensor([[last_token]], device=model.device)
        output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        last_token = int(output.logits[0, -1].argmax())
        found.append(last_token)
    return found
