"""The one writer of the SSD tier: a thread that writes whatever has gathered and syncs it once (group commit).

While one group is being synced the next gathers, so many waiting puts share one sync and a single put waits for
nobody. Records are checksummed before they come here and written from where they lie, without a copy.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True, eq=False)
class PutWork:
    """Keep a record; the future tells when it is durable."""

    frame: NewFrame
    done: Future[bool] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, eq=False)
class DeleteWork:
    """Forget a record; the future tells whether there was one."""

    key: StorageKey
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
        batch: list[Work] = []
        try:
            while batch := self._take_batch():
                running = [work for work in batch if work.done.set_running_or_notify_cancel()]
                if running:
                    self._settle(running)
        finally:
            with self._changed:
                self._accepting = False
                abandoned = [work for work in (*batch, *self._queue) if not work.done.done()]
                self._queue.clear()
            for work in abandoned:
                work.done.set_exception(StorageUnavailable(f"the writer of the {self._name} tier has ended"))

    def _take_batch(self) -> list[Work]:
        """What has gathered, within the limits of a batch; empty once stopped and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._accepting)
            batch: list[Work] = []
            batch_bytes = 0
            while self._queue and len(batch) < limits.WRITE_BATCH_RECORDS_MAX:
                size_bytes = _size_of(self._queue[0])
                if batch and batch_bytes + size_bytes > self._batch_bytes_max:
                    break
                batch.append(self._queue.popleft())
                batch_bytes += size_bytes
            self._queued_bytes -= batch_bytes
            return batch

    def _settle(self, batch: Sequence[Work]) -> None:
        """Write the batch, an extent at a time, and tell every waiter as soon as its record is durable."""
        pending = self._admitted(self._planned(batch))
        while pending:
            count = 1
            try:
                extent = self._segment_log.prepare([item.frame for item in pending])
                count = len(extent.frames)
                places = self._segment_log.write(extent)
            except KvloomError as error:
                _log.warning("%s tier: %s", self._name, error)
                for item in pending[:count]:
                    item.work.done.set_exception(type(error)(f"{self._name} tier: {error}"))
            else:
                self.groups += 1
                self._note(pending[:count], extent, places)
            pending = pending[count:]

    def _planned(self, batch: Sequence[Work]) -> list[_Pending]:
        """The frames that the batch needs; a deletion of what is not there is answered at once."""
        pending: list[_Pending] = []
        put: set[StorageKey] = set()
        for work in batch:
            if isinstance(work, PutWork):
                put.add(work.frame.key)
                pending.append(_Pending(work, work.frame))
            elif work.key in self._catalogue or work.key in put:
                pending.append(_Pending(work, NewFrame(work.key)))
            else:
                work.done.set_result(False)
        return pending

    def _admitted(self, pending: Sequence[_Pending]) -> Sequence[_Pending]:
        """Those for which the catalogue has room, having made it; the others are refused."""
        charges = {item.frame.key: _charge(item) for item in pending if isinstance(item.work, PutWork)}
        with suppress(StorageFull):
            self._catalogue.make_room(charges)
            return pending
        admitted: list[_Pending] = []
        incoming: dict[StorageKey, int] = {}
        for item in pending:
            if isinstance(item.work, PutWork):
                wanted = {**incoming, item.frame.key: _charge(item)}
                try:
                    self._catalogue.make_room(wanted)
                except StorageFull as error:
                    item.work.done.set_exception(StorageFull(f"{self._name} tier: {error}"))
                    continue
                incoming = wanted
            admitted.append(item)
        return admitted

    def _note(self, written: Sequence[_Pending], extent: Extent, places: Sequence[Place]) -> None:
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


def _charge(item: _Pending) -> int:
    return charged_bytes(item.frame.footprint_bytes)


def _size_of(work: Work) -> int:
    return work.frame.footprint_bytes if isinstance(work, PutWork) else 0
