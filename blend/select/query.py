"""Choose the tokens that the question attends to, and the beginnings of chunks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .base import Candidates, SelectionRule

__all__ = ["QueryAttention"]


@dataclass(frozen=True, slots=True)
class QueryAttention(SelectionRule):
    """Exploration."""

    ratio: float = 0.1
    first: int = 4
    pool: int = 1
    per_layer: str = "sum"  # sum | norm | max | suffix | suffixmax
    shrink: float = 0.0
    skip: int = 0
    last: float = 1.0
    reads_attention: ClassVar[bool] = True

    def share(self, layer: int, layers: int) -> float:
        progress = layer / max(1, layers - 1)
        return max(0.0, min(1.0, self.ratio * (1.0 + self.shrink * (1.0 - 2.0 * progress))))

    def scores(self, candidates: Candidates) -> Tensor:
        if candidates.attention is None:
            return torch.zeros(candidates.count)
        a = candidates.attention.float()
        if self.pool > 1:
            a = functional.avg_pool1d(a[:, None], self.pool, 1, self.pool // 2, count_include_pad=False)[:, 0]
        if self.per_layer == "sum":
            s = a.sum(0)
        elif self.per_layer == "norm":
            s = (a / a.sum(1, keepdim=True)).sum(0)
        elif self.per_layer == "max":
            s = (a / a.sum(1, keepdim=True)).amax(0)
        elif self.per_layer == "sqrt":
            s = a.sqrt().sum(0)
        elif self.per_layer == "suffix":
            s = a.flip(0).cumsum(0).flip(0)
        elif self.per_layer == "late":
            s = a[a.shape[0] // 2 :].sum(0)
        elif self.per_layer == "early":
            s = a[: a.shape[0] // 2].sum(0)
        else:
            raise ValueError
        s = s + (candidates.offset < self.first) * 1e6
        return s
