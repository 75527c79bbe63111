"""The one writer of the SSD tier: a thread that writes whatever has gathered and syncs it once (group commit).

While one group is being synced the next gathers, and what comes while a group is copied joins it, so many waiting puts
share one sync and a single put waits for nobody. Records are written from where they lie, without a copy, and
checksummed here, large ones while the disk writes them: a payload stays as it is until its future is done.
"""

import logging
import threading
from collections import deque
from collections.abc import Container, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ... import limits
from ...errors import KvloomError, Overloaded, StorageFull, StorageUnavailable
from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey
from ..tier import NEVER
from .catalogue import SsdCatalogue
from .extent import BLOCK_BYTES, Extent, NewFrame
from .frame import aligned
from .log import FRAME_OVERHEAD_BYTES, SegmentLog
from .segment import Place

__all__ = ["DeleteWork", "PutWork", "SsdWriter", "Work", "charged_bytes"]

_log = logging.getLogger(__name__)
_COPY_BYTES_MIN: Final = 128 * 1024
"""Below this nothing comes while it is copied, and what is written next would begin in a new block all the same."""


@dataclass(frozen=True, slots=True, eq=False)
class PutWork:
    """Keep a record; the future tells when it is durable."""

    frame: NewFrame
    done: Future[bool] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, eq=False)
class DeleteWork:
    """Forget a record; the future tells whether there was one. With ``place`` only what lies there, nothing newer."""

    key: StorageKey
    place: Place | None = None
    done: Future[bool] = field(default_factory=Future)


Work = PutWork | DeleteWork


@dataclass(frozen=True, slots=True)
class _Pending:
    work: Work
    frame: NewFrame


def charged_bytes(footprint_bytes: int) -> int:
    """What a record is charged: its frame and the padding behind it, and its line in the list."""
    padded = aligned(footprint_bytes, BLOCK_BYTES) if footprint_bytes >= BLOCK_BYTES else footprint_bytes
    return padded + FRAME_OVERHEAD_BYTES


class SsdWriter:
    """Owns the log's changes. ``submit`` from any thread; ``stop`` writes what was submitted, then joins."""

    def __init__(self, log: SegmentLog, catalogue: SsdCatalogue, *, batch_bytes_max: int, name: str) -> None:
        self._segment_log = log
        self._catalogue = catalogue
        self._batch_bytes_max = batch_bytes_max
        self._name = name
        self._queue: deque[Work] = deque()
        self._taken: list[Work] = []
        """What the writer has in hand."""
        self._queued_bytes = 0
        self._accepting = True
        self._changed = threading.Condition()
        self.groups = 0
        """Groups written since the tier was opened."""
        self._thread = threading.Thread(target=self._run, name=f"kvloom-{name}-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue ``work``; :class:`Overloaded` past the limit, :class:`StorageUnavailable` once stopped."""
        size_bytes = _size_of(work)
        with self._changed:
            if not self._accepting:
                raise StorageUnavailable(f"{self._name} tier is closed")
            if self._queued_bytes and self._queued_bytes + size_bytes > limits.WRITE_QUEUE_BYTES_MAX:
                raise Overloaded(
                    f"{self._name} tier has {self._queued_bytes} bytes waiting to be written, "
                    f"the limit is {limits.WRITE_QUEUE_BYTES_MAX}"
                )
            self._queue.append(work)
            self._queued_bytes += size_bytes
            self._changed.notify()

    def stop(self) -> None:
        """Write everything submitted and end the thread. Blocks; safe to call again."""
        with self._changed:
            self._accepting = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while batch := self._take_batch():
                self._settle(batch)
                self._taken.clear()
        finally:
            with self._changed:
                self._accepting = False
                abandoned = [work for work in (*self._taken, *self._queue) if not work.done.done()]
                self._queue.clear()
            for work in abandoned:
                work.done.set_exception(StorageUnavailable(f"the writer of the {self._name} tier has ended"))

    def _take_batch(self) -> list[Work]:
        """What has gathered, within the limits of a batch; empty once stopped and drained."""
        batch: list[Work] = []
        with self._changed:
            while not batch and (self._queue or self._accepting):
                self._changed.wait_for(lambda: self._queue or not self._accepting)
                batch = self._take(self._batch_bytes_max)
        return batch

    def _take(self, bytes_max: int) -> list[Work]:
        """What has gathered and was not cancelled, up to ``bytes_max`` or one record. With the lock held."""
        batch: list[Work] = []
        batch_bytes = 0
        while self._queue and len(self._taken) < limits.WRITE_BATCH_RECORDS_MAX:
            size_bytes = _size_of(self._queue[0])
            if batch and batch_bytes + size_bytes > bytes_max:
                break
            work = self._queue.popleft()
            self._queued_bytes -= size_bytes
            if work.done.set_running_or_notify_cancel():
                batch.append(work)
                self._taken.append(work)
                batch_bytes += size_bytes
        return batch

    def _gathered(self, room_bytes: int) -> list[Work]:
        """What has come meanwhile and is not more than ``room_bytes``."""
        with self._changed:
            return self._take(room_bytes) if self._queue and _size_of(self._queue[0]) <= room_bytes else []

    def _settle(self, batch: Sequence[Work]) -> None:
        """Write the batch, a group at a time, and tell every waiter as soon as its record is durable."""
        pending = self._ready(batch, ())
        while pending:
            pending = self._write_group(pending)

    def _write_group(self, pending: Sequence[_Pending]) -> Sequence[_Pending]:
        """Write as many of ``pending`` as one segment has room for, and sync them; the rest.

        What comes while they are copied goes with them: the disk writes meanwhile, and all share the sync.
        """
        written: list[_Pending] = []
        extent = self._prepared(pending)
        if extent is None:
            return pending[1:]
        while extent is not None:
            count = len(extent.frames)
            try:
                self._segment_log.append(extent)
            except KvloomError as error:
                self._refuse(pending[:count], error)
            else:
                written += pending[:count]
            pending = pending[count:]
            if not pending and sum(frame.footprint_bytes for frame in extent.frames) >= _COPY_BYTES_MIN:
                room_bytes = self._batch_bytes_max - sum(item.frame.footprint_bytes for item in written)
                pending = self._ready(self._gathered(room_bytes), written)
            extent = self._segment_log.extension([item.frame for item in pending])
        try:
            places = self._segment_log.commit()
        except KvloomError as error:
            self._refuse(written, error)
        else:
            self.groups += bool(written)
            self._note(written, places)
        return pending

    def _prepared(self, pending: Sequence[_Pending]) -> Extent | None:
        """Room for the first of ``pending`` and more of them; None where there is none, the first being refused."""
        try:
            return self._segment_log.prepare([item.frame for item in pending])
        except KvloomError as error:
            self._refuse(pending[:1], error)
            return None

    def _refuse(self, items: Sequence[_Pending], error: KvloomError) -> None:
        _log.warning("%s tier: %s", self._name, error)
        for item in items:
            item.work.done.set_exception(type(error)(f"{self._name} tier: {error}"))

    def _ready(self, batch: Sequence[Work], written: Sequence[_Pending]) -> Sequence[_Pending]:
        """The frames that the batch needs and has room for, behind ``written``, of which nobody knows yet.

        A deletion of what is not there is answered at once.
        """
        pending: list[_Pending] = []
        put = {item.frame.key for item in written if isinstance(item.work, PutWork)}
        for work in batch:
            if isinstance(work, PutWork):
                put.add(work.frame.key)
                pending.append(_Pending(work, work.frame))
            elif self._is_there(work, put):
                pending.append(_Pending(work, NewFrame(work.key)))
            else:
                work.done.set_result(False)
        return self._admitted(pending, written) if pending else pending

    def _is_there(self, work: DeleteWork, put: Container[StorageKey]) -> bool:
        """Whether what ``work`` is to forget is there, or will be once what is ``put`` before it is written."""
        if work.place is None:
            return work.key in self._catalogue or work.key in put
        return work.key not in put and self._catalogue.holds(work.key, work.place)

    def _admitted(self, pending: Sequence[_Pending], written: Sequence[_Pending]) -> Sequence[_Pending]:
        """Those for which the catalogue has room beside ``written``, having made it; the others are refused."""
        incoming = _charges(written)
        with suppress(StorageFull):
            self._catalogue.make_room(incoming | _charges(pending))
            return pending
        admitted: list[_Pending] = []
        for item in pending:
            if isinstance(item.work, PutWork):
                wanted = incoming | _charges((item,))
                try:
                    self._catalogue.make_room(wanted)
                except StorageFull as error:
                    item.work.done.set_exception(StorageFull(f"{self._name} tier: {error}"))
                    continue
                incoming = wanted
            admitted.append(item)
        return admitted

    def _note(self, written: Sequence[_Pending], places: Sequence[Place]) -> None:
        existed = []
        for item, place in zip(written, places, strict=True):
            key = item.frame.key
            existed.append(isinstance(item.work, PutWork) or key in self._catalogue)
            if isinstance(item.work, PutWork):
                self._catalogue.note_put(key, _charge(item), place, _expiry(item), _attributes(item))
            else:
                self._catalogue.note_delete(key)
        for item, answer in zip(written, existed, strict=True):
            item.work.done.set_result(answer)


def _expiry(item: _Pending) -> int:
    return NEVER if item.frame.info is None else item.frame.info.expires_at_ms


def _attributes(item: _Pending) -> ChunkAttributes:
    return UNATTRIBUTED if item.frame.info is None else item.frame.info.attributes


def _charges(items: Sequence[_Pending]) -> dict[StorageKey, int]:
    """What each record that is put is charged."""
    return {item.frame.key: _charge(item) for item in items if isinstance(item.work, PutWork)}


def _charge(item: _Pending) -> int:
    return charged_bytes(item.frame.footprint_bytes)


def _size_of(work: Work) -> int:
    return work.frame.footprint_bytes if isinstance(work, PutWork) else 0
