"""Chat requests, field by field: what is asked, and what is refused before anything is done."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients.rag.documents import Document
from kvloom.daemon.chat.request import parse_object, parse_question, with_documents
from kvloom.errors import InvalidRequest, TooManyItems

ASKED = {"messages": [{"role": "user", "content": "Where?"}]}


def test_a_question_with_all_it_may_have():
    body = {
        **ASKED,
        "model": "m",
        "documents": [{"text": "one", "title": "t"}, {"text": "two"}],
        "document_ids": ["a", "b", "a"],
        "strategy": "recompute",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 4,
        "stop": None,
        "frequency_penalty": 0,
    }
    found = parse_question(body)
    assert found.question == "Where?"
    assert found.documents == (Document("one", title="t"), Document("two"))
    assert found.document_ids == ("a", "b")
    assert (found.strategy, found.tokens_max, found.temperature, found.top_p, found.seed) == (
        "recompute",
        7,
        0.5,
        0.9,
        4,
    )
    assert found.stream
    assert found.stream_usage
    plain = parse_question(ASKED)
    assert (plain.strategy, plain.temperature, plain.stream, plain.model) == ("blend", 0.0, False, None)
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ere?"}]
    assert parse_question({"messages": [{"role": "user", "content": parts}]}).question == "Where?"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "0 messages"),
        ({"messages": "x"}, "0 messages"),
        ({"messages": [*ASKED["messages"], *ASKED["messages"]]}, "2 messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must be the user's"),
        ({"messages": [{"role": "user", "content": " "}]}, "have text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "have text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"documents": [{"text": ""}]}, "needs a text"),
        ({"documents": [{"text": "a\ud800"}]}, "surrogate"),
        ({"documents": [{"text": "a", "url": "b"}]}, "not url"),
        ({"documents": ["a"]}, "list of objects"),
        ({"documents": [{"text": "x" * (limits.DOCUMENT_BYTES_MAX + 1)}]}, "the limit is"),
        ({"document_ids": "a"}, "list of names"),
        ({"document_ids": [""]}, "0 characters"),
        ({"max_tokens": 10**6}, "max_tokens is 1000000"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_tokens is 0"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": 3}, "temperature is 3"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"n": 2}, "n is 2"),
        ({"strategy": "magic"}, "strategy is 'magic'"),
        ({"stop": ["x"]}, "'stop' is not supported"),
        ({"tools": [{}]}, "'tools' is not supported"),
        ({"guided_json": {}}, "'guided_json' is not supported"),
        ({"model": 4}, "model must be"),
    ],
)
def test_refusals(change, said):
    with pytest.raises(InvalidRequest, match=said):
        parse_question({**ASKED, **change})


def test_many_documents_are_too_many():
    names = [str(number) for number in range(limits.CHAT_DOCUMENTS_MAX)]
    assert parse_question({**ASKED, "document_ids": names}).document_ids
    with pytest.raises(TooManyItems, match="the limit is"):
        parse_question({**ASKED, "document_ids": names, "documents": [{"text": "one more"}]})


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_bodies_that_are_no_object_are_refused(data):
    try:
        found = parse_object(data)
    except InvalidRequest:
        return
    assert isinstance(found, dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "messages",
    "documents",
    "document_ids",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "n",
    "stream_options",
    "x",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_whatever_is_asked_is_a_question_or_a_refusal(change):
    with suppress(InvalidRequest):
        assert parse_question({**ASKED, **change}).tokens_max >= 1


def test_documents_come_first_and_the_rest_is_untouched():
    documents = [Document("one", title="t"), Document("two")]
    body = {**ASKED, "document_ids": ["a"], "temperature": 1, "logit_bias": {"5": 1}}
    found = with_documents(body, documents)
    assert found == {
        "messages": [{"role": "system", "content": "Documents:\n\nt\none\n\ntwo"}, *ASKED["messages"]],
        "temperature": 1,
        "logit_bias": {"5": 1},
    }
    system = {"role": "system", "content": "Be brief.", "name": "n"}
    found = with_documents({"messages": [system, *ASKED["messages"]]}, documents)
    assert found["messages"][0] == {**system, "content": "Documents:\n\nt\none\n\ntwo\n\nBe brief."}
    assert found["messages"][1:] == ASKED["messages"]
    assert system["content"] == "Be brief.", "what was given is not changed"
    with pytest.raises(InvalidRequest, match="must be text"):
        with_documents({"messages": [{"role": "system", "content": []}]}, documents)
    with pytest.raises(InvalidRequest, match="list of objects"):
        with_documents({"messages": "x"}, documents)
