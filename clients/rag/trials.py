"""Questions over documents to try blending on: made of any text, or read from a file of real ones.

Of text without questions, passages are dealt out to prompts so that none stands beside its own continuation, and each
prompt asks for one of its passages by words out of the middle of it: the answer is in a document and nowhere else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import limits
from ...errors import InvalidRequest
from ..text_files import json_records, opened_text
from .documents import Document

__all__ = ["Trial", "read_trials", "trials_of"]

DOCUMENTS = 5
PASSAGE_WORDS = 150
"""About 200 tokens of English."""
QUOTE_WORDS = 8
_QUESTIONS = (
    'How does the passage go on in which it says "{quote}"?',
    'What is the passage about that has the words "{quote}"?',
)
_TEXT_FIELDS = ("text", "content", "contents")


@dataclass(frozen=True, slots=True)
class Trial:
    """A question and the documents that it is asked over."""

    question: str
    documents: tuple[Document, ...]


def trials_of(texts: Sequence[str], count: int, *, words: int = PASSAGE_WORDS, seed: int = 0) -> list[Trial]:
    """``count`` trials at most, of passages of about ``words`` words; the same ``texts`` and ``seed`` make the same.

    A passage is in one trial only; there are fewer documents in each, never under 2, and fewer trials where there is
    little text. Raises :class:`InvalidRequest` where there is not enough for one.
    """
    _check_count(count)
    spoken = [text.split() for text in texts]
    total = sum(map(len, spoken))
    # Little text is cut finer before there are fewer documents: what is measured is how they stand beside each other.
    words = max(2 * QUOTE_WORDS, min(words, total // DOCUMENTS))
    passages = [item[at : at + words] for item in spoken for at in range(0, len(item) - words + 1, words)]
    if len(passages) < 2:
        raise InvalidRequest(f"the text has {total} words, at least {4 * QUOTE_WORDS} are needed to try blending on")
    each = min(DOCUMENTS, len(passages))
    trials = min(count, len(passages) // each)
    # Every so many, so that one prompt's passages are from all over the text.
    chosen = passages[:: len(passages) // (trials * each)][: trials * each]
    chooser = np.random.default_rng(seed)
    found = []
    for number in range(trials):
        dealt = chosen[number::trials]
        dealt = [dealt[place] for place in chooser.permutation(each)]
        asked = dealt[int(chooser.integers(1, each))]  # not the first: that is an exact prefix
        middle = (len(asked) - QUOTE_WORDS) // 2
        quote = " ".join(asked[middle : middle + QUOTE_WORDS])
        documents = tuple(Document(" ".join(item), f"Passage {place + 1}") for place, item in enumerate(dealt))
        found.append(Trial(_QUESTIONS[number % len(_QUESTIONS)].format(quote=quote), documents))
    return found


def read_trials(file: Path, count: int) -> list[Trial]:
    """The first ``count`` trials of a .jsonl: ``question`` and ``documents`` (texts, or records of title and text).

    A field ``ctxs`` does for ``documents``. Raises :class:`InvalidRequest`, naming file and line, for anything else.
    """
    _check_count(count)
    with opened_text(file) as lines:
        return _parsed(file, lines, count)


def _parsed(file: Path, lines: Iterable[str], count: int) -> list[Trial]:
    found: list[Trial] = []
    for number, fields in json_records(file, _within(lines, limits.CALIBRATION_CHARACTERS_MAX)):
        question, given = fields.get("question"), fields.get("documents", fields.get("ctxs"))
        documents = [_document(item) for item in given] if isinstance(given, list) else []
        kept = tuple(item for item in documents if item is not None)
        if not isinstance(question, str) or len(kept) < 2 or len(kept) < len(documents):
            raise InvalidRequest(f"{file}, line {number} has no 'question' with 2 'documents' or more that have text")
        found.append(Trial(question, kept))
        if len(found) == count:
            break
    if not found:
        raise InvalidRequest(f"{file} has no questions")
    return found


def _within(lines: Iterable[str], characters_max: int) -> Iterator[str]:
    """The first lines, as long together as ``characters_max`` at most."""
    for line in lines:
        characters_max -= len(line)
        if characters_max < 0:
            break
        yield line


def _document(item: object) -> Document | None:
    """One document of a record; None for what is none."""
    fields = item if isinstance(item, dict) else {"text": item}
    text = next((found for name in _TEXT_FIELDS if isinstance(found := fields.get(name), str)), "")
    title = fields.get("title", "")
    return Document(text, title) if text.strip() and isinstance(title, str) else None


def _check_count(count: int) -> None:
    if not 1 <= count <= limits.BLEND_TRIALS_MAX:
        raise InvalidRequest(f"{count} prompts to try blending on, must be 1 to {limits.BLEND_TRIALS_MAX}")
