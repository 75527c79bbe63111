"""Watch or change what a model's attention does, in this thread and without knowing the model.

Every Transformers decoder attends through ``scaled_dot_product_attention`` or, with ``eager`` attention, through a
softmax over ``[1, heads, queries, keys]``. A :class:`torch.overrides.TorchFunctionMode` sees these calls where they are
made, for the calling thread only: nothing of the model or of torch is replaced, other threads run as before.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedModel

__all__ = ["AttentionMode", "AttentionReader", "attention_logits"]

QUERY_BLOCK = 256
"""Weights are formed for so many queries at a time: all of a long prompt's at once would not fit in memory."""


class AttentionMode(TorchFunctionMode):
    """Calls :meth:`attend` in place of every fused attention, :meth:`weigh` in place of every 4-axis softmax."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            return self.attend(func, *args, **given)
        if func is functional.softmax and args[0].ndim == 4:
            return self.weigh(func, *args, **given)
        return func(*args, **given)

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """The attention asked for; overridden to see or change it."""
        return attention(query, key, value, **how)

    def weigh(self, softmax: Callable[..., Tensor], logits: Tensor, *args: Any, **how: Any) -> Tensor:
        """The softmax asked for; overridden to see or change it."""
        return softmax(logits, *args, **how)


def attention_logits(query: Tensor, key: Tensor, how: Mapping[str, Any], rows: slice) -> Tensor:
    """What fused attention takes the softmax of, float32 ``[heads, rows, keys]``, for some ``rows`` of the queries.

    ``query`` is ``[1, heads, queries, head_dim]``, ``key`` ``[1, kv_heads, keys, head_dim]``, ``how`` the call's other
    arguments. A call without a mask and not causal sees every key.
    """
    heads, queries, dim = query.shape[1:]
    kv_heads, keys = key.shape[1:3]
    scale = how.get("scale")
    wanted = query[0, :, rows].float() * (dim**-0.5 if scale is None else scale)
    count = wanted.shape[1]
    grouped = wanted.reshape(kv_heads, heads // kv_heads * count, dim)
    logits: Tensor = (grouped @ key[0].float().transpose(1, 2)).view(heads, count, keys)
    mask = how.get("attn_mask")
    if mask is not None:
        seen: Tensor = mask[0].expand(-1, queries, keys)[:, rows]
        return logits.masked_fill_(~seen, float("-inf")) if seen.dtype == torch.bool else logits + seen
    if how.get("is_causal") and queries > 1:
        places = torch.arange(queries, device=key.device)[rows, None]
        logits.masked_fill_(torch.arange(keys, device=key.device) > places, float("-inf"))
    return logits


class AttentionReader(AttentionMode):
    """Hands out the attention that the last ``queries`` of each forward's tokens pay to exactly ``keys`` keys.

    ``receive`` is called in the order of the layers with the layer's number, which of the ``queries`` (a block of at
    most ``QUERY_BLOCK``), and their weights ``[heads, block, keys]`` float32. ``alone`` says that the forward has one
    token only: Transformers may hand its heads to the fused attention as if they were tokens. Raises
    :class:`UnsupportedModel` for attention of fewer queries; :meth:`check` says whether every layer was seen.
    """

    def __init__(
        self, receive: Callable[[int, slice, Tensor], None], keys: int, queries: int, *, alone: bool = False
    ) -> None:
        super().__init__()
        self._receive = receive
        self._keys, self._queries, self._alone = keys, queries, alone
        self._seen = 0

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """Form the weights that the fused attention keeps to itself, then let it run."""
        if key.shape[2] == self._keys:
            self._read(query, key, how)
            self._seen += 1
        return attention(query, key, value, **how)

    def weigh(self, softmax: Callable[..., Tensor], logits: Tensor, *args: Any, **how: Any) -> Tensor:
        """Take the weights that eager attention forms."""
        weights = softmax(logits, *args, **how)
        # Some models give every head a sink: one column more, behind the keys.
        if logits.shape[0] == 1 and logits.shape[-1] in (self._keys, self._keys + 1):
            seen = weights[0, :, self._first(logits) :, : self._keys].float()
            self._receive(self._seen, slice(0, self._queries), seen)
            self._seen += 1
        return weights

    def _read(self, query: Tensor, key: Tensor, how: Mapping[str, Any]) -> None:
        if self._alone:
            weights = attention_logits(query, key, how, slice(0, query.shape[2])).softmax(-1)
            self._receive(self._seen, slice(0, 1), weights.flatten(0, 1)[:, None])
            return
        first = self._first(query)
        for start in range(first, query.shape[2], QUERY_BLOCK):
            rows = slice(start, min(query.shape[2], start + QUERY_BLOCK))
            weights = attention_logits(query, key, how, rows).softmax(-1)
            self._receive(self._seen, slice(start - first, rows.stop - first), weights)

    def _first(self, states: Tensor) -> int:
        """The first of the rows ``[1, heads, rows, ...]`` that is asking."""
        if states.shape[2] < self._queries:
            raise UnsupportedModel(f"attention of {states.shape[2]} tokens was seen where {self._queries} are asking")
        return states.shape[2] - self._queries

    def check(self, layers: int) -> None:
        """Raise :class:`UnsupportedModel` unless every one of ``layers`` layers was seen once."""
        if self._seen != layers:
            raise UnsupportedModel(f"attention over the whole prompt was seen {self._seen} times in {layers} layers")
