"""The interface of a selection rule: which stored tokens are worth computing again, in which layer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import InvalidRequest

__all__ = ["Candidates", "SelectionRule", "StoredAndFresh"]


@dataclass(frozen=True, slots=True)
class StoredAndFresh:
    """Keys and values of the candidates at one layer, each ``[kv_heads, candidates, head_dim]``.

    Stored keys are already turned to their new positions, so the two compare number by number.
    """

    stored_keys: Tensor
    stored_values: Tensor
    fresh_keys: Tensor
    fresh_values: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """The stored tokens of a prompt, in order. ``chunk`` and ``offset`` ``[candidates]`` say whose and which they are.

    ``kv`` is None for a rule whose ``decision_layer`` is 0: it decides before anything is computed. ``attention``
    ``[layers, candidates]`` is there for a rule that :attr:`~SelectionRule.reads_attention`: what the question pays to
    each token, mean over its tokens and all heads, times the mean length of the token's values. ``recorded``
    ``[candidates]`` is :attr:`~kvloom.blend.request.PlacedChunk.need`, None where a chunk came without.
    """

    chunk: Tensor
    offset: Tensor
    kv: StoredAndFresh | None = None
    attention: Tensor | None = None
    recorded: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of candidates."""
        return int(self.chunk.shape[0])

    def take(self, rows: Tensor, kv: StoredAndFresh) -> "Candidates":
        """Some of the candidates, with their ``kv`` at another layer."""
        return Candidates(self.chunk[rows], self.offset[rows], kv)


@dataclass(frozen=True, slots=True)
class SelectionRule(ABC):
    """Scores the candidates; the executor recomputes the :meth:`share` of them that score highest in each layer.

    Layers before ``decision_layer`` compute every token; the deciding layer's keys and values are computed for every
    token too, and from there on only the chosen ones go on. A token that a layer left out stays out in those after it.
    With ``reads_attention`` the prompt's last fresh tokens are run once over the KV as stored, for the attention that
    they pay. With :attr:`gradual` the rule is asked again after every layer, about the tokens which that one computed.
    What :meth:`samples` learn moves the stored tokens that are not computed (:mod:`kvloom.blend.carry`).
    """

    ratio: float = 0.0
    decision_layer: ClassVar[int] = 0
    reads_attention: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidRequest(f"recompute ratio is {self.ratio}, must be 0 to 1")

    @property
    def gradual(self) -> bool:
        """Whether to score anew after each layer."""
        return False

    def share(self, layer: int, layers: int) -> float:
        """Share of the candidates that ``layer`` of ``layers`` computes; it must not grow from layer to layer."""
        return self.ratio

    def tokens(self, layer: int, layers: int, candidates: int) -> int:
        """How many of ``candidates`` the layer computes."""
        return round(self.share(layer, layers) * candidates)

    @abstractmethod
    def scores(self, candidates: Candidates) -> Tensor:
        """One float32 number per candidate ``[candidates]``, the highest most in need.

        Where the need differs by layer, ``[layers, candidates]``.
        """

    def samples(self, candidates: Candidates) -> Tensor | None:
        """Which candidates others learn from where they are computed, bool ``[candidates]``; with None nothing is."""
        return None
