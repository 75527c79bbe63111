"""Tokens into text: whole characters, nothing twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the pipeline's answers hold logits of torch models")

from kvloom.clients.rag.streaming import TextPieces

pytestmark = pytest.mark.model


class ByteTokenizer:
    def decode(self, ids, *, skip_special_tokens):
        return bytes(ids).decode(errors="replace")


@given(st.text())
def test_pieces_are_whole_characters_and_together_the_text(text):
    pieces = TextPieces(ByteTokenizer())
    found = [pieces.add(byte) for byte in text.encode()]
    assert "".join([*found, pieces.end()]) == text


def test_bytes_that_are_no_text_come_at_the_end():
    pieces = TextPieces(ByteTokenizer())
    assert [pieces.add(byte) for byte in b"a\xe2\x82"] == ["a", "", ""]
    assert pieces.end() == "\N{REPLACEMENT CHARACTER}"
