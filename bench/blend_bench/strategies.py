"""The strategies that are compared, and what one of them makes of one question."""

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from kvloom.blend import (
    Blended,
    BlendRequest,
    ChunkVariant,
    ParallelEncoding,
    SelectionRule,
    best_variant,
    record_variants,
)
from kvloom.blend.select import FirstTokens, KvDeviation, NoTokens, QueryAttention, RecordedNeed
from kvloom.clients.transformers.running import divergence

from .scores import score
from .subject import AFTER_PREFIX, STANDALONE, Asked

__all__ = ["Outcome", "Strategy", "full_outcome", "outcome_of", "strategies"]

VARIANTS = "variants"
"""Each document as it stood in two earlier prompts over the same documents, in two other orders."""
VARIANT_PROMPTS = 2
APE = ParallelEncoding(temperature=0.9, scale=0.9)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A rule, how the documents it is given were computed, and how attention is changed, if it is."""

    name: str
    precomputed: str
    rule: SelectionRule
    attention: ParallelEncoding | None = None

    @property
    def key(self) -> str:
        """What tells it from the others of a run."""
        return f"{self.name}@{self.rule.ratio:g}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one strategy did with one question; ``kl`` in nats, the mean over the answer's tokens."""

    token_layer_cost: float
    kl: float
    kl_first: float
    first_agrees: bool
    answer_agreement: float
    score: float
    ttft_s: float


def strategies(ratios: Sequence[float]) -> list[Strategy]:
    """Every strategy, those that recompute at every ratio."""
    found = [Strategy("naive", STANDALONE, NoTokens()), Strategy("naive-after-prefix", AFTER_PREFIX, NoTokens())]
    found.append(Strategy("ape", AFTER_PREFIX, NoTokens(), APE))
    for ratio in ratios:
        found += [
            Strategy("default", AFTER_PREFIX, QueryAttention(ratio)),
            Strategy("cacheblend", STANDALONE, KvDeviation(ratio)),
            Strategy("cacheblend-gradual", STANDALONE, KvDeviation(ratio, shrink=0.3)),
            Strategy("epic", STANDALONE, FirstTokens(ratio)),
            Strategy("cache-craft", VARIANTS, RecordedNeed(ratio)),
            Strategy("query", STANDALONE, QueryAttention(ratio, 0, 0.0, carry=False)),
        ]
    return found


def full_outcome(asked: Asked) -> Outcome:
    """The reference itself: plain Transformers over the whole prompt."""
    points = score(asked.dataset, asked.text(asked.truth.tokens), asked.case.answers)
    return Outcome(1.0, 0.0, 0.0, True, 1.0, points, asked.truth.ttft_s)


def outcome_of(asked: Asked, strategy: Strategy) -> Outcome:
    """Blend, then compare what follows with what follows a full prefill, along that one's answer."""
    request = _variants(asked) if strategy.precomputed == VARIANTS else asked.request(strategy.precomputed)
    attention: AbstractContextManager[object] = nullcontext()
    if strategy.attention is not None:
        attention, request = strategy.attention.attention(request), strategy.attention.arranged(request)
    truth = asked.truth
    with attention:
        started = time.perf_counter()
        result = asked.subject.blender.blend(request, strategy.rule, room_tokens=asked.case.answer_tokens)
        seconds = time.perf_counter() - started
        found = asked.following(result.cache, result.logits, truth.tokens)
        agrees = found.argmax(-1) == torch.tensor(truth.tokens)
        own = truth.tokens if bool(agrees.all()) else _answer(asked, result)
    kl = divergence(truth.following, found)
    return Outcome(
        token_layer_cost=result.report.token_layer_cost,
        kl=float(kl.mean()),
        kl_first=float(kl[0]),
        first_agrees=bool(agrees[0]),
        answer_agreement=float(agrees.double().mean()),
        score=score(asked.dataset, asked.text(own), asked.case.answers),
        ttft_s=seconds,
    )


def _answer(asked: Asked, result: Blended) -> list[int]:
    result.cache.truncate(asked.total)
    return asked.greedy(result.cache, result.logits)


def _variants(asked: Asked) -> BlendRequest:
    """The prompt with, for each document, the variant that Cache-Craft chooses."""
    if asked.variants is None:
        asked.variants = _recorded(asked)
    plain = asked.request(AFTER_PREFIX)
    chunks = []
    for number, span in enumerate(asked.prompt.spans):
        before = range(number)
        chunks.append(best_variant(asked.variants[number], before).placed(span.start, before))
    return BlendRequest(asked.prompt.token_ids, asked.prompt.prefix_tokens, (plain.chunks[0], *chunks))


def _recorded(asked: Asked) -> list[list[ChunkVariant]]:
    """For each document its variants."""
    numbers = list(range(len(asked.prompt.spans)))
    found: list[list[ChunkVariant]] = [[] for _ in numbers]
    prefix = asked.prompt.token_ids[: asked.prompt.prefix_tokens]
    chooser = random.Random(asked.case.index)
    for _ in range(VARIANT_PROMPTS):
        order = chooser.sample(numbers, len(numbers))
        parts = [prefix, *(asked.prompt.tokens_of(asked.prompt.spans[number]) for number in order)]
        starts = np.cumsum([len(part) for part in parts])[:-1].tolist()
        subject = asked.subject
        recorded = record_variants(subject.model, subject.layout, np.concatenate(parts), starts, order)
        for number, variant in zip(order, recorded, strict=True):
            found[number].append(variant)
    return found
