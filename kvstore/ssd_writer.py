"""The one writer of the SSD tier: a thread that commits whatever has gathered as one transaction (group commit).

While one transaction is being synced the next gathers, so many waiting puts share one sync and a single put waits for
nobody. Evictions are part of the transaction that needs their room. LMDB reuses a freed page two transactions later
at the earliest, and needs contiguous pages for a record; where that stands in the way, the writer frees more in
transactions of their own, then tries again.
"""

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import lmdb

from .. import limits
from ..errors import KvloomError, Overloaded, StorageFull, StorageUnavailable
from .key import OwnerId, StorageKey, owner_of
from .ssd_catalogue import SsdCatalogue, Victim, charged_bytes
from .ssd_format import SEQUENCE_KEY, IndexEntry
from .tier import RecordInfo

__all__ = ["Databases", "DeleteWork", "FlushWork", "PutWork", "SsdWriter", "Work"]

_log = logging.getLogger(__name__)
_ATTEMPTS_MAX = 8
_FREE_BYTES_MIN = 64 * 1024
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Databases:
    """The open environment and its named databases."""

    environment: lmdb.Environment
    records: "lmdb._Database"
    index: "lmdb._Database"
    meta: "lmdb._Database"
    page_bytes: int

    @property
    def claimed_bytes(self) -> int:
        """Bytes of the map that hold or have held something; the map is never smaller."""
        return (self.environment.info()["last_pgno"] + 1) * self.page_bytes


@dataclass(frozen=True, slots=True, eq=False)
class PutWork:
    """Keep ``value`` (record header and payload); the future tells when it is durable."""

    key: StorageKey
    info: RecordInfo
    value: bytes
    done: Future[bool] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, eq=False)
class DeleteWork:
    """Forget a record; the future tells whether there was one."""

    key: StorageKey
    done: Future[bool] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, eq=False)
class FlushWork:
    """Write the uses noted so far."""

    done: Future[bool] = field(default_factory=Future)


Work = PutWork | DeleteWork | FlushWork


class SsdWriter:
    """Owns the write transactions. ``submit`` from any thread; ``stop`` commits what was submitted, then joins."""

    def __init__(
        self,
        databases: Databases,
        catalogue: SsdCatalogue,
        *,
        batch_bytes_max: int,
        free_disk_bytes: Callable[[], int],
        name: str,
    ) -> None:
        self._databases = databases
        self._catalogue = catalogue
        self._batch_bytes_max = batch_bytes_max
        self._free_disk_bytes = free_disk_bytes
        self._name = name
        self._queue: deque[Work] = deque()
        self._queued_bytes = 0
        self._accepting = True
        self._changed = threading.Condition()
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
        """Commit everything submitted and end the thread. Blocks; safe to call again."""
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
        """Commit the batch and tell every waiter; a batch without room is tried one by one."""
        try:
            results = self._transact(batch)
        except StorageFull as error:
            if len(batch) == 1:
                batch[0].done.set_exception(error)
            else:
                for work in batch:
                    self._settle([work])
        except KvloomError as error:
            for work in batch:
                work.done.set_exception(error)
        else:
            for work, result in zip(batch, results, strict=True):
                work.done.set_result(result)

    def _transact(self, batch: Sequence[Work]) -> list[bool]:
        incoming = {
            work.key: charged_bytes(len(work.value), self._databases.page_bytes)
            for work in batch
            if isinstance(work, PutWork)
        }
        victims = self._catalogue.evict_for(incoming)
        giver = next((owner_of(key) for key in incoming), None)
        free_bytes = max(sum(incoming.values()), _FREE_BYTES_MIN)
        for attempt in range(_ATTEMPTS_MAX):
            try:
                results = self._commit(batch, victims)
            except lmdb.Error as error:
                if not self._says_full(error) or attempt == _ATTEMPTS_MAX - 1:
                    raise self._failure(error, victims) from error
                victims = self._free(victims, free_bytes << attempt, giver)
            else:
                self._note(batch, incoming)
                return results
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _commit(self, batch: Sequence[Work], victims: Sequence[Victim]) -> list[bool]:
        databases = self._databases
        results: list[bool] = []
        with databases.environment.begin(write=True) as transaction:
            self._delete(transaction, victims)
            for work in batch:
                if isinstance(work, PutWork):
                    entry = IndexEntry(
                        work.info.content_key,
                        work.info.owner,
                        len(work.value),
                        work.info.stored_at_ms,
                        work.info.expires_at_ms,
                        self._catalogue.next_sequence(),
                    )
                    transaction.put(work.key, entry.to_bytes(), db=databases.index)
                    results.append(transaction.put(work.key, work.value, db=databases.records))
                elif isinstance(work, DeleteWork):
                    listed = transaction.delete(work.key, db=databases.index)
                    results.append(transaction.delete(work.key, db=databases.records) or listed)
                else:
                    results.append(True)
            for use in self._catalogue.take_uses():
                value = transaction.get(use.key, db=databases.index)
                if value is not None:
                    moved = replace(IndexEntry.from_bytes(value), used_sequence=use.sequence)
                    transaction.put(use.key, moved.to_bytes(), db=databases.index)
        return results

    def _free(self, victims: Sequence[Victim], size_bytes: int, giver: OwnerId | None) -> list[Victim]:
        """Evict ``size_bytes`` more and age what was freed until it can be reused; the victims still to be deleted.

        Where even the deletion finds no room, the victims stay to be deleted with the next attempt.
        """
        pending = [*victims, *self._catalogue.evict_bytes(size_bytes, giver)]
        try:
            with self._databases.environment.begin(write=True) as transaction:
                self._delete(transaction, pending)
            pending = []
            for _ in range(2):
                with self._databases.environment.begin(write=True) as transaction:
                    sequence = self._catalogue.next_sequence()
                    transaction.put(SEQUENCE_KEY, str(sequence).encode(), db=self._databases.meta)
        except lmdb.Error as error:
            if not self._says_full(error):
                raise self._failure(error, pending) from error
            _log.warning("%s tier: no room to free room: %s", self._name, error)
        return pending

    def _delete(self, transaction: "lmdb.Transaction[bytes]", victims: Sequence[Victim]) -> None:
        for victim in victims:
            transaction.delete(victim.key, db=self._databases.index)
            transaction.delete(victim.key, db=self._databases.records)

    def _note(self, batch: Sequence[Work], incoming: dict[StorageKey, int]) -> None:
        for work in batch:
            if isinstance(work, PutWork):
                self._catalogue.note_put(work.key, incoming[work.key], work.info.expires_at_ms)
            elif isinstance(work, DeleteWork):
                self._catalogue.note_delete(work.key)

    def _says_full(self, error: lmdb.Error) -> bool:
        """Whether the error says that there is no room, in the map or on the disk.

        LMDB reports the write that a full disk cuts short as EIO, so that one means full when the disk is.
        """
        if isinstance(error, lmdb.MapFullError) or error.code in _FULL_ERRNOS:
            return True
        return error.code == errno.EIO and self._free_disk_bytes() < limits.WRITE_BATCH_BYTES_MAX

    def _failure(self, error: lmdb.Error, victims: Sequence[Victim]) -> KvloomError:
        self._catalogue.restore(victims)
        if self._says_full(error):
            return StorageFull(f"{self._name} tier has no room: {error}")
        return StorageUnavailable(f"{self._name} tier cannot write: {error}")


def _size_of(work: Work) -> int:
    return len(work.value) if isinstance(work, PutWork) else 0
