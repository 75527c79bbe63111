"""Tokens into text: whole characters, nothing twice; a stream that is closed lets go of whoever reads it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the pipeline's answers hold logits of torch models")

from kvloom.clients.rag.streaming import AnswerStream, TextPieces

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


def test_closing_a_stream_lets_go_of_a_thread_that_waits_for_its_next_piece():
    begun, closing = threading.Event(), threading.Event()

    def run(tell):
        begun.set()
        assert closing.wait(60)
        while True:
            tell(ord("a"))

    with ThreadPoolExecutor(1) as readers:
        stream = AnswerStream(ByteTokenizer(), run)
        assert begun.wait(60)
        read = readers.submit(list, stream)
        stream._abandoned.set()
        closing.set()
        stream._thread.join(60)
        try:
            stream.close()
            assert read.result(60) == []
        finally:
            stream._pieces.put(None)  # else a reader that is not let go of holds up the whole run
