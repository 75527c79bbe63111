"""Cutting text into sequences: of one length, apart from each other, from everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the Transformers client runs torch models")

from kvloom.clients.transformers import cut_sequences, opening_tokens
from kvloom.errors import InvalidRequest


def texts_of(*lengths):
    """Texts of distinct token ids."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8),
    st.integers(1, 20),
    st.integers(1, 30),
    st.integers(0, 2),
)
def test_sequences_are_whole_apart_and_as_many_as_there_can_be(lengths, body, sequences_max, before):
    texts, opening = texts_of(*lengths), np.full(before, -1)
    short = sum(length for length in lengths if length < body)
    room = sum(length // body for length in lengths) + short // body
    how = {"tokens": body + before, "sequences_max": sequences_max, "opening": opening}
    if room == 0:
        with pytest.raises(InvalidRequest, match=f"the text has {sum(lengths)} tokens, at least {body} are needed"):
            cut_sequences(texts, **how)
        return
    found = cut_sequences(texts, **how)
    assert len(found) == min(room, sequences_max)
    assert {len(item) for item in found} == {body + before}
    assert all((item[:before] == -1).all() for item in found)
    used = np.concatenate([item[before:] for item in found])
    assert len(np.unique(used)) == len(used)
    for item in found:
        steps = np.diff(item[before:])
        assert (steps == 1).all() or item[before] < sum(lengths)  # whole text, or short ones joined
        assert (steps > 0).all()


def test_every_text_has_its_share_spread_over_it():
    long, middle, little = texts_of(1000, 300, 100)
    found = cut_sequences([long, middle, little], tokens=100, sequences_max=7)
    assert [int(item[0]) for item in found] == [0, 450, 900, 1000, 1100, 1200, 1300]


def test_short_texts_are_joined():
    found = cut_sequences(texts_of(7, 20, 6, 9), tokens=10, sequences_max=10)
    assert [item.tolist() for item in found[2:]] == [
        [*range(7), 27, 28, 29],
        [32, *range(33, 42)],
    ]


def test_nothing_can_be_cut_for_an_opening_alone():
    with pytest.raises(InvalidRequest, match="3 sequences of 2 tokens, 2 of them given"):
        cut_sequences(texts_of(100), tokens=2, sequences_max=3, opening=np.array([1, 2]))


@pytest.mark.parametrize(
    ("before", "after", "expected"), [([], [], []), ([1], [], [1]), ([], [2], []), ([1, 5], [2], [1, 5])]
)
def test_opening_tokens_are_what_a_tokenizer_puts_before_text(before, after, expected):
    def tokenizer(text, *, add_special_tokens, verbose):
        ids = list(text.encode())
        return {"input_ids": [*before, *ids, *after] if add_special_tokens else ids}

    assert opening_tokens(tokenizer).tolist() == expected
