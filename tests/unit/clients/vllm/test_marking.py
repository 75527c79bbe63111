"""How requests mark documents: what is made is read back, and nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients.vllm.marking import FIELD, Marks, TokenSpan, mark_documents, read_marks
from kvloom.errors import InvalidRequest

TOKENS = st.lists(st.integers(0, 1000), min_size=1, max_size=20)


@given(st.lists(st.integers(0, 1000), max_size=10), st.lists(TOKENS, min_size=1, max_size=5), TOKENS, st.text())
def test_what_is_marked_is_read_back(prefix, documents, question, salt):
    marked = mark_documents(prefix, documents, question, salt=salt)
    marks = read_marks(marked.kv_transfer_params, marked.cache_salt, len(marked.token_ids))
    assert marks.salt == salt
    assert [marked.token_ids[span.start : span.stop] for span in marks.documents] == documents
    assert marked.token_ids == prefix + [token for document in documents for token in document] + question
    assert marked.to_store == [prefix + document for document in documents]


def test_no_two_prompts_have_one_salt():
    assert mark_documents([], [[1]], [2]).cache_salt != mark_documents([], [[1]], [2]).cache_salt


@pytest.mark.parametrize("parameters", [None, {}, {"kvloom_await": True}])
def test_a_request_without_documents_has_no_marks(parameters):
    assert read_marks(parameters, None, 10) is None


SALT = mark_documents([], [[1]], [2]).cache_salt


@pytest.mark.parametrize(
    ("spans", "salt"),
    [
        ([], SALT),
        ({}, SALT),
        (True, SALT),
        ([[0, 10]], SALT),
        ([[0, 5], [4, 8]], SALT),
        ([[5, 5]], SALT),
        ([[-1, 5]], SALT),
        ([[0, 5, 6]], SALT),
        ([[0, True]], SALT),
        ([["0", 5]], SALT),
        ([[0, 1]] * (limits.ENGINE_DOCUMENTS_MAX + 1), SALT),
        ([[0, 5]], None),
        ([[0, 5]], "somebody"),
        ([[0, 5]], SALT[:-1]),
        ([[0, 5]], f"{SALT}x"),
        ([[0, 5]], f" {SALT}"),
    ],
)
def test_marks_that_are_none_are_refused(spans, salt):
    with pytest.raises(InvalidRequest):
        read_marks({FIELD: spans}, salt, 10)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, "1", True, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(InvalidRequest):
        read_marks({FIELD: [[0, 5]], "kvloom_blend_ratio": ratio}, SALT, 10)
    with pytest.raises(InvalidRequest):
        mark_documents([1], [[2]], [3], ratio=ratio)


@pytest.mark.parametrize("ratio", [None, 0, 0.5, 1])
def test_a_ratio_is_read_back(ratio):
    marked = mark_documents([1], [[2]], [3], ratio=ratio)
    assert read_marks(marked.kv_transfer_params, marked.cache_salt, 3).ratio == ratio


def test_documents_may_touch():
    found = read_marks({FIELD: [[0, 5], [5, 9]]}, f"{SALT}:who: ever", 10)
    assert found == Marks((TokenSpan(0, 5), TokenSpan(5, 9)), "who: ever")


@pytest.mark.parametrize(
    ("documents", "question"), [([], [1]), ([[]], [1]), ([[1]], []), ([[1]] * (limits.ENGINE_DOCUMENTS_MAX + 1), [1])]
)
def test_prompts_that_cannot_be_blended_are_refused(documents, question):
    with pytest.raises(InvalidRequest):
        mark_documents([1], documents, question)
