"""What a user names and cannot be read is refused with the file, the line and the reason."""

from pathlib import Path

import pytest

from kvloom.clients.text_files import json_records, opened_text
from kvloom.errors import InvalidRequest


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    with pytest.raises(InvalidRequest, match=r"questions\.jsonl cannot be read: no such file"), opened_text(file):
        pass


def test_text_that_is_not_utf8_is_refused_with_the_place_of_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"abc\xe9")
    with pytest.raises(InvalidRequest, match=r"latin\.txt is not text in UTF-8: byte 3"), opened_text(file) as stream:
        stream.read()


def test_records_come_with_their_lines_blank_ones_counted() -> None:
    lines = ['{"a": 1}', "", "[2]", '{"b": 3}']
    assert list(json_records(Path("f"), lines)) == [(1, {"a": 1}), (3, {}), (4, {"b": 3})]


def test_a_line_that_is_not_json_is_named_after_those_before_it() -> None:
    records = json_records(Path("f.jsonl"), ['{"a": 1}', "{"])
    assert next(records) == (1, {"a": 1})
    with pytest.raises(InvalidRequest, match=r"f\.jsonl, line 2 is not JSON"):
        next(records)
