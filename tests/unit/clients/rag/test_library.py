"""Documents by name: versions, what is shared, and what nobody needs any more."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from kvloom import limits
from kvloom.clients.rag import Document, Library
from kvloom.clients.rag import library as library_module
from kvloom.errors import BodyTooLarge, ConfigError, InvalidRequest, NotFound, StorageFull, StorageUnavailable
from kvloom.kvstore.key import ContentKey

KEYS = [ContentKey(bytes([n]) * 32) for n in range(4)]


@pytest.fixture
def library(tmp_path):
    times = iter(range(1, 1000))
    with closing(Library(tmp_path / "library", clock=lambda: float(next(times)), versions_max=2)) as library:
        yield library


def test_a_change_is_a_version_and_what_did_not_change_is_none(library):
    assert library.put("a", Document("one")).number == 1
    assert not library.put("a", Document("one")).is_new
    second = library.put("a", Document("two", title="t"))
    assert (second.number, second.is_new) == (2, True)
    assert library.get("a") == Document("two", title="t")
    assert library.get("a", 1) == Document("one")
    library.put("a", Document("one"))
    assert [version.number for version in library.versions("a")] == [2, 3], "only so many are kept"
    with pytest.raises(NotFound, match="version 1"):
        library.get("a", 1)
    with pytest.raises(NotFound):
        library.get("b")


def test_chunks_go_with_the_last_version_that_has_them(library):
    shared, own = Document("shared"), Document("own")
    library.put("a", shared)
    library.put("b", shared)
    library.put("c", own)
    library.note_chunks(shared, KEYS[:2])
    library.note_chunks(own, KEYS[1:3])
    assert library.unreferenced() == []
    assert library.delete("a") == 1
    assert library.unreferenced() == []
    assert library.delete("b") == 1
    assert library.unreferenced() == [KEYS[0]], "the other one belongs to a document that is still there"
    library.forget([KEYS[0]])
    assert library.unreferenced() == []
    assert library.delete("c") == 1
    assert set(library.unreferenced()) == {KEYS[1], KEYS[2]}
    assert library.delete("c") == 0


def test_a_library_is_there_again_and_for_others(tmp_path):
    with (
        closing(Library(tmp_path / "file", clock=lambda: 1.0)) as one,
        closing(Library(tmp_path / "file", clock=lambda: 2.0)) as other,
    ):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda n: (one, other)[n % 2].put(f"{n:03}", Document(f"text {n}")), range(40)))
        assert one.names(limit=100) == other.names(limit=100) == [f"{n:03}" for n in range(40)]
        assert one.names(after="037") == ["038", "039"]
    with closing(Library(tmp_path / "file", clock=lambda: 3.0)) as again:
        assert again.get("007") == Document("text 7")


def test_refusals(library, tmp_path, monkeypatch):
    for name in ("", "x" * (limits.DOCUMENT_NAME_CHARACTERS_MAX + 1), "two\nlines"):
        with pytest.raises(InvalidRequest, match="document name"):
            library.put(name, Document("text"))
    with pytest.raises(InvalidRequest, match="has no text"):
        library.put("a", Document(" \n"))
    with pytest.raises(BodyTooLarge, match="the limit is"):
        library.put("a", Document("é" * (limits.DOCUMENT_BYTES_MAX // 2 + 1)))
    monkeypatch.setattr(limits, "LIBRARY_DOCUMENTS_MAX", 1)
    library.put("a", Document("text"))
    library.put("a", Document("another"))
    with pytest.raises(StorageFull, match="1 documents, the limit is 1"):
        library.put("b", Document("text"))
    (tmp_path / "none").write_text("this is no database, it is a text file of some length" * 10)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Library(tmp_path / "none", clock=lambda: 0.0)


def test_a_library_that_is_damaged_or_held_is_unavailable(tmp_path, monkeypatch):
    file = tmp_path / "file"
    with closing(Library(file, clock=lambda: 1.0)) as library:
        for n in range(200):
            library.put(f"{n:03}", Document(f"text {n} " * 50))
    monkeypatch.setattr(library_module, "_WAIT_SECONDS_MAX", 0.0)
    with closing(Library(file, clock=lambda: 1.0)) as library, closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable, match="locked"):
            library.put("new", Document("text"))
        other.rollback()
        assert library.put("new", Document("text")).is_new, "and goes on when it can"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"\xff" * (size // 2))
    with closing(Library(file, clock=lambda: 1.0)) as library:
        with pytest.raises(StorageUnavailable, match="cannot be used"):
            [library.get(f"{n:03}") for n in range(200)]
        with pytest.raises(StorageUnavailable, match="cannot be used"):
            library.forget(())


def test_a_library_without_room_says_so(tmp_path):
    with closing(Library(tmp_path / "file", clock=lambda: 1.0)) as library:
        pages = library._database.execute("PRAGMA page_count").fetchone()[0]
        library._database.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StorageFull, match="no room"):
            library.put("a", Document("x" * 100_000))
        assert library.names() == []
