"""The nouns of blending: what is asked for and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import EmptyChunk, InvalidRequest, TooManyItems

__all__ = ["BlendReport", "BlendRequest", "BlendTimings", "PlacedChunk"]


@dataclass(frozen=True, slots=True)
class PlacedChunk:
    """The stored KV of ``tokens`` consecutive tokens and the place ``start`` that the prompt gives them.

    ``keys[layer]`` and ``values[layer]`` are ``[kv_heads, tokens, head_dim]`` arrays (or tensors) and are only read. A
    sequence may decode lazily: layers are asked for in order, layers that are computed in full not at all. Arrays that
    already lie in the cache at their place are turned there and not copied. ``first_position`` is the position that
    the first token's keys are rotated to, None when they are un-rotated; ``position`` is where they shall be rotated
    to, ``start`` unless said otherwise (:mod:`kvloom.blend.parallel`). ``need`` ``[tokens]`` is what ingest recorded of
    how much each token leans on text that this prompt lacks (:mod:`kvloom.blend.variants`), for a rule that goes by it.
    """

    start: int
    tokens: int
    keys: Sequence[NDArray[Any]]
    values: Sequence[NDArray[Any]]
    first_position: int | None = None
    position: int | None = None
    need: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise EmptyChunk(f"chunk at {self.start} has {self.tokens} tokens, at least 1 is needed")
        if self.start < 0:
            raise InvalidRequest(f"chunk starts at {self.start}, must be 0 or more")
        if self.target < 0:
            raise InvalidRequest(f"chunk is to be rotated to position {self.target}, must be 0 or more")
        if self.need is not None and self.need.shape != (self.tokens,):
            raise InvalidRequest(f"need has shape {self.need.shape}, must be [{self.tokens}], one number a token")

    @property
    def stop(self) -> int:
        """The place after the last token."""
        return self.start + self.tokens

    @property
    def target(self) -> int:
        """The position that the first token's keys are to be rotated to."""
        return self.start if self.position is None else self.position


@dataclass(frozen=True, slots=True)
class BlendRequest:
    """A prompt of which parts are stored.

    ``token_ids`` is the whole prompt ``[total]``. Tokens ``[0, prefix_tokens)`` must be covered by chunks and are an
    exact prefix: their KV is taken as it is and nothing there is recomputed. Chunks after it are blended. Tokens that
    no chunk covers (separators, the question) are fresh and always computed; the last token must be one of them.
    Raises :class:`InvalidRequest` for chunks that overlap, are out of order or out of range.
    """

    token_ids: NDArray[np.int64]
    prefix_tokens: int
    chunks: tuple[PlacedChunk, ...]

    def __post_init__(self) -> None:
        total = self.token_ids.size
        if self.token_ids.ndim != 1 or total == 0:
            raise InvalidRequest(f"token ids have shape {self.token_ids.shape}, need a list of at least 1")
        if total > limits.PREFIX_TOKENS_MAX:
            raise TooManyItems(f"prompt has {total} tokens, the limit is {limits.PREFIX_TOKENS_MAX}")
        if not 0 <= self.prefix_tokens < total:
            raise InvalidRequest(f"exact prefix has {self.prefix_tokens} tokens of {total}; the last must be computed")
        reached, covered = 0, 0
        for chunk in self.chunks:
            if chunk.start < reached:
                raise InvalidRequest(f"chunk at {chunk.start} begins before {reached}, where the one before it ends")
            if covered == chunk.start:
                covered = chunk.stop
            reached = chunk.stop
        if reached >= total:
            raise InvalidRequest(f"chunks reach to {reached} of {total} tokens; the last token must be computed")
        if covered < self.prefix_tokens:
            raise InvalidRequest(f"exact prefix has {self.prefix_tokens} tokens, chunks cover the first {covered}")

    def owners(self) -> NDArray[np.int64]:
        """For each token after the prefix ``[total - prefix_tokens]`` the index of its chunk, -1 when it is fresh."""
        owner = np.full(self.token_ids.size, -1, dtype=np.int64)
        for index, chunk in enumerate(self.chunks):
            owner[chunk.start : chunk.stop] = index
        return owner[self.prefix_tokens :]

    def needs(self) -> NDArray[np.float32] | None:
        """The recorded need of each stored token after the prefix, in order; None unless every chunk there has it."""
        found = []
        for chunk in self.chunks:
            outside = max(0, self.prefix_tokens - chunk.start)
            if outside >= chunk.tokens:
                continue
            if chunk.need is None:
                return None
            found.append(chunk.need[outside:])
        return np.concatenate(found) if found else None


@dataclass(frozen=True, slots=True)
class BlendTimings:
    """Seconds from the request to the last token's logits (``total``), and what of them went into two stages.

    ``realign`` brings stored KV to its place (decoding included where chunks decode lazily), ``select`` is the probe
    and the choice of tokens.
    """

    realign: float
    select: float
    total: float


@dataclass(frozen=True, slots=True)
class BlendReport:
    """What was computed. Tokens of the exact prefix count nowhere but in ``prefix_tokens``.

    ``layer_tokens[layer]`` is the number of tokens that layer computed, fresh ones included; ``probed_tokens`` the
    tokens whose keys and values were computed once more, only to choose by; ``scored_tokens`` the tokens that went
    through all layers once more for the attention they pay.
    """

    prefix_tokens: int
    stored_tokens: int
    fresh_tokens: int
    probed_tokens: int
    scored_tokens: int
    layer_tokens: tuple[int, ...]
    seconds: BlendTimings

    @property
    def recompute_ratio(self) -> float:
        """Share of the stored tokens that the last layer recomputed."""
        return (self.layer_tokens[-1] - self.fresh_tokens) / self.stored_tokens if self.stored_tokens else 0.0

    @property
    def token_layer_cost(self) -> float:
        """Token-layers computed (a probe counts as a whole layer), over those of full prefill after the prefix."""
        layers = len(self.layer_tokens)
        spent = sum(self.layer_tokens) + self.probed_tokens + self.scored_tokens * layers
        return spent / ((self.stored_tokens + self.fresh_tokens) * layers)
