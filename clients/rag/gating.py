"""Measure how well a model blends: some prompts in full, and at several ratios from KV as a daemon would give it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ... import limits
from ...blend.cache import BlendCache, KvCache
from ...blend.executor import Blender
from ...blend.gate import BlendGate, QualityTarget, RatioQuality, fewest_recomputed, unmovable_reason
from ...blend.request import BlendRequest, PlacedChunk
from ...blend.select.query import QueryAttention
from ...codec.level import STANDARD, Level
from ...codec.profiles import AnyProfile
from ...errors import UnsupportedModel
from ..transformers.fitting import pass_through
from ..transformers.probing import model_layout
from ..transformers.running import divergence, extract, greedy, next_logits, prefill, said
from .documents import Prompt, PromptTemplate
from .trials import Trial

__all__ = ["TRIALS_DEFAULT", "default_rule", "gated", "measure_gate"]

TRIALS_DEFAULT: Final = 12
_ANSWER_TOKENS: Final = 8


def default_rule(ratio: float | None = None) -> QueryAttention:
    """The rule that pipelines blend by, at its own ratio unless one is given."""
    rule = QueryAttention(tokens_min=limits.RECOMPUTED_TOKENS_MIN)
    return rule if ratio is None else replace(rule, ratio=ratio)


def measure_gate(
    model: Any,
    template: PromptTemplate,
    trials: Sequence[Trial],
    *,
    fingerprint: bytes,
    profile: AnyProfile | None = None,
    level: Level = STANDARD,
    target: QualityTarget | None = None,
    progress: Callable[[], None] | None = None,
) -> BlendGate:
    """Find the smallest ratio at which answers over ``trials`` meet ``target``, for pipelines of this very ``model``.

    ``trials`` longer than the model was made for are left out. Documents go through ``profile`` at ``level`` first, as
    they do on their way through a store; without a profile they are taken as they are. A model that cannot be blended
    at all gets a gate that refuses. ``progress`` is called after every trial of every ratio. ``fingerprint`` is that
    of the model's identity.
    """
    target = target or QualityTarget()
    refuse = partial(BlendGate, fingerprint, target, 0, ())
    layout = model_layout(model)
    stuck = unmovable_reason(layout)
    if stuck:
        return refuse(stuck)
    try:
        blender = Blender(model, layout)
        prompts = [template.prompt(trial.question, trial.documents) for trial in trials]
        positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        fitting = [
            item for item in prompts if len(item.token_ids) + _ANSWER_TOKENS <= (positions or limits.POSITION_MAX)
        ]
        if not fitting:
            shortest = min(len(item.token_ids) for item in prompts)
            return refuse(f"the prompts to try have {shortest} tokens or more, the model was made for {positions}")
        tried = [_Tried(blender, prompt, profile, level) for prompt in fitting]
        measured = fewest_recomputed(lambda ratio: _quality(tried, ratio, progress), target)
    except UnsupportedModel as error:
        return refuse(str(error)[:200])
    return BlendGate(fingerprint, target, len(tried), measured)


def gated(
    profile: AnyProfile,
    model: Any,
    template: PromptTemplate,
    trials: Sequence[Trial],
    *,
    fingerprint: bytes,
    target: QualityTarget | None = None,
    progress: Callable[[], None] | None = None,
) -> AnyProfile:
    """``profile`` with what :func:`measure_gate` finds of the model at ``standard``, where it has that level."""
    level = STANDARD if STANDARD in profile.levels else max(profile.levels)
    gate = measure_gate(
        model, template, trials, fingerprint=fingerprint, profile=profile, level=level, target=target, progress=progress
    )
    return replace(profile, blend_gate=gate.to_bytes())


class _Tried:
    """One trial on one model: its prompt, what is said after a full prefill, and its documents as stored."""

    def __init__(self, blender: Blender, prompt: Prompt, profile: AnyProfile | None, level: Level) -> None:
        self._blender, self._prompt = blender, prompt
        model, layout = blender.model, blender.layout
        total = len(self._prompt.token_ids)
        cache = KvCache(layout, total + _ANSWER_TOKENS, model.device)
        logits = next_logits(model, cache, self._prompt.token_ids)
        first = int(logits.argmax())
        self._answer = [first, *greedy(model, cache, first, _ANSWER_TOKENS - 1)]
        cache.truncate(total)
        self._expected: Tensor = said(model, cache, logits, self._answer)
        own = None if profile is None else replace(profile, layout=layout)
        self._stored = [_stored(model, self._prompt, number, own, level) for number in range(len(self._prompt.spans))]

    def quality(self, ratio: float) -> tuple[float, bool]:
        """KL of the answer's tokens, and whether the first one is the same, where ``ratio`` is recomputed."""
        prompt, prefix = self._prompt, self._prompt.prefix_tokens
        chunks = [PlacedChunk(0, prefix, *extract(self._stored[0], 0, prefix), first_position=0)]
        for span, cache in zip(prompt.spans, self._stored, strict=True):
            kept = extract(cache, prefix, cache.length)
            chunks.append(PlacedChunk(span.start, span.stop - span.start, *kept, first_position=prefix))
        request = BlendRequest(prompt.token_ids, prompt.spans[0].stop, tuple(chunks))
        blended = self._blender.blend(request, default_rule(ratio), room_tokens=_ANSWER_TOKENS)
        found = said(self._blender.model, blended.cache, blended.logits, self._answer)
        return float(divergence(self._expected, found).mean()), int(found[0].argmax()) == self._answer[0]


def _stored(model: Any, prompt: Prompt, number: int, profile: AnyProfile | None, level: Level) -> BlendCache:
    """A cache of the exact prefix and right after it the ``number``-th document, as a store gives that back."""
    prefix = prompt.token_ids[: prompt.prefix_tokens]
    own = prompt.tokens_of(prompt.spans[number])
    cache = BlendCache(model_layout(model) if profile is None else profile.layout, len(prefix) + len(own), model.device)
    prefill(model, np.concatenate([prefix, own]), cache=cache)
    if profile is not None:
        pass_through(cache, range(len(prefix), cache.length), profile, level=level)
    return cache


def _quality(tried: Sequence[_Tried], ratio: float, progress: Callable[[], None] | None) -> RatioQuality:
    divergences, agreed = [], 0
    for item in tried:
        kl, agrees = item.quality(ratio)
        divergences.append(kl)
        agreed += agrees
        if progress is not None:
            progress()
    spread = torch.tensor(divergences, dtype=torch.float64).std(correction=min(1, len(divergences) - 1))
    error = float(spread) / len(divergences) ** 0.5
    return RatioQuality(ratio, max(0.0, float(np.mean(divergences))), error, agreed / len(divergences))
