"""The process that keeps the index of the SSD tier in LMDB: a program of its own, started by :mod:`.index_pipe`.

LMDB maps its file. Where that file is truncated, damaged or on a failing disk, whoever touches it gets a signal, an
abort or an endless walk. That is this process and never the daemon, which maps nothing, waits for a bounded time and
goes on without. So this file is run by its path and imports nothing of kvloom, and LMDB only where it runs.

What the index says of a segment of the log: which of its frames are records that are resident, and when each was used
last, as a number that grows with every use; and up to where that is all there is to say (``stop``): a frame before it
that has no entry is of a record that was evicted, replaced or deleted. Offsets are in units of 64 bytes. All of it is
in one database, whose pages are LMDB's; the keys are big-endian, so a segment's row stands before its entries:

=================== ==========================================================================================
key                 value
=================== ==========================================================================================
0 (u32)             ``kvloom index 1``
number (u32)        of a segment, from 1 on: its seed, ``stop``, how many entries it has (u64 each), their sum
number, offset      of a resident record (u32 each): its last use (u64)
=================== ==========================================================================================

Behind every value stands XXH3-64 of key and value. The sum of a segment is the XXH3-64 of the keys of all its entries,
combined by exclusive or: pages that are missing, or older than others, as a power cut may leave them since nothing is
synced before the end, show as a wrong sum. Then the segment's ``stop`` is not believed. There are no storage keys here
and nothing of an owner.

A request is a header and what it counts, an answer likewise; both little-endian, see the structures below.
"""

import fcntl
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import lmdb

REQUEST: Final = struct.Struct("<BBxxIIQ")
"""What is asked, whether claims come with it, how many rows, how many claims, how large the file may be."""
ROW: Final = struct.Struct("<QIQI")
"""A change: seed and offset of the entry to remove, seed and offset of the one to write, used later than all before."""
CLAIM: Final = struct.Struct("<QQ")
"""Seed of a segment and its ``stop``. Claims name all segments there are: what is known of others is removed."""
ANSWER: Final = struct.Struct("<BxxxIIIQ")
"""How it went, how many entries and claims follow, bytes of the text behind them, how large the file is."""
ENTRY: Final = struct.Struct("<QIQ")
"""Seed, offset, last use."""
NOWHERE: Final = 2**32 - 1
"""An offset that says there is no such entry."""
WRITE, RESET, CLOSE = range(3)
DONE, FULL, FAILED = range(3)
OPEN, CHECK = "open", "check"
"""How it is started: to write too, or to read only."""

_FORMAT: Final = b"kvloom index 1"
_NUMBER: Final = struct.Struct(">I")
_KEY: Final = struct.Struct(">II")
_SEGMENT: Final = struct.Struct("<QQQQ")
_USE: Final = struct.Struct("<Q")
_CHECK_BYTES: Final = 8
_ROWS_PER_COMMIT: Final = 64
"""LMDB writes changed pages anew and can use the old ones two commits later: what it holds beyond its tree."""
_ROWS_MAX: Final = 2**20
_PAGE_BYTES: Final = 4096
_FILE_BYTES_MIN: Final = 12 * _PAGE_BYTES


class Damaged(Exception):
    """The file is not what was written."""


class _Segment:
    __slots__ = ("count", "number", "seed", "stop", "total")

    def __init__(self, number: int, seed: int, stop: int = 0, count: int = 0, total: int = 0) -> None:
        self.number, self.seed, self.stop, self.count, self.total = number, seed, stop, count, total

    def packed(self) -> bytes:
        return _SEGMENT.pack(self.seed, self.stop, self.count, self.total)


class IndexFile:
    """The index at ``path``. After any error but in :meth:`load` it must be reset."""

    def __init__(self, path: str, bytes_max: int, *, read_only: bool = False) -> None:
        from xxhash import xxh3_64_digest, xxh3_64_intdigest

        self._digest = xxh3_64_digest
        self._intdigest = xxh3_64_intdigest
        self._path = path
        self._read_only = read_only
        self._environment: lmdb.Environment | None = None
        self._open(bytes_max)

    def _open(self, bytes_max: int) -> None:
        import lmdb

        self._segments: dict[int, _Segment] = {}
        """By seed."""
        self._next_number = 1
        self._use = 0
        self._last_key = b""
        self._map_bytes = max(_FILE_BYTES_MIN, bytes_max // _PAGE_BYTES * _PAGE_BYTES)
        self._environment = lmdb.open(
            self._path,
            map_size=self._map_bytes,
            subdir=False,
            lock=False,
            sync=False,
            readonly=self._read_only,
            mode=0o600,
        )

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return Path(self._path).stat().st_size

    def load(self) -> tuple[list[bytes], list[bytes], int]:
        """Verify and remember everything: entries, claims, and how much of it does not hold.

        Raises :class:`Damaged` and LMDB's errors; or ends by a signal, or never.
        """
        entries: list[tuple[int, int, int]] = []
        by_number: dict[int, _Segment] = {}
        sums: dict[int, list[int]] = {}
        damaged = 0
        last_key = b""
        has_format = False
        with self._begin() as transaction:
            for item in transaction.cursor():
                key, value = bytes(item[0]), bytes(item[1])
                if key <= last_key:
                    raise Damaged("keys are not in order")
                last_key = key
                fields = value[:-_CHECK_BYTES]
                if self._digest(key + fields) != value[-_CHECK_BYTES:]:
                    damaged += 1
                elif len(key) == _KEY.size and len(fields) == _USE.size:
                    number, offset = _KEY.unpack(key)
                    entries.append((number, offset, _USE.unpack(fields)[0]))
                    known = sums.setdefault(number, [0, 0])
                    known[0] += 1
                    known[1] ^= self._intdigest(key)
                elif len(key) == _NUMBER.size and len(fields) == _SEGMENT.size:
                    (number,) = _NUMBER.unpack(key)
                    by_number[number] = _Segment(number, *_SEGMENT.unpack(fields))
                elif key == _NUMBER.pack(0) and fields == _FORMAT:
                    has_format = True
                else:
                    damaged += 1
        if not has_format and (last_key or self._read_only):
            raise Damaged("it does not say that it is an index")
        claims = []
        for segment in by_number.values():
            if sums.get(segment.number, [0, 0]) == [segment.count, segment.total]:
                claims.append(CLAIM.pack(segment.seed, segment.stop))
            else:
                damaged += 1
        rows = [
            ENTRY.pack(by_number[number].seed, offset, use) for number, offset, use in entries if number in by_number
        ]
        damaged += len(entries) - len(rows)
        self._segments = {segment.seed: segment for segment in by_number.values()}
        self._next_number = max(by_number, default=0) + 1
        self._use = max((use for _, _, use in entries), default=0)
        self._last_key = last_key
        return rows, claims, damaged

    def write(
        self, rows: list[tuple[int, int, int, int]], claims: list[tuple[int, int]] | None, bytes_max: int
    ) -> None:
        """Make the changes; a few at a time, each of them leaving a sound index. The claims are made by the last."""
        assert self._environment is not None  # noqa: S101 - opened by the constructor
        map_bytes = max(_FILE_BYTES_MIN, bytes_max // _PAGE_BYTES * _PAGE_BYTES)
        if map_bytes != self._map_bytes:
            self._environment.set_mapsize(map_bytes)
            self._map_bytes = map_bytes
        stops = None if claims is None else dict(claims)
        gone: list[_Segment] = []
        if stops is not None:
            gone = [segment for seed, segment in self._segments.items() if seed not in stops]
            rows = [row if row[2] in stops else (*row[:3], NOWHERE) for row in rows]
            rows += [row for segment in gone for row in self._removals(segment)]
        for start in range(0, max(1, len(rows)), _ROWS_PER_COMMIT):
            with self._begin(write=True) as transaction:
                if not self._last_key:
                    self._put(transaction, _NUMBER.pack(0), _FORMAT)
                touched: dict[int, _Segment] = {}
                for row in rows[start : start + _ROWS_PER_COMMIT]:
                    self._change(transaction, row, touched)
                if stops is not None and start + _ROWS_PER_COMMIT >= len(rows):
                    for seed, stop in stops.items():
                        segment = self._segment(transaction, seed)
                        if segment.stop != stop:
                            segment.stop = stop
                            touched[seed] = segment
                    for segment in gone:
                        transaction.delete(_NUMBER.pack(segment.number))
                        del self._segments[segment.seed]
                        touched.pop(segment.seed, None)
                for segment in touched.values():
                    self._put(transaction, _NUMBER.pack(segment.number), segment.packed())

    def reset(self, bytes_max: int) -> None:
        """Begin with an empty file."""
        self.close()
        Path(self._path).unlink(missing_ok=True)
        self._open(bytes_max)

    def sync(self) -> None:
        """Make it durable."""
        assert self._environment is not None  # noqa: S101 - opened by the constructor
        self._environment.sync(True)

    def close(self) -> None:
        """Close the file."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _begin(self, *, write: bool = False) -> "lmdb.Transaction":
        assert self._environment is not None  # noqa: S101 - opened by the constructor
        return self._environment.begin(write=write)

    def _put(self, transaction: "lmdb.Transaction", key: bytes, fields: bytes) -> None:
        """Write a value; keys that come last fill their pages, which an ordinary put would leave half empty."""
        is_last = key > self._last_key
        transaction.put(key, fields + self._digest(key + fields), append=is_last)
        if is_last:
            self._last_key = key

    def _segment(self, transaction: "lmdb.Transaction", seed: int) -> _Segment:
        segment = self._segments.get(seed)
        if segment is None:
            segment = self._segments[seed] = _Segment(self._next_number, seed)
            self._next_number += 1
            self._put(transaction, _NUMBER.pack(segment.number), segment.packed())
        return segment

    def _change(
        self, transaction: "lmdb.Transaction", row: tuple[int, int, int, int], touched: dict[int, _Segment]
    ) -> None:
        old_seed, old_offset, seed, offset = row
        moved = (old_seed, old_offset) != (seed, offset)
        old = self._segments.get(old_seed)
        if old_offset != NOWHERE and moved and old is not None:
            key = _KEY.pack(old.number, old_offset)
            if transaction.delete(key):
                old.count -= 1
                old.total ^= self._intdigest(key)
                touched[old_seed] = old
        if offset != NOWHERE:
            segment = self._segment(transaction, seed)
            key = _KEY.pack(segment.number, offset)
            if transaction.get(key) is None:
                segment.count += 1
                segment.total ^= self._intdigest(key)
                touched[seed] = segment
            self._use += 1
            self._put(transaction, key, _USE.pack(self._use))

    def _removals(self, segment: _Segment) -> list[tuple[int, int, int, int]]:
        rows = []
        with self._begin() as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(_KEY.pack(segment.number, 0))
            while found and len(cursor.key()) == _KEY.size:
                number, offset = _KEY.unpack(cursor.key())
                if number != segment.number:
                    break
                rows.append((segment.seed, offset, 0, NOWHERE))
                found = cursor.next()
        return rows


def main(arguments: list[str]) -> None:
    """Serve standard input until it ends: ``PATH HOW BYTES_MAX MODULE_FOLDERS``."""
    path, how, bytes_max, folders = arguments
    sys.path += folders.split(os.pathsep)
    for number in (signal.SIGINT, signal.SIGTERM):  # the daemon says when it is over
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how != CHECK:
        # One at a time: that of a daemon that was killed may still be writing what it has read.
        fcntl.flock(os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX)
    index = _load(path, how, int(bytes_max))
    while index is not None and (head := sys.stdin.buffer.read(REQUEST.size)):
        _serve(index, head, sys.stdin.buffer)


def _load(path: str, how: str, bytes_max: int) -> IndexFile | None:
    import lmdb

    index = None
    try:
        index = IndexFile(path, bytes_max, read_only=how == CHECK)
        rows, claims, damaged = index.load()
        _answer(DONE, rows, claims, f"{damaged} values do not hold" if damaged else "", index.size_bytes)
    except (Damaged, lmdb.Error, OSError) as error:
        _answer(FAILED, text=str(error))
    return index


def _serve(index: IndexFile, head: bytes, stream: IO[bytes]) -> None:
    import lmdb

    action, has_claims, row_count, claim_count, bytes_max = REQUEST.unpack(head)
    if max(row_count, claim_count) > _ROWS_MAX:
        raise SystemExit(2)
    rows: list[Any] = list(ROW.iter_unpack(stream.read(row_count * ROW.size)))
    claims: list[Any] = list(CLAIM.iter_unpack(stream.read(claim_count * CLAIM.size)))
    if len(rows) != row_count or len(claims) != claim_count:
        raise SystemExit(0)  # the daemon is gone
    try:
        if action == RESET:
            index.reset(bytes_max)
        elif action == CLOSE:
            index.sync()
            index.close()
        else:
            index.write(rows, claims if has_claims else None, bytes_max)
        _answer(DONE, size_bytes=index.size_bytes)
    except lmdb.MapFullError:
        _answer(FULL, text=f"it needs more than {bytes_max} bytes")
    except (lmdb.Error, OSError) as error:
        _answer(FAILED, text=str(error))


def _answer(
    status: int, rows: list[bytes] | None = None, claims: list[bytes] | None = None, text: str = "", size_bytes: int = 0
) -> None:
    said = text.encode(errors="replace")[:1000]
    head = ANSWER.pack(status, len(rows or ()), len(claims or ()), len(said), size_bytes)
    sys.stdout.buffer.write(b"".join((head, *(rows or ()), *(claims or ()), said)))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
