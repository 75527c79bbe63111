"""Chat requests as they are sent: OpenAI's JSON, checked field by field. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ... import limits
from ...clients.json_bounds import check_json_counts
from ...clients.rag.documents import Document
from ...clients.rag.library import check_name
from ...errors import InvalidRequest, TooManyItems

__all__ = ["ChatQuestion", "document_ids", "parse_document", "parse_object", "parse_question", "with_documents"]

STRATEGIES: Final = ("blend", "recompute", "prefix")
TOKENS_DEFAULT: Final = 256
_KNOWN: Final = frozenset(
    {
        "model", "messages", "documents", "document_ids", "strategy", "stream", "stream_options", "max_tokens",
        "max_completion_tokens", "temperature", "top_p", "seed", "n", "user", "metadata", "store",
    }
)  # fmt: skip
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "stop": (None, [], ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
}
"""What is not supported, and the values that ask for nothing."""


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """One question to our own model. ``documents`` came with it, ``document_ids`` are names of a library."""

    question: str
    documents: tuple[Document, ...]
    document_ids: tuple[str, ...]
    strategy: str
    tokens_max: int
    temperature: float
    top_p: float
    seed: int | None
    stream: bool
    stream_usage: bool
    model: str | None


def parse_object(data: bytes | memoryview) -> dict[str, Any]:
    """A body that must be one JSON object; :class:`InvalidRequest` or :class:`TooManyItems` where it is not."""
    body = bytes(data)
    check_json_counts(body)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"body is not JSON: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"body is a JSON {type(found).__name__}, must be an object")
    return found


def parse_question(body: Mapping[str, Any]) -> ChatQuestion:
    """The question that a chat request asks of a model of ours; :class:`InvalidRequest` for what that cannot do."""
    for name, value in body.items():
        if name not in _KNOWN and value not in _NEUTRAL.get(name, (None,)):
            raise InvalidRequest(f"field {name[:40]!r} is not supported by this server")
    if body.get("n") not in (None, 1):
        raise InvalidRequest(f"n is {body['n']!r}, must be 1")
    strategy = body.get("strategy", STRATEGIES[0])
    if strategy not in STRATEGIES:
        raise InvalidRequest(f"strategy is {str(strategy)[:40]!r}, must be one of {', '.join(STRATEGIES)}")
    tokens = _given(body, "max_completion_tokens", _given(body, "max_tokens", TOKENS_DEFAULT))
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest("model must be a string")
    options = body.get("stream_options") or {}
    documents = _documents(body.get("documents"))
    names = document_ids(body)
    if len(documents) + len(names) > limits.CHAT_DOCUMENTS_MAX:
        raise TooManyItems(f"{len(documents) + len(names)} documents, the limit is {limits.CHAT_DOCUMENTS_MAX}")
    return ChatQuestion(
        question=_question(body.get("messages")),
        documents=documents,
        document_ids=names,
        strategy=strategy,
        tokens_max=int(_number("max_tokens", tokens, 1, limits.ANSWER_TOKENS_MAX, whole=True)),
        temperature=_number("temperature", _given(body, "temperature", 0.0), 0.0, 2.0),
        top_p=_number("top_p", _given(body, "top_p", 1.0), 0.0, 1.0),
        seed=None if body.get("seed") is None else int(_number("seed", body["seed"], 0, 2**63 - 1, whole=True)),
        stream=body.get("stream") is True,
        stream_usage=isinstance(options, dict) and options.get("include_usage") is True,
        model=model,
    )


def parse_document(body: Mapping[str, Any]) -> Document:
    """A document as ``{"text": …, "title": …}``."""
    if set(body) - {"text", "title"}:
        raise InvalidRequest(
            f"a document has text and title, not {', '.join(sorted(set(body) - {'text', 'title'}))[:80]}"
        )
    text, title = body.get("text"), body.get("title", "")
    if not isinstance(text, str) or not isinstance(title, str) or not text.strip():
        raise InvalidRequest("a document needs a text, and its title is text, too")
    size = len(text.encode(errors="replace")) + len(title.encode(errors="replace"))
    if size > limits.DOCUMENT_BYTES_MAX:
        raise InvalidRequest(f"a document has {size} bytes, the limit is {limits.DOCUMENT_BYTES_MAX}")
    return Document(text=text, title=title)


def document_ids(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of documents that a request is about, each at most once; :class:`InvalidRequest`."""
    names = body.get("document_ids")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest("document_ids must be a list of names")
    if len(names) > limits.CHAT_DOCUMENTS_MAX:
        raise TooManyItems(f"document_ids has {len(names)} names, the limit is {limits.CHAT_DOCUMENTS_MAX}")
    return tuple(dict.fromkeys(check_name(name) for name in names))


def with_documents(body: Mapping[str, Any], documents: list[Document]) -> dict[str, Any]:
    """A request for an engine that knows no names: ``documents`` stand first, in the system message.

    In that order and before anything else they are a prefix that requests over the same documents share, so that the
    engine loads their KV. All other fields and messages are untouched.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise InvalidRequest("messages must be a list of objects")
    told = "Documents:\n\n" + "".join(document.rendered for document in documents)
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        messages = [{**first, "content": told + first["content"]}, *messages[1:]]
    elif first.get("role") == "system":
        raise InvalidRequest("the system message must be text where documents are named")
    else:
        messages = [{"role": "system", "content": told.rstrip()}, *messages]
    return {**{name: value for name, value in body.items() if name != "document_ids"}, "messages": messages}


def _question(messages: object) -> str:
    """The text of the one user message."""
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        count = len(messages) if isinstance(messages, list) else 0
        raise InvalidRequest(f"{count} messages were given; this server takes one user message and its documents")
    content = messages[0].get("content")
    if isinstance(content, list) and all(isinstance(item, dict) and item.get("type") == "text" for item in content):
        content = "".join(str(item.get("text", "")) for item in content)
    if messages[0].get("role") != "user" or not isinstance(content, str) or not content.strip():
        raise InvalidRequest("the message must be the user's, and have text")
    if len(content) > limits.CHAT_QUESTION_CHARACTERS_MAX:
        raise InvalidRequest(
            f"the message has {len(content)} characters, the limit is {limits.CHAT_QUESTION_CHARACTERS_MAX}"
        )
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise InvalidRequest("the message holds half of a surrogate pair, which is no character")
    return content


def _documents(given: object) -> tuple[Document, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise InvalidRequest("documents must be a list of objects with text and title")
    return tuple(parse_document(item) for item in given)


def _given(body: Mapping[str, Any], name: str, default: object) -> object:
    value = body.get(name)
    return default if value is None else value


def _number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> float:
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(f"{name} is {str(value)[:40]}, must be {low} to {high}")
    return value
