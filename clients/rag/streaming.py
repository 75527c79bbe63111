"""An answer piece by piece: the model runs on a thread of its own, and whoever reads may stop it at any token."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ... import limits
from .metrics import AnswerMetrics
from .pipeline import Answer

__all__ = ["AnswerStream", "Answered", "TextPieces"]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and what it cost."""

    answer: Answer
    metrics: AnswerMetrics


class _Abandoned(Exception):
    """Whoever read the answer has stopped: ends the model's thread, and no other."""


class TextPieces:
    """Tokens into pieces of text: their concatenation is the whole answer's text, and no character comes in parts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._said = ""

    def add(self, token: int) -> str:
        """The text that ``token`` completes; empty where more is needed for a character."""
        self._tokens.append(token)
        text = self._text()
        return "" if text.endswith(_INCOMPLETE) else self._new(text)

    def end(self) -> str:
        """What is left once no token will follow."""
        return self._new(self._text())

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return text

    def _new(self, text: str) -> str:
        # A tokenizer may change what it said before (spaces around a word); only what goes on is a piece.
        piece = text[len(self._said) :]
        self._said = text
        return piece


class AnswerStream:
    """The pieces of one answer, as an iterator; closed early, the model stops at its next token.

    ``run`` answers, telling each token to the function that it is given. Once all pieces have come, :attr:`answered` is
    there. What goes wrong is raised by whoever reads. Use it in a ``with`` block, or read it to its end.
    """

    def __init__(self, tokenizer: Any, run: Callable[[Callable[[int], None]], Answered]) -> None:
        self._pieces: queue.SimpleQueue[str | Answered | BaseException | None] = queue.SimpleQueue()
        self._texts, self._run = TextPieces(tokenizer), run
        self._abandoned = threading.Event()
        self._answered: Answered | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._answer, name="kvloom-answer", daemon=True)
        self._thread.start()

    @property
    def answered(self) -> Answered:
        """The whole answer; :class:`RuntimeError` before it is there."""
        if self._answered is None:
            raise RuntimeError("the answer has not been read to its end")
        return self._answered

    def __iter__(self) -> "AnswerStream":
        return self

    def __next__(self) -> str:
        while not self._ended:
            piece = self._pieces.get()
            if isinstance(piece, str):
                return piece
            self._ended = True
            if isinstance(piece, BaseException):
                raise piece
            self._answered = piece
        raise StopIteration

    def close(self) -> None:
        """Stop the model at its next token and wait for that, for a bounded time. Idempotent."""
        self._abandoned.set()
        self._ended = True
        self._pieces.put(None)  # whoever reads in another thread would wait for a piece that does not come
        self._thread.join(limits.ENGINE_CLOSE_SECONDS_MAX)

    def __enter__(self) -> "AnswerStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, token: int) -> None:
        if self._abandoned.is_set():
            raise _Abandoned
        piece = self._texts.add(token)
        if piece:
            self._pieces.put(piece)

    def _answer(self) -> None:
        try:
            answered = self._run(self._tell)
        except _Abandoned:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by whoever reads
            self._pieces.put(error)
            return
        rest = self._texts.end()
        if rest:
            self._pieces.put(rest)
        self._pieces.put(answered)
