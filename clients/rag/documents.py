"""What a pipeline hands over: documents, and the prompt they make with a question."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidRequest, UnsupportedModel

__all__ = ["Document", "DocumentSpan", "Prompt", "PromptTemplate"]

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_PLACE = "\u241ekvloom documents\u241e"
_SEPARATOR = "\n\n"
_QUESTION = "Question: "
SYSTEM = "You answer questions about the documents you are given, briefly and truthfully."


@dataclass(frozen=True, slots=True)
class Document:
    """A text that questions are answered from. Equal documents are the same document: content is the identity.

    Raises :class:`InvalidRequest` for what is no text that can be stored or tokenised.
    """

    text: str
    title: str = ""

    def __post_init__(self) -> None:
        for name, value in (("text", self.text), ("title", self.title)):
            if not isinstance(value, str):
                raise InvalidRequest(f"a document's {name} is of type {type(value).__name__}, must be text")
            if _HALF_PAIR.search(value):
                raise InvalidRequest(f"a document's {name} holds half of a surrogate pair, which is no character")

    @property
    def rendered(self) -> str:
        """The text as it stands in a prompt."""
        title, text = self.title.strip(), self.text.strip()
        return f"{title}\n{text}{_SEPARATOR}" if title else f"{text}{_SEPARATOR}"


@dataclass(frozen=True, slots=True)
class DocumentSpan:
    """Where a document's tokens ``[start, stop)`` stand in a prompt."""

    document: Document
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt: ``token_ids`` int64 ``[total]``, the exact prefix, the documents, and the question after them."""

    token_ids: NDArray[np.int64]
    prefix_tokens: int
    spans: tuple[DocumentSpan, ...]

    def tokens_of(self, span: DocumentSpan) -> NDArray[np.int64]:
        """The token ids of one document."""
        return self.token_ids[span.start : span.stop]


class PromptTemplate:
    """The model's own chat template with documents and a question in the user's turn.

    What stands before the documents is the same for every request and is tokenised once: it is the exact prefix. Each
    document is tokenised with what stands around any document, so that its tokens do not depend on its neighbours and
    all together are those of the whole text: separators too, which many tokenizers cut differently at a text's end.
    Only a fast tokenizer (one that tells offsets) can do that; with another, every part is tokenised by itself.

    What documents and questions say is text: ``<|im_end|>`` in one of them is these characters and ends no turn.
    """

    def __init__(self, tokenizer: Any, *, system: str = SYSTEM) -> None:
        self._tokenizer = tokenizer
        self._controls = _control_tokens(tokenizer)
        if getattr(tokenizer, "chat_template", None):
            turns = [{"role": "system", "content": system}, {"role": "user", "content": _PLACE}]
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        else:
            rendered = f"{tokenizer.bos_token or ''}{system}\n\n{_PLACE}\n\nAnswer:"
        before, found, after = rendered.partition(_PLACE)
        if not found:
            raise UnsupportedModel("the tokenizer's chat template drops the user's message")
        self._before, self._after = f"{before}Documents:{_SEPARATOR}", after
        self.prefix = self._part("", self._before, _QUESTION)
        if not len(self.prefix):
            raise UnsupportedModel("the tokenizer makes no token of what stands before the documents")

    def tokenise(self, text: str) -> NDArray[np.int64]:
        """Token ids of ``text`` as a part of a prompt: no special tokens are added."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.asarray(ids, dtype=np.int64)

    def _is_forged(self, text: str) -> bool:
        return any(control in text for control in self._controls)

    def document_tokens(self, document: Document) -> NDArray[np.int64]:
        """Token ids of one document. Raises :class:`InvalidRequest` for one without any."""
        ids = self._part(_SEPARATOR, document.rendered, _QUESTION, said=document.rendered)
        if not document.text.strip() or not len(ids):
            raise InvalidRequest(f"document {document.title[:40]!r} has no text, at least 1 token is needed")
        return ids

    def text(self, question: str, documents: Sequence[Document]) -> str:
        """The text that :meth:`prompt` has the tokens of."""
        return f"{self._before}{''.join(item.rendered for item in documents)}{self._asked(question)}"

    def prompt(self, question: str, documents: Sequence[Document]) -> Prompt:
        """The prompt for ``question`` over ``documents`` in the order given."""
        parts = [self.prefix, *(self.document_tokens(item) for item in documents)]
        stops = np.cumsum([len(part) for part in parts])
        spans = tuple(
            DocumentSpan(document, int(start), int(stop))
            for document, start, stop in zip(documents, stops, stops[1:], strict=False)
        )
        if self._is_forged(question):
            parts.append(self._part(_SEPARATOR, f"{_QUESTION}{question}", "", said=question))
            parts.append(self.tokenise(self._after))
        else:
            parts.append(self._part(_SEPARATOR, self._asked(question), ""))
        return Prompt(np.concatenate(parts), len(self.prefix), spans)

    def _asked(self, question: str) -> str:
        return f"{_QUESTION}{question}{self._after}"

    def _part(self, before: str, text: str, after: str, *, said: str = "") -> NDArray[np.int64]:
        """Token ids of ``text`` between two others; by itself where a token reaches over its ends.

        ``said`` of it is somebody's words, in which no control token is taken for one; :class:`InvalidRequest` where
        the tokenizer does so all the same.
        """
        literally = {"split_special_tokens": True} if self._is_forged(said) else {}
        ids = self._ids_between(before, text, after, literally)
        if literally and np.isin(ids, list(self._controls.values())).any():
            raise InvalidRequest(
                f"{said.strip()[:40]!r} holds a control token, which this tokenizer cannot take as text"
            )
        return ids

    def _ids_between(self, before: str, text: str, after: str, literally: dict[str, bool]) -> NDArray[np.int64]:
        if getattr(self._tokenizer, "is_fast", False):
            start, stop = len(before), len(before) + len(text)
            found = self._tokenizer(
                before + text + after, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **literally
            )
            first, last = np.asarray(found["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
            if not (((first < start) & (last > start)).any() or ((first < stop) & (last > stop)).any()):
                within = (first >= start) & (first < stop)
                ids: NDArray[np.int64] = np.asarray(found["input_ids"], dtype=np.int64)[within]
                return ids
        found = self._tokenizer(text, add_special_tokens=False, verbose=False, **literally)
        return np.asarray(found["input_ids"], dtype=np.int64)


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that are no text, as they are written: ends of turns, of texts, and what else a model obeys."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token.content: number for number, token in added.items() if token.special}
