"""Questions over documents, cut to 4 to 10 chunks of at most 128 to 320 tokens, from the folder of data sets."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codec_bench.questions import Question, questions_of

from kvloom.clients.rag import Document

__all__ = ["DATASETS", "Case", "cases_of"]

DATASETS = ("musique", "hotpot", "multi_news")
NEWS = "multi_news"
SHAPES = ((4, 320), (8, 160), (5, 256), (10, 128), (6, 208))
"""Chunks and their greatest length in tokens, one shape per question in turn; about 1,280 tokens in all."""
CHUNKS_MIN = 4
"""News with less text are passed over."""
_BEFORE_ANSWER_CHARACTERS = 250
Cutter = Callable[[str, int], str]
"""The first so many tokens of a text, as text."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question, its documents cut to size, the answers that are right, and how many tokens of one are looked at."""

    index: int
    question: str
    documents: tuple[Document, ...]
    answers: tuple[str, ...]
    answer_tokens: int


def cases_of(folder: Path, dataset: str, cut: Cutter) -> Iterator[Case]:
    """Every case of one of ``DATASETS``, in the file's order."""
    if dataset == NEWS:
        yield from _news(folder / "qa/longbench_multi_news.jsonl", cut)
        return
    for index, item in enumerate(questions_of(folder, dataset)):
        count, tokens = SHAPES[index % len(SHAPES)]
        documents = _packed(item, count, tokens, cut) if dataset == "hotpot" else _kept(item, count, tokens, cut)
        yield Case(index, item.question, documents, item.answers, 16)


def _packed(item: Question, count: int, tokens: int, cut: Cutter) -> tuple[Document, ...]:
    """HotpotQA's ten short paragraphs, dealt out to ``count`` documents."""
    texts = [f"{passage.title}: {passage.text.strip()}" for passage in item.passages]
    parts = [texts[n::count] for n in range(min(count, len(texts)))]
    return tuple(Document(cut("\n".join(part), tokens), f"Passage {n + 1}") for n, part in enumerate(parts))


def _kept(item: Question, count: int, tokens: int, cut: Cutter) -> tuple[Document, ...]:
    """``count`` of MuSiQue's passages in their order, those that hold an answer first of all, cut to what holds it."""
    holding = [any(answer.lower() in text.lower() for answer in item.answers) for text in item.texts]
    kept = sorted(sorted(range(len(holding)), key=lambda n: not holding[n])[:count])
    return tuple(
        Document(cut(_around(item.passages[n].text, item.answers), tokens), f"Passage {place + 1}")
        for place, n in enumerate(kept)
    )


def _around(text: str, answers: tuple[str, ...]) -> str:
    """``text`` from a little before the first answer in it, so that a cut keeps what is asked for."""
    found = [place for answer in answers if (place := text.lower().find(answer.lower())) >= 0]
    start = max(0, min(found, default=0) - _BEFORE_ANSWER_CHARACTERS)
    return text[text.find(" ", start) + 1 :] if start else text


def _news(path: Path, cut: Cutter) -> Iterator[Case]:
    for index, line in enumerate(path.read_text().splitlines()):
        item = json.loads(line)
        count, tokens = SHAPES[index % len(SHAPES)]
        passages = re.split(r"Passage \d+:\n", item["context"].replace("NEWLINE_CHAR", "\n"))[1:]
        pieces: list[str] = []
        for number, passage in enumerate(passages):
            rest = re.sub(r"\s+", " ", passage).strip()
            # What the passages before this one left over is shared out among those to come.
            room = -(-(count - len(pieces)) // (len(passages) - number))
            while rest and room:
                pieces.append(cut(rest, tokens))
                rest, room = rest[len(pieces[-1]) :].strip(), room - 1
        if len(pieces) >= CHUNKS_MIN:
            documents = tuple(Document(piece, f"Part {n + 1}") for n, piece in enumerate(pieces))
            yield Case(index, "What is the news in these parts?", documents, tuple(item["answers"]), 32)
