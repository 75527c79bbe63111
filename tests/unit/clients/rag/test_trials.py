"""Prompts to try blending on: each asks for what stands in one of its documents, and no passage is used twice."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients.rag.documents import Document
from kvloom.clients.rag.trials import DOCUMENTS, PASSAGE_WORDS, Trial, read_trials, trials_of
from kvloom.errors import InvalidRequest

TEXT = " ".join(f"word{n}" for n in range(20_000))


def test_the_words_asked_for_stand_in_one_document_that_is_not_the_first():
    trials = trials_of([TEXT[:60_000], TEXT[60_000:]], 8)
    assert len(trials) == 8
    for trial in trials:
        quote = re.search('"(.*)"', trial.question)[1]
        holders = [place for place, item in enumerate(trial.documents) if quote in item.text]
        assert len(holders) == 1
        assert holders[0] > 0
        assert [item.title for item in trial.documents] == [f"Passage {n}" for n in range(1, DOCUMENTS + 1)]


def test_no_passage_stands_beside_its_continuation_or_twice():
    starts = [int(re.match(r"word(\d+)", item.text)[1]) for trial in trials_of([TEXT], 6) for item in trial.documents]
    assert len(set(starts)) == len(starts) == 6 * DOCUMENTS
    for trial in trials_of([TEXT], 6):
        own = [int(re.match(r"word(\d+)", item.text)[1]) for item in trial.documents]
        assert min(abs(a - b) for a in own for b in own if a != b) > PASSAGE_WORDS


def test_the_same_text_and_seed_make_the_same():
    assert trials_of([TEXT], 4) == trials_of([TEXT], 4)
    assert trials_of([TEXT], 4) != trials_of([TEXT], 4, seed=1)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=5), st.integers(1, 20))
def test_little_text_makes_less(sizes, count):
    texts = [" ".join(["word"] * size) for size in sizes]
    try:
        trials = trials_of(texts, count)
    except InvalidRequest:
        assert max(sizes) < 32 or len(texts) > 1
        return
    assert 1 <= len(trials) <= count
    for trial in trials:
        assert 2 <= len(trial.documents) <= DOCUMENTS
        assert all(len(item.text.split()) >= 16 for item in trial.documents)


def test_too_little_text_and_too_many_prompts_are_refused():
    with pytest.raises(InvalidRequest, match="3 words, at least 32"):
        trials_of(["one two three"], 4)
    with pytest.raises(InvalidRequest, match=f"1 to {limits.BLEND_TRIALS_MAX}"):
        trials_of([TEXT], limits.BLEND_TRIALS_MAX + 1)


def test_real_questions_are_read(tmp_path):
    file = tmp_path / "questions.jsonl"
    records = [
        {"question": "Who?", "documents": ["one text", {"title": "two", "text": "another"}]},
        {"question": "What?", "ctxs": [{"text": "a"}, {"content": "b"}]},
        {"question": "Where?", "documents": ["c", "d"]},
    ]
    file.write_text("\n".join(json.dumps(item) for item in records) + "\n\n")
    assert read_trials(file, 2) == [
        Trial("Who?", (Document("one text"), Document("another", "two"))),
        Trial("What?", (Document("a"), Document("b"))),
    ]
    assert len(read_trials(file, 9)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no questions"),
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 has no 'question'"),
        ('{"question": "a", "documents": ["one"]}', "2 'documents' or more"),
        ('{"question": "a", "documents": ["one", " "]}', "2 'documents' or more"),
        ('{"question": "a", "documents": ["one", {"text": "b", "title": 3}]}', "2 'documents' or more"),
        ('{"question": 1, "documents": ["one", "two"]}', "line 1 has no 'question'"),
    ],
)
def test_files_without_questions_say_where(tmp_path, content, said):
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    with pytest.raises(InvalidRequest, match=said):
        read_trials(file, 3)


def test_files_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(InvalidRequest, match="no such file"):
        read_trials(tmp_path / "none.jsonl", 3)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="byte 0"):
        read_trials(tmp_path / "binary", 3)
