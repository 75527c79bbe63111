"""What is to be planned: chunks and the ways to get each, what the engine can do, and what is wanted of the plan. Pure.

Chunks come in the order of their positions. Each is computed by the engine, which needs the KV of everything before
it, or loaded one of the ways that are offered: over a link (a tier of the daemon, a peer), at a level of the codec.
A chunk that nobody has, and the end of the prompt, whose last token is always computed, are chunks with no offer.

A :class:`PlanRequest` holds it as arrays, because it is planned in microseconds; :meth:`PlanRequest.of` makes one of
:class:`Chunk` objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...clients.plan_wire import Ability
from ...errors import InvalidRequest, TooManyItems

__all__ = ["Ability", "BestWithin", "Chunk", "Executor", "Fastest", "Objective", "Offer", "PlanRequest", "Way"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Way:
    """How a chunk can be got: the link it comes over and the level of the codec that it comes at."""

    link: str
    level: str


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to get one chunk: what is transferred, what decoding it takes, and what it costs in quality."""

    link: str
    level: str
    size_bytes: int
    decode_seconds: float = 0.0
    loss: float = 0.0
    """KL divergence from full prefill in nats per token, a mean over the chunk's tokens. Exact KV has none."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """``tokens`` consecutive tokens of the prompt, from position ``start`` on."""

    tokens: int
    start: int
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class Executor:
    """What carries out the plan.

    ``side_by_side``: chunks come in while others are computed. With :attr:`Ability.PREFIX_CUT` nothing can be computed
    before the whole prefix is there, whatever this says. ``decoding_competes``: decoding a chunk takes the compute that
    prefill needs (the same GPU, the same cores); else a decoder of its own works beside it.
    """

    ability: Ability = Ability.ANY_CHUNK
    side_by_side: bool = True
    decoding_competes: bool = False
    step_tokens: int = 0
    """The most tokens of one prefill call, each of which costs ``c``; 0: all chunks that follow each other are one."""


@dataclass(frozen=True, slots=True)
class Fastest:
    """The lowest time to first token whose quality meets a floor.

    ``loss_max`` bounds the mean of the chunks' losses, weighted by tokens, in nats; recomputed chunks lose nothing.
    """

    loss_max: float = float("inf")


@dataclass(frozen=True, slots=True)
class BestWithin:
    """The least loss whose time to first token is at most ``ttft_seconds``; the lowest TTFT where none is.

    Of plans with the same loss, the fastest. ``loss_max`` as for :class:`Fastest`.
    """

    ttft_seconds: float
    loss_max: float = float("inf")


Objective = Fastest | BestWithin


@dataclass(frozen=True, slots=True, eq=False)
class PlanRequest:
    """Chunks in the order of their positions, as arrays that nobody changes. What is not offered has size infinity."""

    tokens: Ints
    """[chunks], at least 1 each."""
    starts: Ints
    """[chunks], ascending; a chunk begins where the one before it ends, or later."""
    ways: tuple[Way, ...]
    size_bytes: Floats
    """[chunks, ways]"""
    decode_seconds: Floats
    """[chunks, ways]"""
    loss: Floats
    """[chunks, ways], in nats per token."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> "PlanRequest":
        """The request for ``chunks``; :class:`InvalidRequest` and :class:`TooManyItems` for one that makes no sense."""
        if not 1 <= len(chunks) <= limits.PREFIX_CHUNKS_MAX:
            raise TooManyItems(f"{len(chunks)} chunks to plan, the limits are 1 and {limits.PREFIX_CHUNKS_MAX}")
        columns: dict[Way, int] = {}
        for chunk in chunks:
            for offer in chunk.offers:
                columns.setdefault(Way(offer.link, offer.level), len(columns))
        if len(columns) > limits.PLAN_WAYS_MAX:
            raise TooManyItems(f"{len(columns)} ways to get a chunk, the limit is {limits.PLAN_WAYS_MAX}")
        shape = (len(chunks), len(columns))
        size_bytes, decode_seconds, loss = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
        for row, chunk in enumerate(chunks):
            for offer in chunk.offers:
                at = row, columns[Way(offer.link, offer.level)]
                size_bytes[at], decode_seconds[at], loss[at] = offer.size_bytes, offer.decode_seconds, offer.loss
        tokens = np.array([chunk.tokens for chunk in chunks], dtype=np.int64)
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        request = cls(tokens, starts, tuple(columns), size_bytes, decode_seconds, loss)
        request.verify()
        return request

    def verify(self) -> None:
        """Raise :class:`InvalidRequest` unless every number can be meant."""
        if self.tokens.min() < 1 or self.starts.min() < 0:
            raise InvalidRequest("a chunk to plan has at least one token, and a position of at least 0")
        ends = self.starts + self.tokens
        if np.any(self.starts[1:] < ends[:-1]) or ends[-1] > limits.POSITION_MAX:
            raise InvalidRequest(f"chunks to plan stand in order, without overlap, below {limits.POSITION_MAX}")
        offered = np.isfinite(self.size_bytes)
        for name, values in (("size", self.size_bytes), ("decode time", self.decode_seconds), ("loss", self.loss)):
            if not np.all(np.isfinite(values[offered]) & (values[offered] >= 0)):
                raise InvalidRequest(f"the {name} of an offer is a number of at least 0")

    def __len__(self) -> int:
        return len(self.tokens)
