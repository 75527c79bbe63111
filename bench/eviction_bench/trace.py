"""Traces of requests as lists of blocks, each block with its parent, place and cost."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvloom.kvstore.eviction import ChunkAttributes
from kvloom.kvstore.key import StorageKey

__all__ = ["BLOCK_TOKENS", "RAG_BLOCK_TOKENS", "PrefillCost", "Trace", "load_mooncake", "load_rag"]

BLOCK_TOKENS = 512
"""Of the Mooncake traces."""
RAG_BLOCK_TOKENS = 64
_RAG_SYSTEM_TOKENS = 256
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Seconds to compute ``n`` tokens after ``context`` others: ``linear · n + quadratic · n · (context + n / 2)``."""

    linear_seconds: float
    quadratic_seconds: float

    def seconds(self, start: int, tokens: int) -> float:
        """For the tokens ``[start, start + tokens)``."""
        return tokens * (self.linear_seconds + self.quadratic_seconds * (start + tokens / 2))


@dataclass(frozen=True, slots=True)
class Trace:
    """``requests`` hold block numbers front to back; each table has a row per block. A parent of -1 is none."""

    name: str
    requests: Sequence[Sequence[int]]
    parents: Sequence[int]
    keys: Sequence[StorageKey]
    attributes: Sequence[ChunkAttributes]
    seconds: Sequence[float]

    def head(self, requests: int) -> "Trace":
        """The first ``requests`` of them, and the blocks that these use."""
        kept = self.requests[:requests]
        blocks = 1 + max(block for request in kept for block in request)
        tables = (self.parents, self.keys, self.attributes, self.seconds)
        return Trace(self.name, kept, *(table[:blocks] for table in tables))  # type: ignore[arg-type]

    @property
    def blocks(self) -> int:
        """Unique blocks."""
        return len(self.keys)

    @property
    def references(self) -> int:
        """Block uses."""
        return sum(len(request) for request in self.requests)

    @property
    def prefill_seconds(self) -> float:
        """What all requests cost without a cache."""
        return sum(self.seconds[block] for request in self.requests for block in request)


@dataclass(frozen=True, slots=True)
class _Block:
    name: object
    tokens: int


class _Table:
    """Numbers blocks: a block is what stands at one place after one parent."""

    def __init__(self, cost: PrefillCost) -> None:
        self._cost = cost
        self._numbers: dict[tuple[int, object], int] = {}
        self._parents: list[int] = []
        self._keys: list[StorageKey] = []
        self._attributes: list[ChunkAttributes] = []
        self._seconds: list[float] = []

    def chain(self, blocks: Sequence[_Block], block_tokens: int, *, start: int = 0) -> list[int]:
        """The numbers of ``blocks``, each the parent of the next, the first computed after ``start`` tokens."""
        parent = -1
        path: list[int] = []
        for index, block in enumerate(blocks):
            number = self._numbers.setdefault((parent, block.name), len(self._numbers))
            if number == len(self._keys):
                place = start + index * block_tokens
                digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=32).digest()
                above = None if parent < 0 else self._keys[parent]
                self._parents.append(parent)
                self._keys.append(StorageKey(digest))
                self._attributes.append(ChunkAttributes(above, place, block.tokens))
                self._seconds.append(self._cost.seconds(place, block.tokens))
            path.append(number)
            parent = number
        return path

    def trace(self, name: str, requests: Sequence[Sequence[int]]) -> Trace:
        """Everything numbered so far, with the requests that it was numbered for."""
        return Trace(name, requests, self._parents, self._keys, self._attributes, self._seconds)


def load_mooncake(path: Path, cost: PrefillCost) -> Trace:
    """A trace of Mooncake: ``hash_ids`` name blocks of 512 tokens, each with all that stands before it."""
    table = _Table(cost)
    numbered: list[list[int]] = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        names, length = row["hash_ids"], row["input_length"]
        blocks = [_Block(name, min(BLOCK_TOKENS, length - index * BLOCK_TOKENS)) for index, name in enumerate(names)]
        numbered.append(table.chain(blocks, BLOCK_TOKENS))
    return table.trace(path.stem.removeprefix("mooncake_").removesuffix("_trace"), numbered)


def load_rag(folder: Path, cost: PrefillCost, *, standalone: bool = False, requests: int = 6000) -> Trace:
    """Questions over shuffled passages of musique_100 and hotpot_distractor_60, in blocks of 64 tokens.

    A prompt is a system prompt, passages and a question. Questions come again, the popular ones more often (Zipf,
    exponent 0.8); each time the first four to ten of its ten passages are retrieved, half of the time in their order
    and shuffled otherwise. Two of three prompts are followed up later, after 40 other requests in the mean, by the
    whole prompt, an answer and another question. Four characters count as a token. Chained, a block is found again only
    behind the same prefix; ``standalone`` passages are computed alone and found again anywhere; nothing else is kept.
    """
    prompts = _prompts(_passages(folder), requests)
    system = "s" * (_RAG_SYSTEM_TOKENS * _CHARACTERS_PER_TOKEN)
    table = _Table(cost)
    numbered: list[list[int]] = []
    for prompt in prompts:
        path = table.chain(_cut(system), RAG_BLOCK_TOKENS)
        if standalone:
            for passage in prompt.passages:
                path += table.chain(_cut(passage), RAG_BLOCK_TOKENS, start=_RAG_SYSTEM_TOKENS)
        else:
            path = table.chain(_cut(system + "\n".join((*prompt.passages, *prompt.turns))), RAG_BLOCK_TOKENS)
        numbered.append(path)
    return table.trace("rag-standalone" if standalone else "rag", numbered)


@dataclass(frozen=True, slots=True)
class _Prompt:
    passages: tuple[str, ...]
    turns: tuple[str, ...]


def _prompts(questions: list[list[str]], count: int) -> list[_Prompt]:
    source = random.Random(1)
    weights = [1.0 / (rank + 1) ** 0.8 for rank in range(len(questions))]
    source.shuffle(questions)
    waiting: dict[int, list[_Prompt]] = {}
    prompts: list[_Prompt] = []
    for turn in range(count):
        due = waiting.pop(turn, [])
        if due:
            waiting.setdefault(turn + 1, []).extend(due[1:])
            asked = due[0]
        else:
            chosen = source.choices(questions, weights)[0]
            kept = chosen[: source.randint(4, len(chosen))]
            if source.random() < 0.5:
                source.shuffle(kept)
            asked = _Prompt(tuple(kept), ())
        prompt = _Prompt(asked.passages, (*asked.turns, f"question {turn} " + "?" * source.randint(40, 400)))
        prompts.append(prompt)
        if source.random() < 2 / 3:
            answer = f"answer {turn} " + "." * source.randint(100, 1600)
            later = turn + 1 + int(source.expovariate(1 / 40))
            waiting.setdefault(later, []).append(_Prompt(prompt.passages, (*prompt.turns, answer)))
    return prompts


def _passages(folder: Path) -> list[list[str]]:
    musique = json.loads((folder / "musique_100.json").read_text())
    hotpot = json.loads((folder / "hotpot_distractor_60.json").read_text())
    found = [[f"{item['title']}\n{item['text']}" for item in row["ctxs"]] for row in musique]
    for row in hotpot:
        context = row["context"]
        pairs = zip(context["title"], context["sentences"], strict=True)
        found.append([f"{title}\n{''.join(sentences)}" for title, sentences in pairs])
    return found


def _cut(text: str) -> list[_Block]:
    """A text as blocks named by what they say."""
    step = RAG_BLOCK_TOKENS * _CHARACTERS_PER_TOKEN
    parts = [text[place : place + step] for place in range(0, len(text), step)]
    return [_Block(part, -(-len(part) // _CHARACTERS_PER_TOKEN)) for part in parts]
