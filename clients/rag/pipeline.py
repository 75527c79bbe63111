"""The pipeline: ingest documents, load their KV as a context, generate answers from it.

A document is prefilled once, right after the template's exact prefix (BOS, system prompt), and its chunks are keyed
by that prefix: the attention sinks then live in the prefix alone, and a document that comes first in a prompt is an
exact prefix of it. Anywhere else its keys are rotated to their new place and the blender recomputes the tokens that
matter most for the question (``docs/adr/0004``, ``docs/adr/0017``).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ... import limits
from ...blend.cache import BlendCache, KvCache
from ...blend.select.base import SelectionRule
from ...codec.level import EXACT, STANDARD, Level
from ...codec.profiles import AnyProfile
from ...errors import InvalidRequest
from ...kvstore.key import ContentKey, ModelIdentity
from ...kvstore.tier import Ack
from ..arrivals import ChunkPlace
from ..chunk_traffic import ChunkTraffic
from ..client import KvloomClient
from ..plan_wire import BlendQuestion
from ..resident import PoolPlace, ResidentChunks
from ..transformers import model_identity, model_layout, prefill
from .advised import Advice, PlanPreview
from .answer import Answer, Computed, IngestReport, Strategy
from .batching import BYTES_DEFAULT, BatchQuestion
from .blending import DocumentBlender, LoadedContext, Refused
from .calibrating import calibrated
from .canary import EVERY_DEFAULT, Canary, Watch
from .decoding import GREEDY, Decoding
from .documents import Document, Prompt, PromptTemplate
from .gating import gated
from .held import HeldChunks
from .loading import PlanSettings, PromptLoader
from .placing import Placing
from .trials import Trial

__all__ = ["Answer", "IngestReport", "LoadedContext", "RagPipeline", "Strategy"]


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The template's exact prefix: its chunk and its KV, held decoded."""

    place: ChunkPlace
    cache: KvCache


class RagPipeline:
    """Questions over documents with one model and one daemon. Not safe for use by two threads at once.

    ``level`` is what documents are loaded at, ``pool`` where chunks that were decoded once are kept so, ``rule`` says
    which tokens are recomputed (default: :class:`DocumentBlender`'s). Where the daemon is gone, or the model cannot be
    blended, every strategy still answers, from the text. The daemon's planner is asked first, as ``planning`` says,
    whether loading is faster than computing. One in ``canary_every`` blended answers is checked against full prefill
    in the background (:attr:`canary`).
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
        canary_every: int = EVERY_DEFAULT,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.layout = model_layout(model)
        self.identity = identity or model_identity(model, layout=self.layout)
        self.template = template or PromptTemplate(tokenizer)
        self.chunk_tokens, self.level = chunk_tokens, level
        self.blending = DocumentBlender(model, self.layout, self.identity.fingerprint, rule)
        self._profile: AnyProfile | None = None
        self._placing = Placing(self.identity, self.template, chunk_tokens)
        self._clock = clock
        self.planning = planning or PlanSettings()
        self._connect = partial(ChunkTraffic, layout=self.layout, pool=pool, clock=clock)
        self._traffic = self._connect(client)
        self._loader = PromptLoader(model, self.identity, client, self._traffic, self.planning, clock=clock)
        self.canary = Canary(model, self.layout, every=canary_every, report=self._loader.note_quality)
        self._held_prefix: _Prefix | None = None

    @property
    def profile(self) -> AnyProfile | None:
        """What documents are coded with, and how they are blended where it has a gate; None until one is found."""
        return self._profile

    @profile.setter
    def profile(self, profile: AnyProfile | None) -> None:
        self._profile = profile
        self.blending.follow(profile)

    @property
    def rule(self) -> SelectionRule:
        """Which tokens of blended documents are recomputed."""
        return self.blending.rule

    def use_profile(self, profile: AnyProfile) -> None:
        """Code documents with ``profile`` from now on (``kvloom calibrate``); raises :class:`DaemonUnavailable`."""
        self._traffic.publish_profile(profile)
        self.profile = profile

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
        self.canary.close()
        self._loader.close()
        self._traffic.close()

    def calibrate(self, texts: Iterable[str], *, trials: Sequence[Trial] = ()) -> AnyProfile:
        """Learn a profile from ``texts`` (a few thousand tokens of the kind to be stored) and publish it.

        With ``trials`` (:func:`trials_of`) it says, too, how much must be recomputed of blended documents.

        It is for the codec that the daemon's namespace keeps; for ours it takes what the model minds into account where
        torch can differentiate it: about the time of prefilling the text three times. Raises
        :class:`DaemonUnavailable`.
        """
        profile = calibrated(self.model, self.layout, self.template, texts, self._traffic.codec())
        if trials:
            profile = gated(profile, self.model, self.template, trials, fingerprint=self.identity.fingerprint)
        self.use_profile(profile)
        return profile

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
        placed = [(item, self._placing.document(item)) for item in documents]
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
        return [place.ref.key for place in self._placing.document(document)]

    def context(self, documents: Sequence[Document], question: str = "") -> LoadedContext:
        """Load the KV of ``documents`` into a cache, each where the prompt for ``question`` has it.

        What the planner says is computed sooner is not loaded.
        """
        return self._load(self.template.prompt(question, documents)).whole()

    def _load(self, prompt: Prompt) -> LoadedContext:
        cache, places, total = self._new_cache(prompt), self._placing.blended(prompt), len(prompt.token_ids)
        brought = self._loader.load(cache, places, total, level=self.level, blend=self._blend_question())
        return LoadedContext(prompt, cache, brought.result, brought.advice, decoding=brought.decoding)

    def _new_cache(self, prompt: Prompt) -> BlendCache:
        """Room for the prompt and an answer; the exact prefix is there."""
        cache = BlendCache(self.layout, len(prompt.token_ids) + limits.ANSWER_TOKENS_MAX)
        cache.copy_from(self._prefix().cache, prompt.prefix_tokens)
        return cache

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
        _check_length(tokens_max)
        if remember and strategy is Strategy.BLEND:
            raise InvalidRequest("blended KV is not exact and cannot be remembered as a prefix")
        return self._answer(question, documents, strategy, tokens_max, decoding, self._load, remember=remember)

    def generate_batch(
        self,
        questions: Sequence[BatchQuestion],
        *,
        tokens_max: int = 128,
        decoding: Decoding = GREEDY,
        bytes_max: int = BYTES_DEFAULT,
    ) -> list[Answer]:
        """Blended answers to all ``questions``, in their order; chunks that they share are decoded once.

        They are answered as :func:`plan_batch` orders them (it says what it raises), holding at most ``bytes_max`` of
        decoded chunks, without asking the planner. A chunk's bytes count for the first answer that needs it.
        """
        _check_length(tokens_max)
        held = HeldChunks(self._traffic, self.layout, self.level)
        found: dict[int, Answer] = {}
        for index in held.hold_for([self._placing.documents(item.documents) for item in questions], bytes_max):
            asked, load = questions[index], partial(self._held, held)
            found[index] = self._answer(
                asked.question, asked.documents, Strategy.BLEND, tokens_max, decoding, load, remember=False
            )
        return [found[index] for index in range(len(questions))]

    def _held(self, held: HeldChunks, prompt: Prompt) -> LoadedContext:
        chunks, result = held.placed(self._placing.blended(prompt))
        return LoadedContext(prompt, self._new_cache(prompt), result, chunks=chunks)

    def _answer(
        self,
        question: str,
        documents: Sequence[Document],
        strategy: Strategy,
        tokens_max: int,
        decoding: Decoding,
        load: Callable[[Prompt], LoadedContext],
        *,
        remember: bool,
    ) -> Answer:
        started = self._clock()
        with self.canary.answering():
            prompt = self.template.prompt(question, documents)
            made = self._computed(prompt, strategy, load)
            watch = Watch(decoding.choose)
            first = watch.choose(made.logits)
            ttft = self._clock() - started
            self._loader.finish(made.advice, ttft, floor=self._floor(strategy))
            if remember:
                self._remember(prompt, made.cache)
            token_ids = replace(decoding, choose=watch.choose).go_on(self.model, made.cache, first, tokens_max)
        if not made.is_exact(self.planning.prefix_level):
            self.canary.check(prompt.token_ids, token_ids, watch.logits, self.blending.target)
        return Answer(
            text=self.tokenizer.decode(token_ids, skip_special_tokens=True),
            token_ids=tuple(token_ids),
            logits=made.logits.float().numpy(),
            ttft_seconds=ttft,
            strategy=made.strategy,
            prompt_tokens=len(prompt.token_ids),
            load=made.load,
            blend=made.blend,
            plan=None if made.advice is None else made.advice.preview(),
            refusal=made.refusal,
        )

    def _computed(self, prompt: Prompt, strategy: Strategy, load: Callable[[Prompt], LoadedContext]) -> Computed:
        """The prompt's KV and what follows it; in full where it was to be blended and cannot be.

        Nothing is loaded for a blend that is refused; whether it is, the profile of the prefix may say first.
        """
        refusal = ""
        if strategy is Strategy.BLEND:
            self._prefix()
            refusal = self.blending.refusal
            if not refusal:
                context = load(prompt)
                blended = self.blending.blend(context, self._rule(context.advice))
                if not isinstance(blended, Refused):
                    self._loader.note_blend(blended.report, context.decoding)
                    return Computed(
                        strategy, blended.cache, blended.logits, context.result, context.advice, blended.report
                    )
                refusal = blended.reason
            strategy = Strategy.RECOMPUTE
        cache = KvCache(self.layout, len(prompt.token_ids) + limits.ANSWER_TOKENS_MAX)
        if strategy is Strategy.PREFIX:
            places = self._places(prompt, strategy)
            filled = self._loader.fill(cache, prompt.token_ids, places, floor=self._floor(strategy))
        else:
            filled = self._loader.compute(cache, prompt.token_ids)
        return Computed(strategy, cache, filled.logits, filled.load, filled.advice, refusal=refusal)

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
        ids, place = self.template.prefix, self._placing.prefix
        cache = KvCache(self.layout, len(ids))
        if self._traffic.load(cache, [place], level=EXACT).loaded:
            cache.truncate(len(ids))
            if self.profile is None:
                self.profile = self._traffic.profile_of(place.ref.key)
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

    def _places(self, prompt: Prompt, strategy: Strategy) -> list[ChunkPlace]:
        """The chunks that may be stored of a prompt, in order: its documents', or its own."""
        return self._placing.blended(prompt) if strategy is Strategy.BLEND else self._placing.exact(prompt)

    def _remember(self, prompt: Prompt, cache: KvCache) -> None:
        exact_only = self.profile is None or self.planning.prefix_level == EXACT
        levels, profile = ((EXACT,), None) if exact_only else ((self.planning.prefix_level, EXACT), self.profile)
        for place in self._places(prompt, Strategy.PREFIX):
            self._traffic.remember(cache, place, levels=levels, profile=profile)


def _check_length(tokens_max: int) -> None:
    if not 1 <= tokens_max <= limits.ANSWER_TOKENS_MAX:
        raise InvalidRequest(f"tokens_max is {tokens_max}, must be 1 to {limits.ANSWER_TOKENS_MAX}")
