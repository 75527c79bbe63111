"""Keep a subset of rows of everything a decoder layer is given."""

from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModel

__all__ = ["Narrower"]


class Narrower:
    """Narrows the inputs of decoder layers from ``computed`` tokens to ``rows`` of them.

    ``rows`` ``[n]`` is int64, ascending and not empty; ``before`` are the rows of the layer before, a superset (None:
    it computed all). Masks and rotary tables are the same objects in layer after layer, so each is narrowed once. One
    instance serves consecutive layers of one forward pass.
    """

    def __init__(self, rows: Tensor, computed: int, prefix_tokens: int, before: Tensor | None = None) -> None:
        self.rows = rows
        self._from_before = rows if before is None else torch.searchsorted(before, rows)
        self.count = int(rows.numel())
        self.places = rows + prefix_tokens
        self._computed = computed
        self._total = prefix_tokens + computed
        self._whole = self.count == computed
        # The originals are kept with the results: an id is only unique while its object lives.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._causal: Tensor | None = None

    def narrow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's positional and keyword arguments with only the chosen rows."""
        if self._whole:
            return args, kwargs
        dtype = (args[0] if args else kwargs["hidden_states"]).dtype
        if args:
            args = (self._hidden(args[0]), *(self._any("a positional argument", item) for item in args[1:]))
        return args, {name: self._argument(name, value, dtype) for name, value in kwargs.items()}

    def _argument(self, name: str, value: Any, dtype: torch.dtype) -> Any:
        if name == "hidden_states":
            return self._hidden(value)
        if name == "attention_mask":
            return self._mask(value, dtype)
        if name == "position_ids" and isinstance(value, Tensor):
            return self._once(value, value.ndim - 1)
        if name == "cache_position" and isinstance(value, Tensor):
            return self._once(value, 0)
        return self._any(name, value)

    def _hidden(self, hidden: Tensor) -> Tensor:
        """The first layer of this set gets the rows of the layer before it, those after it get what it returned."""
        return hidden if hidden.shape[1] == self.count else hidden.index_select(1, self._from_before)

    def _mask(self, mask: Any, dtype: torch.dtype) -> Tensor:
        """The rows of a mask ``[1, 1, computed, keys]``, additive; a mask left out means plain causal attention."""
        if mask is None:
            if self._causal is None:
                hidden = torch.arange(self._total, device=self.rows.device)[None, :] > self.places[:, None]
                self._causal = _additive(~hidden, dtype)[None, None]
            return self._causal
        if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[2] != self._computed:
            raise UnsupportedModel(f"attention mask is {_describe(mask)}, need [1, 1, {self._computed}, keys]")
        known = self._known.get(id(mask))
        if known is None:
            rows = mask.index_select(2, self.rows)
            known = (mask, _additive(rows, dtype) if rows.dtype == torch.bool else rows)
            self._known[id(mask)] = known
        return known[1]

    def _any(self, name: str, value: Any) -> Any:
        """Rotary tables and other per-token tensors ``[1, computed, ...]``; what has no token axis passes."""
        if isinstance(value, tuple):
            return tuple(self._any(name, item) for item in value)
        if not isinstance(value, Tensor) or self._computed not in value.shape:
            return value
        if value.ndim >= 2 and value.shape[1] == self._computed:
            return self._once(value, 1)
        raise UnsupportedModel(
            f"decoder layers take {name} as {_describe(value)}, of which axis 1 should be the tokens"
        )

    def _once(self, value: Tensor, axis: int) -> Tensor:
        if value.shape[axis] != self._computed:
            return value
        known = self._known.get(id(value))
        if known is None:
            known = (value, value.index_select(axis, self.rows))
            self._known[id(value)] = known
        return known[1]


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attention is allowed, minus infinity elsewhere: formed once, not by the attention of every layer."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def _describe(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
