"""Documents by name, in versions: which texts a service knows, and which chunks hold their KV.

A file of SQLite, so that several processes may share it and a crash leaves it whole. Texts are kept once, whatever
names and versions say them. The KV itself is in the daemon; here stands only under which keys.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ... import limits
from ...errors import BodyTooLarge, ConfigError, InvalidRequest, NotFound, StorageFull, StorageUnavailable
from ...kvstore.key import ContentKey
from .documents import Document

__all__ = ["DocumentVersion", "Library", "check_name"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (digest BLOB PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS versions (
    name TEXT NOT NULL, number INTEGER NOT NULL, digest BLOB NOT NULL REFERENCES texts(digest), made REAL NOT NULL,
    PRIMARY KEY (name, number));
CREATE INDEX IF NOT EXISTS versions_by_digest ON versions(digest);
CREATE TABLE IF NOT EXISTS chunks (digest BLOB NOT NULL, key BLOB NOT NULL, PRIMARY KEY (digest, key));
CREATE INDEX IF NOT EXISTS chunks_by_key ON chunks(key);
"""
_WAIT_SECONDS_MAX = 30.0
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG})


@dataclass(frozen=True, slots=True)
class DocumentVersion:
    """One version of a document: ``number`` counts up from 1 until the name is deleted; ``made_seconds`` is Unix time.

    ``is_new`` says that putting it has changed something.
    """

    name: str
    number: int
    digest: bytes
    made_seconds: float
    is_new: bool = False


def check_name(name: str) -> str:
    """``name``, where it is one that a document may have; else :class:`InvalidRequest`."""
    if not 1 <= len(name) <= limits.DOCUMENT_NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidRequest(
            f"document name {name[:40]!r} has {len(name)} characters, must be 1 to "
            f"{limits.DOCUMENT_NAME_CHARACTERS_MAX} printable ones"
        )
    return name


class Library:
    """The documents of one service. Safe to use from several threads and processes; :meth:`close` it.

    ``versions_max`` of each name are kept, the newest. ``clock`` gives Unix time. Everything raises
    :class:`StorageUnavailable` where the file is damaged, or others hold it for :data:`_WAIT_SECONDS_MAX`.
    """

    def __init__(
        self, path: Path | str, *, clock: Callable[[], float], versions_max: int = limits.DOCUMENT_VERSIONS_DEFAULT
    ) -> None:
        if versions_max < 1:
            raise InvalidRequest(f"versions_max is {versions_max}, must be at least 1")
        self._versions_max, self._clock = versions_max, clock
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path, timeout=_WAIT_SECONDS_MAX, check_same_thread=False)
            self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError(f"library {path} cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def put(self, name: str, document: Document) -> DocumentVersion:
        """Make ``document`` the newest version of ``name``; where it already is, nothing changes.

        Versions past ``versions_max`` are forgotten; :meth:`unreferenced` has their chunks. Raises
        :class:`InvalidRequest` for a name or a text that cannot be, :class:`BodyTooLarge`, :class:`StorageFull`.
        """
        check_name(name)
        if not document.text.strip():
            raise InvalidRequest(f"document {name[:40]!r} has no text")
        size = len(document.text.encode()) + len(document.title.encode())
        if size > limits.DOCUMENT_BYTES_MAX:
            raise BodyTooLarge(f"document {name[:40]!r} has {size} bytes, the limit is {limits.DOCUMENT_BYTES_MAX}")
        digest = _digest(document)
        with self._writing() as database:
            newest = self._newest(name)
            if newest is not None and newest.digest == digest:
                return newest
            (names,) = database.execute("SELECT COUNT(DISTINCT name) FROM versions").fetchone()
            if newest is None and names >= limits.LIBRARY_DOCUMENTS_MAX:
                raise StorageFull(f"the library has {names} documents, the limit is {limits.LIBRARY_DOCUMENTS_MAX}")
            number = 1 if newest is None else newest.number + 1
            made = self._clock()
            database.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", (digest, document.title, document.text))
            database.execute("INSERT INTO versions VALUES (?, ?, ?, ?)", (name, number, digest, made))
            database.execute("DELETE FROM versions WHERE name = ? AND number <= ?", (name, number - self._versions_max))
        return DocumentVersion(name, number, digest, made, is_new=True)

    def get(self, name: str, number: int | None = None) -> Document:
        """The newest version of ``name``, or that ``number``; :class:`NotFound` where there is none."""
        with self._reading() as database:
            found = database.execute(
                "SELECT title, text FROM versions JOIN texts USING (digest) "
                "WHERE name = ? AND number = COALESCE(?, (SELECT MAX(number) FROM versions WHERE name = ?))",
                (name, number, name),
            ).fetchone()
        if found is None:
            which = "" if number is None else f" in version {number}"
            raise NotFound(f"there is no document {name[:80]!r}{which}")
        return Document(text=found[1], title=found[0])

    def versions(self, name: str) -> list[DocumentVersion]:
        """What is kept of ``name``, oldest first."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT name, number, digest, made FROM versions WHERE name = ? ORDER BY number", (name,)
            ).fetchall()
        return [DocumentVersion(*row) for row in rows]

    def names(self, *, after: str = "", limit: int = limits.LIST_CHUNKS_DEFAULT) -> list[str]:
        """Names in their order, those after ``after``."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT DISTINCT name FROM versions WHERE name > ? ORDER BY name LIMIT ?", (after, limit)
            ).fetchall()
        return [row[0] for row in rows]

    def delete(self, name: str) -> int:
        """Forget all versions of ``name``; how many there were. :meth:`unreferenced` has their chunks."""
        with self._writing() as database:
            return database.execute("DELETE FROM versions WHERE name = ?", (name,)).rowcount

    def note_chunks(self, document: Document, keys: Sequence[ContentKey]) -> None:
        """``document``'s KV is stored under ``keys``."""
        digest = _digest(document)
        with self._writing() as database:
            database.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?)", [(digest, key) for key in keys])

    def unreferenced(self) -> list[ContentKey]:
        """Keys of chunks that belong to no version any more: to be deleted, then :meth:`forget`."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT DISTINCT key FROM chunks EXCEPT "
                "SELECT key FROM chunks WHERE digest IN (SELECT digest FROM versions) LIMIT ?",
                (limits.KEYS_PER_REQUEST_MAX,),
            ).fetchall()
        return [ContentKey(row[0]) for row in rows]

    def forget(self, keys: Sequence[ContentKey]) -> None:
        """The chunks under ``keys`` have been deleted; texts that no version has go with them."""
        with self._writing() as database:
            database.executemany("DELETE FROM chunks WHERE key = ?", [(key,) for key in keys])
            database.execute(
                "DELETE FROM texts WHERE digest NOT IN (SELECT digest FROM versions) "
                "AND digest NOT IN (SELECT digest FROM chunks)"
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The database, for one thread at a time, with errors that callers know."""
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) in _FULL:
                    raise StorageFull(f"the library has no room: {error}") from error
                raise StorageUnavailable(f"the library cannot be used: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """As :meth:`_reading`; what is done is one transaction, none of it where it raises."""
        with self._reading() as database, database:
            database.execute("BEGIN IMMEDIATE")
            yield database

    def _newest(self, name: str) -> DocumentVersion | None:
        row = self._database.execute(
            "SELECT name, number, digest, made FROM versions WHERE name = ? ORDER BY number DESC LIMIT 1", (name,)
        ).fetchone()
        return None if row is None else DocumentVersion(*row)


def _digest(document: Document) -> bytes:
    title = document.title.encode()
    return hashlib.sha256(len(title).to_bytes(8, "little") + title + document.text.encode()).digest()
