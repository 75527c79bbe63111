"""Watch or change what a model's attention does, in this thread and without knowing the model.

Every Transformers decoder attends through ``scaled_dot_product_attention`` or, with ``eager`` attention, through a
softmax over ``[1, heads, queries, keys]``. A :class:`torch.overrides.TorchFunctionMode` sees these calls where they are
made, for the calling thread only: nothing of the model or of torch is replaced, other threads run as before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedModel

__all__ = ["AttentionMode", "AttentionReader", "GroupedAttention", "attention_logits"]

QUERY_BLOCK = 256
"""Weights are formed for so many queries at a time: all of a long prompt's at once would not fit in memory."""
_GROUP_ROWS: Final = 48
"""Queries that attend together, at least: of fewer, the fused attention's own overhead is more than what is saved."""


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
        """Form the weights that the fused attention keeps to itself; where these are all there are, it need not run."""
        if key.shape[2] != self._keys:
            return attention(query, key, value, **how)
        weights = self._read(query, key, how)
        self._seen += 1
        if weights is None:
            return attention(query, key, value, **how)
        kv_heads, keys = value.shape[1:3]
        heads, rows = weights.shape[:2]
        mixed = weights.view(kv_heads, heads // kv_heads * rows, keys) @ value[0].float()
        return mixed.view(1, heads, rows, -1).to(query.dtype)

    def weigh(self, softmax: Callable[..., Tensor], logits: Tensor, *args: Any, **how: Any) -> Tensor:
        """Take the weights that eager attention forms."""
        weights = softmax(logits, *args, **how)
        # Some models give every head a sink: one column more, behind the keys.
        if logits.shape[0] == 1 and logits.shape[-1] in (self._keys, self._keys + 1):
            seen = weights[0, :, self._first(logits) :, : self._keys].float()
            self._receive(self._seen, slice(0, self._queries), seen)
            self._seen += 1
        return weights

    def _read(self, query: Tensor, key: Tensor, how: Mapping[str, Any]) -> Tensor | None:
        """Hand out the weights; those of all queries are returned, where all were formed at once."""
        if self._alone:
            weights = attention_logits(query, key, how, slice(0, query.shape[2])).softmax(-1)
            self._receive(self._seen, slice(0, 1), weights.flatten(0, 1)[:, None])
            return weights
        first, count = self._first(query), query.shape[2]
        if count <= QUERY_BLOCK:
            weights = attention_logits(query, key, how, slice(0, count)).softmax(-1)
            self._receive(self._seen, slice(0, count - first), weights[:, first:])
            return weights
        for start in range(first, count, QUERY_BLOCK):
            rows = slice(start, min(count, start + QUERY_BLOCK))
            weights = attention_logits(query, key, how, rows).softmax(-1)
            self._receive(self._seen, slice(start - first, rows.stop - first), weights)
        return None

    def _first(self, states: Tensor) -> int:
        """The first of the rows ``[1, heads, rows, ...]`` that is asking."""
        if states.shape[2] < self._queries:
            raise UnsupportedModel(f"attention of {states.shape[2]} tokens was seen where {self._queries} are asking")
        return states.shape[2] - self._queries

    def check(self, layers: int) -> None:
        """Raise :class:`UnsupportedModel` unless every one of ``layers`` layers was seen once."""
        if self._seen != layers:
            raise UnsupportedModel(f"attention over the whole prompt was seen {self._seen} times in {layers} layers")


@dataclass(frozen=True, slots=True)
class _Group:
    """Queries that follow each other, the keys that any of them sees, and the mask between the two."""

    rows: slice
    keys: slice
    mask: Tensor


class GroupedAttention(AttentionMode):
    """Fused attention of rows scattered over a prompt, a few of them at a time, each group over the keys that it sees.

    A row early in the prompt sees the tokens before it, one in a sliding window those of the window; under a mask, the
    fused attention forms all products and throws the hidden ones away. What comes out is what it would give.
    """

    def __init__(self) -> None:
        super().__init__()
        # The masks are kept with the groups: an id is only unique while its object lives.
        self._known: dict[int, tuple[Tensor, list[_Group]]] = {}

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """The attention asked for, in groups where there is more than one."""
        mask = how.get("attn_mask")
        rows, keys = query.shape[2], key.shape[2]
        if mask is None or rows < 2 * _GROUP_ROWS or mask.dtype == torch.bool or mask.shape != (1, 1, rows, keys):
            return attention(query, key, value, **how)
        known = self._known.get(id(mask))
        if known is None:
            known = self._known[id(mask)] = (mask, _groups(mask))
        out = [
            attention(
                query[:, :, group.rows],
                key[:, :, group.keys],
                value[:, :, group.keys],
                **{**how, "attn_mask": group.mask},
            )
            for group in known[1]
        ]
        return torch.cat(out, dim=2)


def _groups(mask: Tensor) -> list[_Group]:
    """The rows of an additive ``mask`` ``[1, 1, rows, keys]`` in groups of nearly the same size."""
    rows, keys = mask.shape[2:]
    count = max(1, rows // _GROUP_ROWS)
    bounds = [rows * number // count for number in range(count + 1)]
    found = []
    for start, stop in pairwise(bounds):
        seen = (mask[0, 0, start:stop] > float("-inf")).any(dim=0).nonzero()
        # A row that sees nothing at all is the fused attention's own affair.
        first, last = (int(seen[0]), int(seen[-1]) + 1) if seen.numel() else (0, keys)
        found.append(_Group(slice(start, stop), slice(first, last), mask[:, :, start:stop, first:last].contiguous()))
    return found
