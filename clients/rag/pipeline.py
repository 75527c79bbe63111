"""The pipeline: ingest documents, load their KV as a context, generate answers from it.

A document is prefilled once, right after the template's exact prefix (BOS, system prompt), and its chunks are keyed
by that prefix: the attention sinks then live in the prefix alone, and a document that comes first in a prompt is an
exact prefix of it. Anywhere else its keys are rotated to their new place and the blender recomputes the tokens that
matter most for the question (``docs/adr/0004``, ``docs/adr/0017``).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...blend.cache import BlendCache, KvCache
from ...blend.executor import Blender
from ...blend.request import BlendReport, BlendRequest, PlacedChunk
from ...blend.select.base import SelectionRule
from ...blend.select.query import QueryAttention
from ...codec.level import EXACT, STANDARD, Level
from ...codec.profiles import AnyProfile
from ...errors import InvalidRequest
from ...kvstore.key import ChunkRef, ContentKey, ModelIdentity, chunk_refs
from ...kvstore.tier import Ack
from ..client import KvloomClient
from ..plan_wire import BlendQuestion
from ..resident import PoolPlace, ResidentChunks
from ..transformers import model_identity, model_layout, prefill
from .advice import Advice, PlanPreview
from .arrivals import ChunkPlace, LoadResult
from .calibrating import calibrated
from .chunks import ChunkTraffic
from .decoding import GREEDY, Decoding
from .documents import Document, Prompt, PromptTemplate
from .loading import PlanSettings, PromptLoader

__all__ = ["Answer", "IngestReport", "LoadedContext", "RagPipeline", "Strategy"]


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
class LoadedContext:
    """A prompt whose documents' KV lies decoded in ``cache``, ready to be blended; on ``advice``, if there was any."""

    prompt: Prompt
    cache: BlendCache
    result: LoadResult
    advice: Advice | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated and how. ``logits`` ``[vocabulary]`` float32 are those of the first token.

    ``ttft_seconds`` runs from the call of :meth:`RagPipeline.generate` to the first token; ``load`` and ``blend`` are
    None where nothing was loaded or blended. ``plan`` is what was expected of it; None where nobody said.
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


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The template's exact prefix: its chunk and its KV, held decoded."""

    place: ChunkPlace
    cache: KvCache


class RagPipeline:
    """Questions over documents with one model and one daemon. Not safe for use by two threads at once.

    ``level`` is what documents are loaded at, ``rule`` which of their tokens are recomputed, ``pool`` where chunks that
    were decoded once are kept so. Where the daemon is gone, every strategy still answers, from the text. The
    daemon's planner is asked first, as ``planning`` says, whether loading is faster than computing.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        client: KvloomClient,
        *,
        identity: ModelIdentity | None = None,
        template: PromptTemplate | None = None,
        chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT,
        level: Level = STANDARD,
        rule: SelectionRule | None = None,
        pool: PoolPlace | None = None,
        planning: PlanSettings | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.layout = model_layout(model)
        self.identity = identity or model_identity(model, layout=self.layout)
        self.template = template or PromptTemplate(tokenizer)
        self.chunk_tokens, self.level = chunk_tokens, level
        self.rule = rule or QueryAttention(tokens_min=limits.RECOMPUTED_TOKENS_MIN)
        self.profile: AnyProfile | None = None
        self._clock = clock
        self.planning = planning or PlanSettings()
        self._connect = partial(ChunkTraffic, layout=self.layout, pool=pool, clock=clock)
        self._traffic = self._connect(client)
        self._loader = PromptLoader(model, self.identity, client, self._traffic, self.planning, clock=clock)
        self._blender = Blender(model, self.layout)
        prefix = chunk_refs(self.identity, self.template.prefix, chunk_tokens=limits.CHUNK_TOKENS_MAX)[0]
        self._prefix_place = ChunkPlace(prefix, 0)
        self._held_prefix: _Prefix | None = None

    def use_client(self, client: KvloomClient) -> None:
        """Talk to another daemon from now on (or to the same one at a new address)."""
        self._traffic.close()
        self._traffic = self._connect(client)
        self._loader.use_client(client, self._traffic)
        if self.profile is not None:
            self._traffic.publish_profile(self.profile)

    @property
    def resident(self) -> ResidentChunks | None:
        """The pool, if one was asked for; a new one after :meth:`use_client`."""
        return self._traffic.resident

    def close(self) -> None:
        """End the worker threads; the client stays the caller's."""
        self._loader.close()
        self._traffic.close()

    def calibrate(self, texts: Iterable[str]) -> AnyProfile:
        """Learn a profile from ``texts`` (a few thousand tokens of the kind to be stored) and publish it.

        It is for the codec that the daemon's namespace keeps; for ours it takes what the model minds into account where
        torch can differentiate it: about the time of prefilling the text three times. Raises
        :class:`DaemonUnavailable`.
        """
        self.profile = calibrated(self.model, self.layout, self.template, texts, self._traffic.codec())
        self._traffic.publish_profile(self.profile)
        return self.profile

    def ingest(
        self,
        documents: Sequence[Document],
        *,
        ack: Ack = Ack.DISK,
        on_document: Callable[[Document], None] | None = None,
    ) -> IngestReport:
        """Prefill, encode and put every document that is not stored yet; ``on_document`` is called after each.

        Without a profile so far, the daemon's for this model is used, or one is calibrated on these documents. Raises
        :class:`DaemonUnavailable` where a put finds no daemon; what was acknowledged before stays stored.
        """
        prefix = self._prefix()
        profile = self._ensure_profile(documents, prefix)
        placed = [(item, self._document_places(item, prefix)) for item in documents]
        present = iter(self._traffic.exists([place.ref.key for _, places in placed for place in places]))
        already_stored = stored_tokens = stored_bytes = 0
        for document, places in placed:
            chunks_present = [next(present) for _ in places]
            if all(chunks_present):
                already_stored += 1
            else:
                stored_bytes += self._ingest_one(document, places, prefix, profile, ack)
                stored_tokens += sum(place.ref.tokens for place in places)
            if on_document is not None:
                on_document(document)
        self._loader.report()
        return IngestReport(len(documents), already_stored, stored_tokens, stored_bytes)

    def document_keys(self, document: Document) -> list[ContentKey]:
        """The content keys of a document's chunks."""
        return [place.ref.key for place in self._document_places(document, self._prefix())]

    def context(self, documents: Sequence[Document], question: str = "") -> LoadedContext:
        """Load the KV of ``documents`` into a cache, each where the prompt for ``question`` has it.

        What the planner says is computed sooner is not loaded.
        """
        prefix = self._prefix()
        prompt = self.template.prompt(question, documents)
        total = len(prompt.token_ids)
        cache = BlendCache(self.layout, total + limits.ANSWER_TOKENS_MAX)
        cache.copy_from(prefix.cache, prompt.prefix_tokens)
        places = self._places(prompt, Strategy.BLEND)
        result, advice = self._loader.load(cache, places, total, level=self.level, blend=self._blend_question())
        return LoadedContext(prompt, cache, result, advice)

    def preview(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        strategy: Strategy = Strategy.BLEND,
        prefetch: bool = False,
    ) -> PlanPreview | None:
        """What answering would load and compute, and how long that is expected to take; None where nobody knows.

        With ``prefetch`` the daemon copies what would be loaded into its memory: for a question that still waits, or
        the next turn of a conversation.
        """
        prompt = self.template.prompt(question, documents)
        blend = self._blend_question() if strategy is Strategy.BLEND else None
        places, total = self._places(prompt, strategy), len(prompt.token_ids)
        advice = self._loader.ask(places, total, floor=self._floor(strategy), blend=blend, prefetch=prefetch)
        return None if advice is None else advice.preview()

    def generate(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        strategy: Strategy = Strategy.BLEND,
        tokens_max: int = 128,
        remember: bool = False,
        decoding: Decoding = GREEDY,
    ) -> Answer:
        """Answer ``question`` from ``documents`` with at most ``tokens_max`` tokens, chosen as ``decoding`` says.

        ``remember`` puts the whole prompt's exact KV afterwards, so that :attr:`Strategy.PREFIX` finds it next time; it
        needs a strategy whose KV is exact.
        """
        if not 1 <= tokens_max <= limits.ANSWER_TOKENS_MAX:
            raise InvalidRequest(f"tokens_max is {tokens_max}, must be 1 to {limits.ANSWER_TOKENS_MAX}")
        if remember and strategy is Strategy.BLEND:
            raise InvalidRequest("blended KV is not exact and cannot be remembered as a prefix")
        started = self._clock()
        load: LoadResult | None = None
        blend: BlendReport | None = None
        advice: Advice | None = None
        if strategy is Strategy.BLEND:
            context = self.context(documents, question)
            prompt, load, advice = context.prompt, context.result, context.advice
            blended = self._blender.blend(_blend_request(context), self._rule(advice), cache=context.cache)
            cache: KvCache = blended.cache
            logits, blend = blended.logits, blended.report
            self._loader.note_blend(blend)
        else:
            prompt = self.template.prompt(question, documents)
            cache = KvCache(self.layout, len(prompt.token_ids) + limits.ANSWER_TOKENS_MAX)
            if strategy is Strategy.PREFIX:
                places = self._places(prompt, strategy)
                filled = self._loader.fill(cache, prompt.token_ids, places, floor=self._floor(strategy))
            else:
                filled = self._loader.compute(cache, prompt.token_ids)
            logits, load, advice = filled.logits, filled.load, filled.advice
        first = decoding.choose(logits)
        ttft = self._clock() - started
        self._loader.finish(advice, ttft, floor=self._floor(strategy))
        if remember:
            self._remember(prompt, cache)
        token_ids = decoding.go_on(self.model, cache, first, tokens_max)
        return Answer(
            text=self.tokenizer.decode(token_ids, skip_special_tokens=True),
            token_ids=tuple(token_ids),
            logits=logits.float().numpy(),
            ttft_seconds=ttft,
            strategy=strategy,
            prompt_tokens=len(prompt.token_ids),
            load=load,
            blend=blend,
            plan=None if advice is None else advice.preview(),
        )

    def _floor(self, strategy: Strategy) -> Level:
        """The coarsest level that may be loaded."""
        return self.level if strategy is Strategy.BLEND else self.planning.prefix_level

    def _blend_question(self) -> BlendQuestion:
        return BlendQuestion(len(self.layout.layers), self.rule.decision_layer, self.rule.ratio)

    def _rule(self, advice: Advice | None) -> SelectionRule:
        """The rule, with a larger ratio where loading hides it."""
        ratio = (advice.reply.recompute_ratio if advice is not None else None) or 0.0
        return self.rule if ratio <= self.rule.ratio else replace(self.rule, ratio=min(ratio, 1.0))

    def _prefix(self) -> _Prefix:
        """The exact prefix: from memory, from the daemon, or computed."""
        if self._held_prefix is not None:
            return self._held_prefix
        ids = self.template.prefix
        place = self._prefix_place
        cache = KvCache(self.layout, len(ids))
        if self._traffic.load(cache, [place], level=EXACT).loaded:
            cache.truncate(len(ids))
        else:
            cache = prefill(self.model, ids, cache=cache)
        self._held_prefix = _Prefix(place, cache)
        return self._held_prefix

    def _ensure_profile(self, documents: Sequence[Document], prefix: _Prefix) -> AnyProfile:
        """Settle on a profile and store the prefix with it: its container then names the profile for others."""
        key, chosen = prefix.place.ref.key, self._traffic.codec()
        profile, outdated = self.profile, False
        if profile is None or profile.codec is not chosen:
            profile = self._traffic.profile_of(key)
            outdated = profile is not None and profile.codec is not chosen  # the namespace had another codec
        if profile is None or outdated:
            profile = self.calibrate(item.rendered for item in documents)
        self.profile = profile
        if outdated or not self._traffic.exists([key])[0]:
            levels = (STANDARD, EXACT)
            self._traffic.store(prefix.cache, prefix.place, levels=levels, profile=profile, ack=Ack.DISK)
        return profile

    def _ingest_one(
        self, document: Document, places: Sequence[ChunkPlace], prefix: _Prefix, profile: AnyProfile, ack: Ack
    ) -> int:
        ids = self.template.document_tokens(document)
        start = len(self.template.prefix)
        cache = KvCache(self.layout, start + len(ids))
        cache.copy_from(prefix.cache, start)
        self._loader.compute(cache, np.concatenate((self.template.prefix, ids)))
        return sum(
            self._traffic.store(cache, place, levels=(self.level,), profile=profile, ack=ack) for place in places
        )

    def _document_places(self, document: Document, prefix: _Prefix) -> list[ChunkPlace]:
        ids = self.template.document_tokens(document)
        start = len(self.template.prefix)
        return [ChunkPlace(ref, start + ref.start) for ref in self._document_refs(ids, prefix.place.ref.key)]

    def _document_refs(self, ids: NDArray[np.int64], parent: ContentKey) -> list[ChunkRef]:
        return chunk_refs(self.identity, ids, chunk_tokens=self.chunk_tokens, context=parent)

    def _places(self, prompt: Prompt, strategy: Strategy) -> list[ChunkPlace]:
        """The chunks that may be stored of a prompt, in order: its documents', or its own."""
        if strategy is Strategy.BLEND:
            parent = self._prefix_place.ref.key
            return [
                ChunkPlace(ref, span.start + ref.start)
                for span in prompt.spans
                for ref in self._document_refs(prompt.tokens_of(span), parent)
            ]
        refs = chunk_refs(self.identity, prompt.token_ids, chunk_tokens=self.chunk_tokens)
        return [ChunkPlace(ref, ref.start) for ref in refs]

    def _remember(self, prompt: Prompt, cache: KvCache) -> None:
        exact_only = self.profile is None or self.planning.prefix_level == EXACT
        levels, profile = ((EXACT,), None) if exact_only else ((self.planning.prefix_level, EXACT), self.profile)
        for place in self._places(prompt, Strategy.PREFIX):
            self._traffic.remember(cache, place, levels=levels, profile=profile)


def _blend_request(context: LoadedContext) -> BlendRequest:
    """The prefix and every loaded chunk, already in the cache at their places; what was missed is computed.

    A document that comes first follows the very tokens it was computed after: it belongs to the exact prefix (exact but
    for its level) and nothing of it is recomputed.
    """
    prompt, cache = context.prompt, context.cache
    arrays = [cache.layer_arrays(layer) for layer in range(len(cache.layout.layers))]

    def placed(start: int, stop: int) -> PlacedChunk:
        keys = [item.keys[:, start:stop] for item in arrays]
        values = [item.values[:, start:stop] for item in arrays]
        return PlacedChunk(start, stop - start, keys, values, first_position=start)

    exact_tokens = prompt.prefix_tokens
    first_document_stop = prompt.spans[0].stop if prompt.spans else exact_tokens
    for place in context.result.loaded:
        if place.start == exact_tokens and place.stop <= first_document_stop:
            exact_tokens = place.stop
    chunks = (placed(0, prompt.prefix_tokens), *(placed(place.start, place.stop) for place in context.result.loaded))
    return BlendRequest(prompt.token_ids, exact_tokens, chunks)
