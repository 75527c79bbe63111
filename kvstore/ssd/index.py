"""The index of the SSD tier, off the path of every put and get: a thread that has written down what changed.

Once a second, or when much has changed, the thread takes the changes from the catalogue and has them written by a
process of its own (:mod:`.indexer`); nobody waits for it. What the index is for is told in :mod:`.index_hints`. It is
never needed: an index that is damaged, full, slow, or whose process has ended is given up and begun anew from the
catalogue a minute later, and the tier goes on as if nothing were.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ... import limits
from ...errors import KvloomError, StorageFull
from ..key import StorageKey
from . import indexer
from .catalogue import SsdCatalogue
from .changes import ABSENT
from .frame import ALIGNMENT_BYTES
from .index_hints import apply_hints, last_frames, location
from .index_pipe import IndexPipe
from .log import SegmentLog
from .recovery import Recovered

__all__ = ["INDEX_FILE", "SsdIndex"]

_log = logging.getLogger(__name__)
INDEX_FILE: Final = "index"
_PAUSE_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 60.0
_LOAD_SECONDS_MAX: Final = 3.0
"""How long opening waits for the index once it has read the log; the process began to read when that did."""
_WRITE_SECONDS_MAX: Final = 30.0
_CLOSE_SECONDS_MAX: Final = 10.0
_JOIN_SECONDS: Final = 0.05
_OFFSET_BITS: Final = 32


class SsdIndex:
    """The index in ``directory``: :meth:`hints` and :meth:`attach` while the tier is opened, then :meth:`start`."""

    def __init__(
        self, directory: Path, catalogue: SsdCatalogue, *, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start its process, which reads the index while the caller reads the log."""
        self._path = directory / INDEX_FILE
        self._name = name
        self._catalogue = catalogue
        self._clock = clock
        self._segment_log: SegmentLog | None = None
        self._pipe: IndexPipe | None = None
        self._retry_at = 0.0
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"kvloom-{name}-index", daemon=True)
        self.failures = 0
        """How often it was given up, to be written anew, since the tier was opened; damage found then included."""
        with self._giving_up():
            self._pipe = IndexPipe(self._path, limits.SSD_INDEX_BYTES_MIN)

    def hints(self, found: Recovered) -> list[StorageKey]:
        """The residents, least recently used first. What was evicted is taken out of ``found``."""
        loaded = None
        with self._giving_up():
            if self._pipe is not None:
                loaded = self._pipe.load(_LOAD_SECONDS_MAX)
        if loaded is None:
            self._catalogue.begin_changes((), (), last_frames(found.segments))
            self._catalogue.lose_changes()
            return list(found.places)
        hinted = apply_hints(found, loaded)
        for key in hinted.evicted:
            del found.places[key]
            found.expiries.pop(key, None)
        self._catalogue.begin_changes(hinted.unknown, hinted.stray, last_frames(found.segments))
        if loaded.damage:
            self.failures += 1
            _log.warning("%s tier: the index is damaged and is written anew: %s", self._name, loaded.damage)
            self._catalogue.lose_changes()
        return hinted.keys

    def attach(self, log: SegmentLog) -> None:
        """From now on the file counts against what ``log`` may take; one that takes too much is begun anew."""
        self._segment_log = log
        log.index_bytes = _size_of(self._path)
        if log.index_bytes > log.allowed_index_bytes():
            self._catalogue.lose_changes()
            if self._pipe is not None:
                with self._giving_up():
                    self._pipe.reset(bytes_max=0, seconds=_WRITE_SECONDS_MAX)
            log.index_bytes = _size_of(self._path)

    def start(self) -> None:
        """Begin to write what changes."""
        self._thread.start()

    def write(self) -> None:
        """Write what has changed up to now. Blocks; raises nothing: an index that fails is given up for a while."""
        with self._writing, self._giving_up():
            if self._segment_log is None or (self._pipe is None and not self._may_begin()):
                return
            if self._pipe is None:
                self._pipe = IndexPipe(self._path, limits.SSD_INDEX_BYTES_MIN)
                self._pipe.load(_LOAD_SECONDS_MAX)
                self._catalogue.lose_changes()
            try:
                self._write_changes(self._pipe, self._segment_log)
            except StorageFull:
                self._catalogue.lose_changes()
                self._write_changes(self._pipe, self._segment_log)

    def close(self) -> None:
        """Write what has changed, make it durable, end the process. Blocks; no more changes may come."""
        self._stop.set()
        while self._thread.is_alive():
            self._catalogue.changes.some.set()
            self._catalogue.changes.many.set()
            self._thread.join(_JOIN_SECONDS)
        self.write()
        with self._giving_up():
            if self._pipe is not None:
                self._pipe.close(_CLOSE_SECONDS_MAX)
        self._pipe = None

    def kill(self) -> None:
        """End the process, of an index that was not started."""
        if self._pipe is not None:
            self._pipe.kill()

    def _run(self) -> None:
        changes = self._catalogue.changes
        while not self._stop.is_set():
            changes.some.wait()
            if self._clock() < self._retry_at:
                self._stop.wait(_RETRY_SECONDS)
            else:
                changes.many.wait(_PAUSE_SECONDS)
            if not self._stop.is_set():
                self.write()

    def _may_begin(self) -> bool:
        return not self._stop.is_set() and self._clock() >= self._retry_at

    def _write_changes(self, pipe: IndexPipe, log: SegmentLog) -> None:
        """Until none are left."""
        noted = None
        while noted is None:
            changes = self._catalogue.take_changes()
            noted = changes.noted
            # Taken later than the changes: a place in a segment that is not among these is no place any more.
            seeds = {segment.ordinal: segment.seed for segment in log.segments()}
            log.index_bytes = bytes_max = max(log.index_bytes, log.allowed_index_bytes())
            if changes.whole:
                pipe.reset(bytes_max=bytes_max, seconds=_WRITE_SECONDS_MAX)
            for start in range(0, max(1, len(changes.rows)), limits.SSD_INDEX_BATCH_MAX):
                rows = [_row(row, seeds) for row in changes.rows[start : start + limits.SSD_INDEX_BATCH_MAX]]
                claims = None
                if noted is not None and start + limits.SSD_INDEX_BATCH_MAX >= len(changes.rows):
                    claims = b"".join(_claim(seed, noted.get(ordinal)) for ordinal, seed in seeds.items())
                log.index_bytes = max(
                    log.index_bytes,
                    pipe.write(b"".join(rows), claims, bytes_max=bytes_max, seconds=_WRITE_SECONDS_MAX),
                )
        log.index_bytes = size_bytes = _size_of(self._path)
        self._catalogue.forget_segments(noted.keys() - seeds.keys())
        if size_bytes > 2 * log.allowed_index_bytes():
            self._catalogue.lose_changes()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Upon an error: end the process, remove the file, begin anew later."""
        try:
            yield
        except (KvloomError, OSError) as error:
            _log.warning("%s tier: goes on without an index for a while: %s", self._name, error)
            if self._segment_log is not None:
                self._retry_at = self._clock() + _RETRY_SECONDS
            self.failures += 1
            if self._pipe is not None:
                self._pipe.kill()
                self._pipe = None
            self._catalogue.lose_changes()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            if self._segment_log is not None:
                self._segment_log.index_bytes = _size_of(self._path)


def _row(change: tuple[int, int], seeds: Mapping[int, int]) -> bytes:
    return indexer.ROW.pack(*_place(change[0], seeds), *_place(change[1], seeds))


def _place(packed: int, seeds: Mapping[int, int]) -> tuple[int, int]:
    where = location(packed)
    seed = None if packed == ABSENT else seeds.get(where >> _OFFSET_BITS)
    return (0, indexer.NOWHERE) if seed is None else (seed, where & indexer.NOWHERE)


def _claim(seed: int, last_offset: int | None) -> bytes:
    return indexer.CLAIM.pack(seed, 0 if last_offset is None else last_offset // ALIGNMENT_BYTES + 1)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
