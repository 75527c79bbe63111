"""How a request to vLLM says which of its tokens are documents that may be blended. Needs no vLLM.

A document is stored by computing it once right after the prompt's beginning (:attr:`MarkedPrompt.to_store`): its KV is
then that of an ordinary prompt, kept by the connector like any other. A request that holds several of them says where
they stand in ``kv_transfer_params``. What is computed over blended KV is not what the model makes of these tokens
alone, so vLLM must not take it for that: a ``cache_salt`` keeps it apart in vLLM's own prefix cache.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

from ... import limits
from ...errors import InvalidRequest

__all__ = ["FIELD", "MarkedPrompt", "Marks", "TokenSpan", "mark_documents", "read_marks"]

FIELD: Final = "kvloom_documents"
"""The field of ``kv_transfer_params``: ``[[start, stop], ...]``, places of tokens."""
_RATIO: Final = "kvloom_blend_ratio"
_SALT: Final = re.compile("kvloom-blend:[0-9a-f]{32}(?::(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Tokens ``[start, stop)`` of a prompt."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Marks:
    """The documents of a request, in order, and the salt under which they were stored.

    ``ratio`` of their tokens is to be computed again, None what the engine was told.
    """

    documents: tuple[TokenSpan, ...]
    salt: str
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class MarkedPrompt:
    """What to ask vLLM: the prompt, its ``cache_salt`` and its ``kv_transfer_params``.

    ``to_store`` are the prompts that have its documents computed and stored, once: with ``max_tokens`` 1, and the
    ``cache_salt`` that :func:`mark_documents` was given, if any.
    """

    token_ids: list[int]
    cache_salt: str
    kv_transfer_params: dict[str, Any]
    to_store: list[list[int]]


def mark_documents(
    prefix: Sequence[int],
    documents: Sequence[Sequence[int]],
    question: Sequence[int],
    *,
    salt: str = "",
    ratio: float | None = None,
) -> MarkedPrompt:
    """A prompt of token ids: ``prefix``, ``documents`` in their order, and ``question``, at least one token.

    ``salt`` is who shares what is stored (vLLM's ``cache_salt``), ``ratio`` how much of it is computed again where that
    is not what the engine was told. Raises :class:`InvalidRequest` for a document without
    tokens, none at all, or too many.
    """
    if not 1 <= len(documents) <= limits.ENGINE_DOCUMENTS_MAX:
        raise InvalidRequest(f"{len(documents)} documents to blend, must be 1 to {limits.ENGINE_DOCUMENTS_MAX}")
    if not question:
        raise InvalidRequest("a blended prompt needs at least one token after its documents")
    tokens, spans = [*prefix], []
    for number, document in enumerate(documents):
        if not document:
            raise InvalidRequest(f"document {number} has no tokens")
        spans.append([len(tokens), len(tokens) + len(document)])
        tokens += document
    named = f"kvloom-blend:{token_hex(16)}" + (f":{salt}" if salt else "")
    stored = [[*prefix, *document] for document in documents]
    parameters = {FIELD: spans} if ratio is None else {FIELD: spans, _RATIO: _checked(ratio)}
    return MarkedPrompt([*tokens, *question], named, parameters, stored)


def read_marks(parameters: Mapping[str, Any] | None, salt: str | None, prompt_tokens: int) -> Marks | None:
    """The marks of a request for ``prompt_tokens`` tokens, None where it has none.

    Raises :class:`InvalidRequest` for spans that are none, or overlap, or end the prompt, and for a ``salt`` that would
    have what is computed taken for what it is not.
    """
    given, ratio = (parameters or {}).get(FIELD), (parameters or {}).get(_RATIO)
    if given is None:
        return None
    if not isinstance(given, list) or not 1 <= len(given) <= limits.ENGINE_DOCUMENTS_MAX:
        raise InvalidRequest(f"{FIELD} must be a list of 1 to {limits.ENGINE_DOCUMENTS_MAX} [start, stop]")
    reached, spans = 0, []
    for item in given:
        if not isinstance(item, list) or len(item) != 2 or any(type(place) is not int for place in item):
            raise InvalidRequest(f"{FIELD} has {str(item)[:40]}, must be [start, stop]")
        start, stop = item
        if not reached <= start < stop < prompt_tokens:
            raise InvalidRequest(f"{FIELD} has {item} after {reached} in a prompt of {prompt_tokens} tokens")
        spans.append(TokenSpan(start, stop))
        reached = stop
    found = _SALT.fullmatch(salt or "")
    if found is None:
        raise InvalidRequest("a request with documents needs the cache_salt that mark_documents gives")
    return Marks(tuple(spans), found[1] or "", None if ratio is None else _checked(ratio))


def _checked(ratio: object) -> float:
    """A share; :class:`InvalidRequest` where it is none."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0.0 <= ratio <= 1.0:
        raise InvalidRequest(f"{_RATIO} is {str(ratio)[:40]}, must be 0 to 1")
    return float(ratio)
