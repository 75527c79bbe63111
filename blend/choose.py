"""Which rows of a blended prompt each layer computes: a selection rule's scores, turned into rows."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InvalidRequest
from .select.base import Candidates, SelectionRule, StoredAndFresh

__all__ = ["Chooser"]


@dataclass(slots=True)
class Chooser:
    """Holds what a rule has said so far about one prompt.

    ``owner`` ``[computed]`` names the chunk of each token after the exact prefix, -1 where it is fresh; ``candidates``
    are those with a chunk, without KV.
    """

    rule: SelectionRule
    layers: int
    owner: Tensor
    candidates: Candidates
    stored: Tensor = field(init=False)
    _scores: Tensor | None = None
    _left: Tensor | None = None

    def __post_init__(self) -> None:
        self.stored = (self.owner >= 0).nonzero().squeeze(1)

    @property
    def decided(self) -> bool:
        """Whether the rule was asked."""
        return self._scores is not None

    @property
    def chosen(self) -> Tensor:
        """Rows of the stored tokens that the last layer asked about computes."""
        return self.stored if self._left is None else self.stored[self._left]

    def decide(self, kv: StoredAndFresh | None) -> None:
        """Ask the rule; ``kv`` is of all candidates. Raises :class:`InvalidRequest` for scores of a wrong shape."""
        known = self.candidates
        scores = self.rule.scores(Candidates(known.chunk, known.offset, kv, known.attention, known.recorded))
        if scores.shape not in ((known.count,), (self.layers, known.count)):
            raise InvalidRequest(
                f"rule gave scores {list(scores.shape)} for {known.count} tokens in {self.layers} layers"
            )
        self._scores = scores

    def rescore(self, kv: StoredAndFresh) -> None:
        """Ask again about the candidates still chosen, of which the layer just run gave ``kv``."""
        if self._left is not None and self._scores is not None:
            scores = torch.full_like(self._scores, float("-inf"))
            scores[self._left] = self.rule.scores(self.candidates.take(self._left, kv)).to(scores.dtype)
            self._scores = scores

    def rows(self, layer: int) -> Tensor:
        """Rows ``[n]`` (of the tokens after the prefix, ascending, int64) that ``layer`` computes; layers in order."""
        if self._scores is None:
            raise InvalidRequest("the rule has not been asked yet")
        wanted = self.rule.tokens(layer, self.layers, self.candidates.count)
        left = self._left
        if left is None or wanted < left.numel():
            scores = self._scores[layer] if self._scores.ndim == 2 else self._scores
            of = scores if left is None else scores[left]
            best = of.argsort(descending=True, stable=True)[:wanted].sort().values
            self._left = best if left is None else left[best]
        keep = self.owner < 0
        keep[self.stored[self._left]] = True
        return keep.nonzero().squeeze(1)
