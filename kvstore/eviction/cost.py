"""What a chunk costs to compute again, in the unit of one token's share of the model's matrix products."""

from dataclasses import dataclass

from ..attributes import ChunkAttributes

__all__ = ["RecomputeCost"]


@dataclass(frozen=True, slots=True)
class RecomputeCost:
    """Prefill work ``a·n + b·n·context``, divided by ``a``.

    ``even_tokens`` is ``a / b``: the context at which a token's attention costs as much as everything else. For
    Llama-3.1-8B, 16.06 GFLOP a token against 0.524 MFLOP per token of context, it is 30,600; larger models' are larger.
    """

    even_tokens: float = 30_600.0

    def of(self, attributes: ChunkAttributes) -> float:
        """The cost of one chunk whose prefix is there, in tokens without context."""
        context = attributes.start + attributes.tokens / 2
        return attributes.tokens * (1.0 + context / self.even_tokens)
