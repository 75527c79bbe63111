"""The model under test: prompts in full, chunks precomputed in several ways, and what is said after a blend."""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from codec_bench.answers import OPENING, SYSTEM
from torch import Tensor

from kvloom.blend import Blender, BlendRequest, ChunkVariant, KvCache, PlacedChunk
from kvloom.clients.rag.documents import Prompt, PromptTemplate
from kvloom.clients.transformers import extract, load_model, model_layout, next_logits, prefill
from kvloom.clients.transformers.running import said

from .cases import NEWS, Case

__all__ = ["AFTER_PREFIX", "STANDALONE", "Asked", "Said", "Subject"]

STANDALONE, AFTER_PREFIX = "standalone", "after-prefix"
"""Documents computed from position 0 with nothing before them, or right after the prompts' exact prefix."""
NEWS_SYSTEM = "You summarise documents in a few plain sentences."
TITLE_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Said:
    """What is said after a full prefill: log-probabilities ``[tokens, vocabulary]`` along the answer, the answer."""

    following: Tensor
    tokens: list[int]
    ttft_s: float


class Subject:
    """A loaded model; ``name`` is what the rows call it."""

    def __init__(self, name: str, dataset: str) -> None:
        loaded = load_model(name)
        self.name, self.dataset = name, dataset
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.layout = model_layout(self.model)
        self.template = PromptTemplate(self.tokenizer, system=NEWS_SYSTEM if dataset == NEWS else SYSTEM)
        self.opening = self.template.tokenise(OPENING if dataset != NEWS and self.tokenizer.chat_template else "")
        self.blender = Blender(self.model, self.layout)
        prefix = self.template.prefix
        self.prefix = prefill(self.model, prefix, cache=KvCache(self.layout, len(prefix)))
        configured = self.model.generation_config.eos_token_id
        self.ends = {*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id}

    def cut(self, text: str, tokens: int) -> str:
        """The first ``tokens`` tokens of ``text``, less what a title takes."""
        found: str = self.tokenizer.decode(self.template.tokenise(text)[: tokens - TITLE_TOKENS])
        return found if text.startswith(found) else text[: len(found)]


class Asked:
    """One case on one model: the prompt, its full prefill, and its chunks computed each way once."""

    def __init__(self, subject: Subject, case: Case) -> None:
        self.subject, self.case = subject, case
        prompt = subject.template.prompt(case.question, case.documents)
        self.prompt = Prompt(np.concatenate([prompt.token_ids, subject.opening]), prompt.prefix_tokens, prompt.spans)
        self.total = len(self.prompt.token_ids)
        self.variants: list[list[ChunkVariant]] | None = None
        self._chunks: dict[str, tuple[PlacedChunk, ...]] = {}

    @property
    def dataset(self) -> str:
        """Where the case is from."""
        return self.subject.dataset

    def new_cache(self) -> KvCache:
        """Room for the prompt and an answer."""
        return KvCache(self.subject.layout, self.total + self.case.answer_tokens)

    def full(self, cache: KvCache) -> Tensor:
        """Plain Transformers: compute everything; logits ``[vocabulary]`` of the last token."""
        return next_logits(self.subject.model, cache, self.prompt.token_ids)

    @cached_property
    def truth(self) -> Said:
        """What the model says after a full prefill, greedily, and the time to its first token."""
        cache = self.new_cache()
        started = time.perf_counter()
        logits = self.full(cache)
        seconds = time.perf_counter() - started
        tokens = self.greedy(cache, logits)
        return Said(self.following(cache, logits, tokens), tokens, seconds)

    @torch.inference_mode()
    def greedy(self, cache: KvCache, logits: Tensor) -> list[int]:
        """The first tokens of the greedy answer, as far as the case looks and to the end of the text at most."""
        found = [int(logits.argmax())]
        while len(found) < self.case.answer_tokens and found[-1] not in self.subject.ends:
            output = self.subject.model(input_ids=torch.tensor([found[-1:]]), past_key_values=cache)
            found.append(int(output.logits[0, -1].argmax()))
        return found

    def following(self, cache: KvCache, logits: Tensor, answer: list[int]) -> Tensor:
        """Log-probabilities ``[answer, vocabulary]`` of each token of ``answer`` after those before it."""
        cache.truncate(self.total)
        return said(self.subject.model, cache, logits, answer)

    def text(self, tokens: list[int]) -> str:
        """Tokens as text, its end not among it."""
        found: str = self.subject.tokenizer.decode(tokens, skip_special_tokens=True)
        return found.strip()

    def request(self, precomputed: str) -> BlendRequest:
        """The prompt with its documents precomputed one way."""
        chunks = self._chunks.get(precomputed)
        if chunks is None:
            chunks = self._chunks[precomputed] = tuple(self._computed(precomputed))
        prefix_tokens = self.prompt.prefix_tokens
        before = PlacedChunk(0, prefix_tokens, *extract(self.subject.prefix, 0, prefix_tokens), first_position=0)
        # A document that comes first follows just what it was computed after: it is exact.
        exact = prefix_tokens if precomputed == STANDALONE else chunks[0].stop
        return BlendRequest(self.prompt.token_ids, exact, (before, *chunks))

    def _computed(self, precomputed: str) -> list[PlacedChunk]:
        found = []
        for span in self.prompt.spans:
            ids = self.prompt.tokens_of(span)
            start = 0 if precomputed == STANDALONE else self.prompt.prefix_tokens
            cache = KvCache(self.subject.layout, start + len(ids))
            if start:
                cache.copy_from(self.subject.prefix, start)
            prefill(self.subject.model, ids, cache=cache)
            keys, values = extract(cache, start, cache.length)
            found.append(PlacedChunk(span.start, len(ids), keys, values, first_position=start))
        return found
