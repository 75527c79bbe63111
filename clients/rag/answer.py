"""What a pipeline does for a question and for documents, and what came of it."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...blend.cache import KvCache
from ...blend.request import BlendReport
from ...codec.level import EXACT, Level
from ..arrivals import LoadResult
from .advised import Advice, PlanPreview

__all__ = ["Answer", "Computed", "IngestReport", "Strategy"]


class Strategy(StrEnum):
    """How the KV of a prompt is come by."""

    RECOMPUTE = "recompute"
    """Prefill everything, as without a cache."""
    BLEND = "blend"
    """Load the documents' KV, wherever they stand, and recompute the tokens that matter."""
    PREFIX = "prefix"
    """Load the longest exact prefix of this very prompt and compute the rest."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did; ``stored_bytes`` and ``stored_tokens`` count what was put, not what was already there."""

    documents: int
    already_stored: int
    stored_tokens: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated and how. ``logits`` ``[vocabulary]`` float32 are those of the first token.

    ``ttft_seconds`` runs from the call of :meth:`RagPipeline.generate` to the first token; ``load`` and ``blend`` are
    None where nothing was loaded or blended. ``plan`` is what was expected of it; None where nobody said. ``strategy``
    is what was done: where a blend was asked for and documents were recomputed instead, ``refusal`` says why.
    """

    text: str
    token_ids: tuple[int, ...]
    logits: NDArray[np.float32]
    ttft_seconds: float
    strategy: Strategy
    prompt_tokens: int
    load: LoadResult | None = None
    blend: BlendReport | None = None
    plan: PlanPreview | None = None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Computed:
    """A prompt's KV, its last token's logits ``[vocabulary]``, and how it was come by."""

    strategy: Strategy
    cache: KvCache
    logits: Tensor
    load: LoadResult | None = None
    advice: Advice | None = None
    blend: BlendReport | None = None
    refusal: str = ""

    def is_exact(self, prefix_level: Level) -> bool:
        """Whether it is what full prefill gives, where prefixes are loaded at ``prefix_level`` or better."""
        if self.strategy is Strategy.PREFIX and self.load is not None and self.load.loaded:
            return prefix_level == EXACT
        return self.strategy is not Strategy.BLEND
