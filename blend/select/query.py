"""Choose the tokens that the question attends to, the sinks of every chunk, and a sample of the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InvalidRequest
from .base import Candidates, SelectionRule

__all__ = ["QueryAttention"]

_GOLDEN = (5.0**0.5 - 1.0) / 2.0


@dataclass(frozen=True, slots=True)
class QueryAttention(SelectionRule):
    """The tokens that the question pays most attention to over all layers; the default (``docs/adr/0017``).

    Before all others come the ``sinks`` first tokens of each chunk and tokens at even distances in it, which are the
    share ``sampled`` of all that ``ratio`` allows, and of all tokens ``sampled_max`` at most; with ``carry`` what all
    but the sinks learn moves the tokens that are not computed. No fewer than ``tokens_min`` are computed where there
    are as many: a forward over so few takes no longer than one over fewer, and of a short text every token matters.
    Published rules of the kind (ProphetKV, QCFuse) are ``QueryAttention(ratio, 0, 0.0, carry=False)``.
    """

    ratio: float = 0.12
    sinks: int = 2
    sampled: float = 0.43
    carry: bool = True
    tokens_min: int = 0
    sampled_max: float = 0.052
    reads_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        SelectionRule.__post_init__(self)
        if self.sinks < 0:
            raise InvalidRequest(f"sinks is {self.sinks}, must be 0 or more")
        for name, share in (("sampled", self.sampled), ("sampled_max", self.sampled_max)):
            if not 0.0 <= share <= 1.0:
                raise InvalidRequest(f"{name} is {share}, must be 0 to 1")
        if self.tokens_min < 0:
            raise InvalidRequest(f"tokens_min is {self.tokens_min}, must be 0 or more")

    def tokens(self, layer: int, layers: int, candidates: int) -> int:
        """As every rule, but no fewer than ``tokens_min``."""
        return max(SelectionRule.tokens(self, layer, layers, candidates), min(candidates, self.tokens_min))

    def scores(self, candidates: Candidates) -> Tensor:
        """The attention of all layers together; above 1 what is taken before it."""
        attention = candidates.attention
        if attention is None:
            return torch.zeros(candidates.count)
        paid = attention.sum(dim=0)
        scores = paid / paid.sum().clamp(min=torch.finfo(paid.dtype).tiny)
        return scores + self._spread(candidates) + 2.0 * (candidates.offset < self.sinks)

    def samples(self, candidates: Candidates) -> Tensor | None:
        """All but the sinks, which are like no other token."""
        return candidates.offset >= self.sinks if self.carry else None

    def _spread(self, candidates: Candidates) -> Tensor:
        share = min(self.sampled * self.ratio, self.sampled_max)
        if share * candidates.count < 1.0:
            return torch.zeros_like(candidates.offset, dtype=torch.bool)
        # Multiples of the golden ratio: nearly even distances that no period of the text falls in with.
        return (candidates.offset.to(torch.float64) * _GOLDEN + 0.5) % 1.0 < share
