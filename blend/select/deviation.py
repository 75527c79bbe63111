"""Choose the tokens whose stored KV is furthest from what this prompt makes of them (CacheBlend §4.3)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InvalidRequest
from .base import Candidates, SelectionRule

__all__ = ["KvDeviation"]


@dataclass(frozen=True, slots=True)
class KvDeviation(SelectionRule):
    """Squared distance between the stored and the fresh values of layer 1, the first layer that has seen the context."""

    ratio: float = 0.15
    decision_layer: ClassVar[int] = 1

    def scores(self, candidates: Candidates) -> Tensor:
        """``sum((fresh - stored) ** 2)`` over the heads and dimensions of a token's values."""
        kv = candidates.kv
        if kv is None:
            raise InvalidRequest("KV deviation needs the fresh and the stored KV of its deciding layer")
        return (kv.fresh_values - kv.stored_values).to(torch.float32).square_().sum(dim=(0, 2))
