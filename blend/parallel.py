"""Parallel encoding (APE, Yang et al. 2025): no token is recomputed, attention over the chunks is tempered instead.

Every chunk was computed right after the same exact prefix and keeps the positions that it had there, so chunks overlap
in position and the question comes after the longest of them. Attention over them is made sharper by a ``temperature``
and its mass, compared with that over everything else, is scaled (§4 of the paper):

    logits of chunk tokens: q·k / temperature,  log mass of all chunks: scale · logsumexp

Here the tokens keep their places in the prompt, and the keys of prefix and chunks are rotated forward by as much as
the question stands later than with overlapping positions: all differences between positions are the paper's, and the
cache decodes as any other does. In sliding-window layers the model's own window counts places.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidRequest
from .attention import AttentionMode, attention_logits
from .request import BlendRequest

__all__ = ["ParallelEncoding"]


@dataclass(frozen=True, slots=True)
class ParallelEncoding:
    """How attention over the chunks is tempered; 1 and 1 leave it as it is.

    Blend what :meth:`arranged` returns with :class:`~kvloom.blend.select.none.NoTokens`, and decode, inside
    :meth:`attention`; only the thread that entered it is affected.
    """

    temperature: float = 0.9
    scale: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("scale", self.scale)):
            if not 0.0 < value <= 10.0:
                raise InvalidRequest(f"{name} of parallel encoding is {value}, must be over 0 and at most 10")

    def arranged(self, request: BlendRequest) -> BlendRequest:
        """``request`` with its chunks at the positions they were computed at, seen from the question.

        Raises :class:`InvalidRequest` unless the prefix is one chunk and the others were computed right after it.
        """
        prefix, first = request.chunks[:1], _first_place(request)
        if not prefix or prefix[0].start != 0 or prefix[0].stop != first or len(request.chunks) < 2:
            raise InvalidRequest("parallel encoding needs a chunk for the exact prefix and others after it")
        if any(chunk.first_position != first for chunk in request.chunks[1:]):
            raise InvalidRequest(f"parallel encoding needs chunks that were computed at {first}, after the prefix")
        later = request.chunks[-1].stop - first - max(chunk.tokens for chunk in request.chunks[1:])
        moved = (
            replace(prefix[0], position=later),
            *(replace(chunk, position=first + later) for chunk in request.chunks[1:]),
        )
        return BlendRequest(request.token_ids, first, moved)

    def attention(self, request: BlendRequest) -> "TemperedAttention":
        """The context to blend and to decode in."""
        return TemperedAttention(self, slice(_first_place(request), request.chunks[-1].stop))


class TemperedAttention(AttentionMode):
    """Attention with the keys at ``chunks`` tempered, for whoever attends to all of them."""

    def __init__(self, how: ParallelEncoding, chunks: slice) -> None:
        super().__init__()
        self._how, self._chunks = how, chunks

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """Attention formed from its logits; what does not reach past the chunks runs as it is."""
        if key.shape[2] <= self._chunks.stop:
            return attention(query, key, value, **how)
        logits = attention_logits(query, key, how, slice(0, query.shape[2]))
        groups = query.shape[1] // value.shape[1]
        mixed = self._tempered(logits).softmax(-1) @ value[0].float().repeat_interleave(groups, dim=0)
        return mixed[None].to(query.dtype)

    def weigh(self, softmax: Callable[..., Tensor], logits: Tensor, *args: Any, **how: Any) -> Tensor:
        """The softmax of eager attention over tempered logits."""
        within = logits.shape[0] == 1 and logits.shape[-1] > self._chunks.stop
        return softmax(self._tempered(logits) if within else logits, *args, **how)

    def _tempered(self, logits: Tensor) -> Tensor:
        chunks = logits[..., self._chunks] / self._how.temperature
        mass = chunks.logsumexp(-1, keepdim=True)
        # A window may hide all chunks from a query: minus infinity times anything is still to mean no mass.
        shift = torch.where(mass.isfinite(), (self._how.scale - 1.0) * mass, torch.zeros_like(mass))
        tempered = logits.clone()
        tempered[..., self._chunks] = chunks + shift
        return tempered


def _first_place(request: BlendRequest) -> int:
    """Where the prompt's own chunks begin: the end of the chunk that is the prefix."""
    return request.chunks[0].stop if request.chunks else 0
