"""The model's answers to questions from a cache as it was computed, and from what the codec gives back of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from kvloom import codec
from kvloom.blend.cache import KvCache
from kvloom.clients.rag.documents import Document, PromptTemplate
from kvloom.codec import EXACT, Level, Profile

from .questions import Question
from .schemes import chunks_of, joined
from .subject import Kv, Subject
from .texts import TokenIds

SYSTEM = (
    "You copy short answers out of documents. Reply with the answer only: a name, a date, a number or a few words "
    "copied from the documents. For example:\nQuestion: who wrote the play hamlet\nAnswer: William Shakespeare"
)
OPENING = "Answer:"
"""How the model's turn begins: SmolLM2 repeats the question in a whole sentence where it is let."""
REFERENCE = "unquantised"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said from one cache, and the size of that cache in bits per value (of what was coded)."""

    text: str
    bits_per_value: float


class Answerer:
    """Asks the model. The documents' part of a prompt is prefilled once per question."""

    def __init__(
        self, subject: Subject, profile: Profile, levels: Sequence[Level], *, document_tokens: int, answer_tokens: int
    ) -> None:
        self._subject, self._profile, self._levels = subject, profile, levels
        self._document_tokens, self._answer_tokens = document_tokens, answer_tokens
        self._template = PromptTemplate(subject.tokenizer, system=SYSTEM)
        # Without a chat template, the prompt ends with it already.
        self._opening = OPENING if subject.tokenizer.chat_template else ""
        configured = subject.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        self._ends = {*ends, subject.tokenizer.eos_token_id}

    def answers(self, question: Question) -> dict[str, Answer]:
        """Answers by level name; the unquantised cache's under ``REFERENCE``."""
        prompt = self._template.prompt(question.question, self._documents(question))
        context = prompt.spans[-1].stop
        ids = prompt.token_ids[:context]
        rest = np.concatenate([prompt.token_ids[context:], self._template.tokenise(self._opening)])
        kv = self._subject.kv(ids)
        values = sum(item.size for item in (*kv.keys, *kv.values))
        reference = self._said(kv, rest)
        found = {REFERENCE: Answer(self._text(reference), 8.0 * kv.keys[0].itemsize)}
        for level in self._levels:
            coded = [self._through_codec(chunk.kv, chunk.start, level) for chunk in chunks_of(kv)]
            said = self._said(joined([item.kv for item in coded]), rest, draft=reference)
            found[level.name] = Answer(self._text(said), 8 * sum(item.size_bytes for item in coded) / values)
        return found

    def _documents(self, question: Question) -> list[Document]:
        """The passages, each cut to its share of the tokens there is room for."""
        share = self._document_tokens // len(question.passages)
        tokenizer = self._subject.tokenizer
        return [
            Document(tokenizer.decode(self._template.tokenise(passage.text)[:share]), passage.title)
            for passage in question.passages
        ]

    def _through_codec(self, kv: Kv, start: int, level: Level) -> "_Coded":
        layout, profile = self._subject.layout, None if level == EXACT else self._profile
        levels = (EXACT,) if level == EXACT else None
        blob = codec.encode(kv.keys, kv.values, layout=layout, profile=profile, first_position=start, levels=levels)
        cut = codec.truncate(blob, level)
        keys, values = codec.decode(cut, profile=profile, level=level)
        restored = [[np.asarray(item, np.float32) for item in kind] for kind in (keys, values)]
        return _Coded(Kv(restored[0], restored[1]), len(cut))

    @torch.inference_mode()
    def _said(self, kv: Kv, rest: TokenIds, *, draft: Sequence[int] = ()) -> list[int]:
        """The greedy continuation of a cache and the tokens ``rest``.

        ``draft`` is what it may turn out to be: its tokens are run all at once, and where the model would have said
        another the rest of them is forgotten (greedy speculative decoding; Leviathan et al. 2023).
        """
        context = kv.keys[0].shape[1]
        cache = KvCache(self._subject.layout, context + len(rest) + self._answer_tokens)
        for layer, (keys, values) in enumerate(zip(kv.keys, kv.values, strict=True)):
            room = cache.layer_arrays(layer)
            room.keys[:, :context], room.values[:, :context] = keys, values
        cache.truncate(context)
        said: list[int] = []
        guessed = list(draft[: self._answer_tokens - 1])
        tokens = torch.from_numpy(np.concatenate([rest, np.asarray(guessed, rest.dtype)]))[None]
        while True:
            output = self._subject.model(
                input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=len(guessed) + 1
            )
            for token, guess in zip_longest(output.logits[0].argmax(-1).tolist(), guessed):
                said.append(token)
                if token in self._ends or len(said) == self._answer_tokens:
                    return said
                if token != guess:
                    break
            cache.truncate(context + len(rest) + len(said) - 1)
            tokens, guessed = torch.tensor([said[-1:]]), []

    def _text(self, said: Sequence[int]) -> str:
        """The first line of what was said."""
        text: str = self._subject.tokenizer.decode(said, skip_special_tokens=True)
        return text.strip().partition("\n")[0].strip()


@dataclass(frozen=True, slots=True)
class _Coded:
    """A chunk after the round trip."""

    kv: Kv
    size_bytes: int
