"""Recompute nothing: stored KV is only moved (naive reuse), the floor the other rules are measured against."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Candidates, SelectionRule

__all__ = ["NoTokens"]


@dataclass(frozen=True, slots=True)
class NoTokens(SelectionRule):
    """No candidate; only fresh tokens are computed."""

    ratio: float = 0.0

    def scores(self, candidates: Candidates) -> Tensor:
        """All alike."""
        return torch.zeros(candidates.count)
