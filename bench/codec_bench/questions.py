"""Questions over documents, from the data sets of a folder, and how their benchmarks score an answer."""

import gzip
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Passage:
    """A document as the data set has it; the title may be empty."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what it is asked about, and the answers that are right; ``name`` tells it from the others."""

    name: str
    question: str
    passages: tuple[Passage, ...]
    answers: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """The passages' texts."""
        return [passage.text for passage in self.passages]


@dataclass(frozen=True, slots=True)
class Scores:
    """An answer's scores, each from 0 to 1, the best over the right answers."""

    f1: float
    exact_match: float
    best_subspan_em: float


DATASETS = {"nq-oracle": "best_subspan_em", "hotpot": "f1", "musique": "f1"}
"""The data sets, and the score that each one's benchmark reports."""


def questions_of(folder: Path, dataset: str) -> list[Question]:
    """All questions of one of ``DATASETS``, in the file's order."""
    if dataset == "nq-oracle":
        with gzip.open(folder / "qa/nq-open-oracle.jsonl.gz", "rt") as file:
            items = [json.loads(line) for line in file]
    else:
        items = json.loads((folder / f"qa/{_FILES[dataset]}").read_text())
    found = []
    for number, item in enumerate(items):
        if dataset == "hotpot":
            context = item["context"]
            pairs = zip(context["title"], map("".join, context["sentences"]), strict=True)
            passages, answers = tuple(Passage(title, text) for title, text in pairs), (item["answer"],)
        else:
            passages = tuple(Passage(part["title"], part["text"]) for part in item["ctxs"])
            answers = tuple(item["answers"])
        found.append(Question(f"{dataset}-{number}", item["question"], passages, answers))
    return found


_FILES = {"hotpot": "hotpot_distractor_60.json", "musique": "musique_100.json"}


def scores_of(answer: str, right: Sequence[str]) -> Scores:
    """Token F1 and exact match as SQuAD has them, and best subspan EM as "Lost in the Middle" has it."""
    said = normalised(answer)
    rights = [normalised(item) for item in right]
    return Scores(
        max(_f1(said, item) for item in rights),
        max(float(said == item) for item in rights),
        max(float(item in said) for item in rights),
    )


def normalised(text: str) -> str:
    """Small letters, no punctuation, no articles, single spaces (SQuAD's official script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(said: str, right: str) -> float:
    said_words, right_words = said.split(), right.split()
    shared = sum((Counter(said_words) & Counter(right_words)).values())
    if not shared:
        return float(said_words == right_words)
    precision, recall = shared / len(said_words), shared / len(right_words)
    return 2 * precision * recall / (precision + recall)
