"""A corpus that every Python has: the language reference by topic (``pydoc_data.topics``), cut into documents."""

import re
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics

from ...clients.rag import Document

__all__ = ["CALIBRATION_TOPICS", "DOCUMENT_TOPICS", "QUESTIONS", "Retriever", "calibration_texts", "documents"]

DOCUMENT_TOPICS = (
    *("assert", "async", "augassign", "booleans", "break", "class", "comparisons", "context-managers", "continue"),
    *("del", "exceptions", "for", "function", "global", "identifiers", "if", "import", "in", "integers", "lambda"),
    *("lists", "naming", "nonlocal", "numbers", "pass", "power", "raise", "return", "slicings", "truth", "try"),
    *("while", "with", "yield"),
)
CALIBRATION_TOPICS = ("debugger", "formatstrings", "string-methods", "typesmapping")
"""Topics that no document is cut from: the codec is calibrated on other text than it codes."""

DOCUMENTS_PER_TOPIC_MAX = 2

QUESTIONS = (
    "What does the with statement do when the body raises an exception?",
    "How does the else clause of a for loop work?",
    "What happens when an assert statement fails?",
    "When is the finally clause of a try statement executed?",
    "What is the difference between global and nonlocal?",
    "How are default parameter values of a function evaluated?",
    "What does the break statement do inside a loop?",
    "What does a yield expression turn a function into?",
    "Which values are considered false in a truth test?",
    "How can comparisons be chained in Python?",
    "What does the raise statement do without an expression?",
    "How does the import statement find a module?",
    "What is a lambda expression?",
    "What does the del statement do to a name?",
)


def documents(count_tokens: Callable[[str], int], *, tokens_max: int) -> list[Document]:
    """Cut the topics into documents of whole paragraphs, each of at most ``tokens_max`` tokens where that can be."""
    found: list[Document] = []
    for topic in DOCUMENT_TOPICS:
        pieces = _pieces(topics[topic], count_tokens, tokens_max)
        for number, text in enumerate(pieces[:DOCUMENTS_PER_TOPIC_MAX], start=1):
            found.append(Document(text, title=f"{topic} ({number})"))
    return found


def calibration_texts() -> list[str]:
    """Text to calibrate the codec on, disjoint from the documents."""
    return [topics[topic] for topic in CALIBRATION_TOPICS]


class Retriever:
    """BM25 over the documents (the ``bm25s`` library); no embedding service."""

    def __init__(self, corpus: Sequence[Document]) -> None:
        import bm25s

        self._bm25s = bm25s
        self._documents = list(corpus)
        self._index = bm25s.BM25()
        self._index.index(self._words([item.text for item in corpus]), show_progress=False)

    def top(self, question: str, count: int) -> list[Document]:
        """The ``count`` best documents, best last: nearest to the question."""
        places, _ = self._index.retrieve(self._words([question]), k=count, show_progress=False)
        return [self._documents[int(place)] for place in places[0]][::-1]

    def _words(self, texts: list[str]) -> object:
        return self._bm25s.tokenize(texts, stopwords="en", show_progress=False)


def _pieces(text: str, count_tokens: Callable[[str], int], tokens_max: int) -> list[str]:
    pieces: list[str] = []
    current = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        joined = f"{current}\n\n{paragraph}" if current else paragraph
        if current and count_tokens(joined) > tokens_max:
            pieces.append(current)
            current = paragraph
        else:
            current = joined
    return [*pieces, current] if current else pieces
