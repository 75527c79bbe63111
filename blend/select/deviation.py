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
    """Squared distance between stored and fresh values of layer 1, the first whose input has seen the context.

    ``shrink`` filters gradually: shares fall linearly from ``ratio * (1 + shrink)`` at the deciding layer to
    ``ratio * (1 - shrink)`` at the last, so that the mean stays, and each layer's tokens are those that the layer
    before found to deviate most. CacheBlend's published code does not shrink; it did not help the models measured.
    """

    ratio: float = 0.15
    shrink: float = 0.0
    decision_layer: ClassVar[int] = 1

    def __post_init__(self) -> None:
        SelectionRule.__post_init__(self)
        if not 0.0 <= self.shrink <= 1.0:
            raise InvalidRequest(f"shrink is {self.shrink}, must be 0 to 1")

    @property
    def gradual(self) -> bool:
        """Only where the shares shrink is there anything to choose again."""
        return self.shrink > 0.0

    def share(self, layer: int, layers: int) -> float:
        """``ratio`` of the candidates, more in early layers and less in late ones where ``shrink`` is not 0."""
        span = max(1, layers - 1 - self.decision_layer)
        progress = (layer - self.decision_layer) / span
        return min(1.0, self.ratio * (1.0 + self.shrink * (1.0 - 2.0 * progress)))

    def scores(self, candidates: Candidates) -> Tensor:
        """``sum((fresh - stored) ** 2)`` over the heads and dimensions of a token's values."""
        kv = candidates.kv
        if kv is None:
            raise InvalidRequest("KV deviation needs the fresh and the stored KV of its deciding layer")
        return (kv.fresh_values - kv.stored_values).to(torch.float32).square_().sum(dim=(0, 2))
