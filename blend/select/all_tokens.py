"""Recompute everything: full prefill after the exact prefix, the reference the other rules are measured against."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Candidates, SelectionRule

__all__ = ["AllTokens"]


@dataclass(frozen=True, slots=True)
class AllTokens(SelectionRule):
    """Every candidate; no stored KV after the prefix is used."""

    ratio: float = 1.0

    def scores(self, candidates: Candidates) -> Tensor:
        """All alike."""
        return torch.zeros(candidates.count)
