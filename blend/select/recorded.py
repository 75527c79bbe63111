"""Recompute what was recorded at ingest as leaning on text that is missing now (Cache-Craft)."""

from dataclasses import dataclass

from torch import Tensor

from ...errors import InvalidRequest
from .base import Candidates, SelectionRule

__all__ = ["RecordedNeed"]


@dataclass(frozen=True, slots=True)
class RecordedNeed(SelectionRule):
    """The tokens with the highest :attr:`~kvloom.blend.request.PlacedChunk.need`; nothing is computed to choose."""

    ratio: float = 0.15

    def scores(self, candidates: Candidates) -> Tensor:
        """The need that every chunk came with."""
        if candidates.recorded is None:
            raise InvalidRequest("a rule of recorded need has to have it for every chunk (kvloom.blend.variants)")
        return candidates.recorded
