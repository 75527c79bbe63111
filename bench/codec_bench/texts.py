"""Texts of a bench as token ids, and the proof that calibration and evaluation share none of them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

TokenIds = NDArray[np.int64]

SHINGLE_TOKENS = 32
SHINGLE_WORDS = 16
"""Words are compared without case and punctuation, which corpora of the same origin treat differently."""

_WORD = re.compile(r"[^\W_]+")


class TextKind(StrEnum):
    """What is written in a text."""

    PROSE = "prose"
    CODE = "code"
    DOCUMENTS = "documents"


@dataclass(frozen=True, slots=True)
class Sources:
    """Text to choose from: ``evaluation`` holds one text per context, ``calibration`` one per sequence."""

    name: str
    evaluation: dict[TextKind, list[str]]
    calibration: list[str]
    tails: dict[TextKind, list[str]]
    """What each evaluation text has to end with, whatever of it is cut."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Token ids: per kind one array per context, and the calibration's sequences."""

    name: str
    evaluation: dict[TextKind, list[TokenIds]]
    calibration: list[TokenIds]

    @property
    def evaluation_digest(self) -> str:
        """BLAKE3 of the token ids of all contexts."""
        return digest_of(ids for kind in sorted(self.evaluation) for ids in self.evaluation[kind])

    @property
    def calibration_digest(self) -> str:
        """BLAKE3 of the token ids of all calibration sequences."""
        return digest_of(self.calibration)


class Cutter:
    """Cuts texts to a number of tokens as a context begins: with the token that the model begins every text with."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        first = tokenizer("a", verbose=False)["input_ids"]
        self._start = first[:1] if tokenizer.bos_token_id is not None and first[0] == tokenizer.bos_token_id else []

    def tokens(self, text: str) -> TokenIds:
        """Token ids of ``text``, nothing added."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.asarray(ids, dtype=np.int64)

    def cut(self, text: str, count: int, tail: str = "") -> TokenIds:
        """``count`` tokens: the first of ``text``, then all of ``tail``. Too short a text ends the program."""
        last = self.tokens(tail)
        body = self.tokens(text)[: count - len(last) - len(self._start)]
        ids = np.concatenate([np.asarray(self._start, dtype=np.int64), body, last])
        if len(ids) != count:
            raise SystemExit(f"text {text[:40]!r}… has {len(ids)} tokens, {count} are needed")
        return ids


def cut_all(
    sources: Sources,
    tokenizer: Any,
    *,
    context_tokens: int,
    calibration_tokens: int,
    sequences_max: int | None = None,
) -> Texts:
    """Token ids of all texts; ends the program where calibration and evaluation share a run of tokens or words.

    ``sequences_max`` keeps that many of the calibration's sequences, spread over all.
    """
    cutter = Cutter(tokenizer)
    evaluation = {
        kind: [cutter.cut(text, context_tokens, tail) for text, tail in zip(texts, sources.tails[kind], strict=True)]
        for kind, texts in sources.evaluation.items()
    }
    every = max(1, -(-len(sources.calibration) // (sequences_max or len(sources.calibration))))
    calibration = [cutter.cut(text, calibration_tokens) for text in sources.calibration[::every]]
    texts = Texts(sources.name, evaluation, calibration)
    require_disjoint(texts, tokenizer)
    return texts


def require_disjoint(texts: Texts, tokenizer: Any) -> None:
    """End the program when a run of tokens, or of words, of a calibration sequence is in an evaluation text too."""
    contexts = [ids for kind in texts.evaluation.values() for ids in kind]
    for unit, length, split in (
        ("tokens", SHINGLE_TOKENS, np.ndarray.tolist),
        ("words", SHINGLE_WORDS, lambda ids: words_of(tokenizer.decode(ids))),
    ):
        held = {run for ids in contexts for run in shingles(split(ids), length)}
        for number, ids in enumerate(texts.calibration):
            shared = next((run for run in shingles(split(ids), length) if run in held), None)
            if shared is not None:
                raise SystemExit(
                    f"calibration sequence {number} shares {length} {unit} with an evaluation text: {shared}"
                )


def shingles(items: Sequence[Any], length: int) -> Iterator[tuple[Any, ...]]:
    """Every run of ``length`` consecutive items."""
    return (tuple(items[start : start + length]) for start in range(len(items) - length + 1))


def words_of(text: str) -> list[str]:
    """The words of ``text`` in small letters, without punctuation."""
    return _WORD.findall(text.casefold())


def digest_of(arrays: Iterable[TokenIds]) -> str:
    """BLAKE3 of token ids, their lengths included."""
    hasher = blake3()
    for ids in arrays:
        hasher.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
    return hasher.hexdigest()
