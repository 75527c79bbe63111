"""Recompute the beginning of every chunk (EPIC's boundary tokens, §4): that is where each grew an attention sink."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Candidates, SelectionRule

__all__ = ["FirstTokens"]


@dataclass(frozen=True, slots=True)
class FirstTokens(SelectionRule):
    """The first tokens of each chunk, equally many of each as far as ``ratio`` reaches."""

    ratio: float = 0.15

    def scores(self, candidates: Candidates) -> Tensor:
        """The nearer the start of its chunk, the higher."""
        return -candidates.offset.to(torch.float32)
