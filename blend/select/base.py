"""The interface of a selection rule: which stored tokens are worth computing again."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import InvalidRequest

__all__ = ["Candidates", "SelectionRule", "StoredAndFresh"]


@dataclass(frozen=True, slots=True)
class StoredAndFresh:
    """Keys and values of the candidates at the deciding layer, each ``[kv_heads, candidates, head_dim]``.

    Stored keys are already turned to their new positions, so the two compare number by number.
    """

    stored_keys: Tensor
    stored_values: Tensor
    fresh_keys: Tensor
    fresh_values: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """The stored tokens of a prompt, in order. ``chunk`` and ``offset`` ``[candidates]`` say whose and which they are.

    ``kv`` is None for a rule whose ``decision_layer`` is 0: it decides before anything is computed.
    """

    chunk: Tensor
    offset: Tensor
    kv: StoredAndFresh | None

    @property
    def count(self) -> int:
        """Number of candidates."""
        return int(self.chunk.shape[0])


@dataclass(frozen=True, slots=True)
class SelectionRule(ABC):
    """Scores the candidates; the executor recomputes the :meth:`share` of them that score highest in each layer.

    Layers before ``decision_layer`` compute every token; the deciding layer's keys and values are computed for every
    token too, and from there on only the chosen ones go on.
    """

    ratio: float = 0.0
    decision_layer: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidRequest(f"recompute ratio is {self.ratio}, must be 0 to 1")

    def share(self, layer: int, layers: int) -> float:
        """Share of the candidates that ``layer`` of ``layers`` computes; it must not grow from layer to layer."""
        return self.ratio

    @abstractmethod
    def scores(self, candidates: Candidates) -> Tensor:
        """One float32 number per candidate ``[candidates]``, the highest most in need."""
