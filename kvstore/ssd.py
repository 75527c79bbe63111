"""The SSD tier: records in LMDB, durable when acknowledged, never beyond their quota.

One value is a record header and the payload (:mod:`.record`). Writing is one thread with group commit
(:mod:`.ssd_writer`); reading is a small pool of threads that copy just the ranges asked for out of the map, since the
map is only valid within its transaction. Each read verifies the record header and compares both keys in full; a read
of the whole payload also verifies its checksum. What lies in the directory is told in :mod:`.ssd_files`, what lies in
the database in :mod:`.ssd_format`.
"""

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import lmdb
import numpy as np

from .. import limits
from ..codec.container import ByteRange
from ..errors import ConfigError, InvalidData, KvloomError, StorageFull, StorageUnavailable
from .eviction import EvictionPolicy
from .key import ContentKey, OwnerId, StorageKey, owner_of
from .outcome import Corrupt, Hit, Miss, Outcome, Unavailable
from .quota import QuotaPolicy
from .record import HEADER_BYTES, check_payload, encode_record, parse_record_header
from .ssd_catalogue import SsdCatalogue, Victim, charged_bytes
from .ssd_files import (
    DirectoryLock,
    environment_damage,
    make_room_for_quarantine,
    prepare_directory,
    quarantine,
    sync,
)
from .ssd_format import DATABASES_MAX, FORMAT_KEY, FORMAT_VALUE, INDEX, META, RECORDS, IndexEntry
from .ssd_writer import Databases, DeleteWork, FlushWork, PutWork, SsdWriter, Work
from .tier import Buffer, Capacity, Holdings, Record, RecordInfo, Slice, Tier

__all__ = ["SsdTier"]

_log = logging.getLogger(__name__)
_READERS = 8
_SCAN_RECORDS = 1024
_RECORD_SHARE = 4
"""A record may take a quarter of the quota: LMDB needs contiguous pages for it."""
_RESERVE_SHARE = 8
_BATCH_SHARE = 16
_FIXED_BYTES = 64 * 1024
_SHRINK_SLACK_BYTES = 16 * 1024 * 1024
"""Room for the deletions that a smaller quota asks for; the compacted copy is without it."""
_SMALL_COPY_BYTES_MAX = 4096


class SsdTier(Tier):
    """Made by :meth:`open`. ``limit_bytes`` bounds the files in the directory, quarantined ones included."""

    def __init__(
        self,
        name: str,
        limit_bytes: int,
        map_bytes: int,
        databases: Databases,
        catalogue: SsdCatalogue,
        lock: DirectoryLock,
    ) -> None:
        self.name = name
        self.durable = True
        self.quarantined = 0
        """Environments found damaged when the tier was opened (0 or 1)."""
        self._limit_bytes = limit_bytes
        self._record_bytes_max = min(map_bytes // _RECORD_SHARE, HEADER_BYTES + limits.RECORD_BYTES_MAX)
        self._databases = databases
        self._catalogue = catalogue
        self._lock = lock
        self._writer = SsdWriter(
            databases,
            catalogue,
            batch_bytes_max=_batch_bytes(map_bytes),
            free_disk_bytes=lambda: shutil.disk_usage(databases.environment.path()).free,
            name=name,
        )
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix=f"kvloom-{name}-reader")
        self._closed = False
        self._released = False
        self._closing = threading.Lock()

    @classmethod
    def open(
        cls, directory: Path, limit_bytes: int, *, policy: EvictionPolicy | None = None, name: str = "ssd"
    ) -> "SsdTier":
        """Open or create the tier in ``directory``. Blocks (it checks what is there in a child process).

        Raises :class:`ConfigError` where the directory is in use by another daemon, cannot be used, or was written
        in another format. A damaged database is moved aside, logged and counted, and the tier starts empty. A quota
        below what is stored evicts down to it.
        """
        if limit_bytes < limits.TIER_BYTES_MIN:
            raise ConfigError(f"{name} tier of {limit_bytes} bytes, at least {limits.TIER_BYTES_MIN} are needed")
        prepare_directory(directory)
        environment = directory / "lmdb"
        with ExitStack() as undo:
            lock = DirectoryLock(directory)
            undo.callback(lock.release)
            shutil.rmtree(directory / "compacting", ignore_errors=True)
            damage = environment_damage(environment)
            if damage is not None:
                quarantine(directory, environment, damage)
            try:
                map_bytes = limit_bytes - _FIXED_BYTES - make_room_for_quarantine(directory, limit_bytes)
                databases = _open_environment(environment, map_bytes)
                undo.callback(lambda: databases.environment.close())
                catalogue = _load(databases, QuotaPolicy.around(policy), map_bytes, name)
                claimed_bytes = databases.claimed_bytes
                if claimed_bytes > map_bytes:
                    databases.environment.close()
                    _shrink(catalogue, environment, claimed_bytes)
                    databases = _open_environment(environment, map_bytes)
            except (lmdb.Error, OSError) as error:
                raise StorageUnavailable(f"{name} tier cannot open {environment}: {error}") from error
            tier = cls(name, limit_bytes, map_bytes, databases, catalogue, lock)
            tier.quarantined = int(damage is not None)
            undo.pop_all()
            return tier

    async def put(self, record: Record) -> None:
        """Keep ``record``; durable on return. Cancelled while it is being committed, it may or may not be kept."""
        self._require_open()
        record_bytes = HEADER_BYTES + len(record.payload)
        if record_bytes > self._record_bytes_max:
            raise StorageFull(
                f"record of {record_bytes} bytes does not fit the {self.name} tier, "
                f"whose largest record is {self._record_bytes_max}"
            )
        quota_bytes = self._catalogue.quota_bytes(owner_of(record.storage_key))
        if quota_bytes is not None and charged_bytes(record_bytes, self._databases.page_bytes) > quota_bytes:
            raise StorageFull(
                f"record of {record_bytes} bytes: its owner may have {quota_bytes} in the {self.name} tier"
            )
        value = await asyncio.get_running_loop().run_in_executor(self._readers, encode_record, record)
        await self._submit(PutWork(record.storage_key, record.info, value))

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Copies of the ranges, read in a worker thread."""
        self._require_open()
        if key not in self._catalogue:
            return Miss()
        outcome = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, key, ranges)
        if isinstance(outcome, Hit) and self._catalogue.note_use(key):
            with suppress(StorageUnavailable):
                self._writer.submit(FlushWork())
        return outcome

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Look the keys up in memory."""
        self._require_open()
        return self._catalogue.contains_many(keys)

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Look the keys and their expiries up in memory."""
        self._require_open()
        return self._catalogue.contains_live(keys, now_ms)

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """From the expiries in memory."""
        self._require_open()
        return self._catalogue.expired(now_ms, limit)

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Pinned records stay."""
        self._catalogue.protect(pinned)

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:
        """Tell the policy."""
        self._catalogue.hint(keys, finished=finished)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What the owner's records are charged."""
        return self._catalogue.holdings(owner)

    async def delete(self, key: StorageKey) -> bool:
        """Forget a record; durable on return."""
        self._require_open()
        return await self._submit(DeleteWork(key))

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """All records by the index, a page of them at a time."""
        after: StorageKey | None = None
        while True:
            self._require_open()
            try:
                page = await asyncio.get_running_loop().run_in_executor(self._readers, self._scan_page, after)
            except (lmdb.Error, ValueError) as error:
                raise StorageUnavailable(f"{self.name} tier cannot be scanned: {error}") from error
            for info in page:
                yield info
            if len(page) < _SCAN_RECORDS:
                return
            after = page[-1].storage_key

    def capacity(self) -> Capacity:
        """Bytes charged for resident records, page rounding and tree entries included."""
        catalogue = self._catalogue
        return Capacity(self._limit_bytes, catalogue.used_bytes, len(catalogue), catalogue.evictions)

    async def close(self) -> None:
        """Finish reads, commit what was submitted, write the last uses, release the directory."""
        self._closed = True
        await asyncio.to_thread(self._close_blocking)

    def _close_blocking(self) -> None:
        with self._closing:
            if self._released:
                return
            self._readers.shutdown(wait=True)
            final = FlushWork()
            try:
                self._writer.submit(final)
                self._writer.stop()
                final.done.result()
            except KvloomError as error:
                _log.warning("%s tier: the last uses could not be written: %s", self.name, error)
            self._databases.environment.close()
            self._lock.release()
            self._released = True

    async def _submit(self, work: Work) -> bool:
        self._writer.submit(work)
        return await asyncio.wrap_future(work.done)

    def _read(self, key: StorageKey, ranges: Sequence[ByteRange] | None) -> Outcome[Slice]:
        databases = self._databases
        try:
            with databases.environment.begin(buffers=True) as transaction:
                listed = transaction.get(key, db=databases.index)
                value = transaction.get(key, db=databases.records)
                if listed is None and value is None:
                    return Miss()
                if listed is None or value is None:
                    return Corrupt(self.name, "record and index disagree about its presence")
                return Hit(_slice(key, IndexEntry.from_bytes(listed), value, ranges), self.name)
        except (InvalidData, ValueError, lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            return Corrupt(self.name, str(error))
        except lmdb.Error as error:
            return Unavailable(self.name, str(error))

    def _scan_page(self, after: StorageKey | None) -> list[RecordInfo]:
        databases = self._databases
        page: list[RecordInfo] = []
        with databases.environment.begin() as transaction, transaction.cursor(db=databases.index) as cursor:
            found = cursor.first() if after is None else cursor.set_range(after + b"\0")
            while found and len(page) < _SCAN_RECORDS:
                entry = IndexEntry.from_bytes(cursor.value())
                payload_bytes = entry.record_bytes - HEADER_BYTES
                key, content_key = StorageKey(cursor.key()), ContentKey(entry.content_key)
                page.append(
                    RecordInfo(
                        key,
                        content_key,
                        payload_bytes,
                        entry.stored_at_ms,
                        OwnerId(entry.owner),
                        entry.expires_at_ms,
                    )
                )
                found = cursor.next()
        return page

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnavailable(f"{self.name} tier is closed")


def _slice(key: StorageKey, entry: IndexEntry, value: memoryview, ranges: Sequence[ByteRange] | None) -> Slice:
    """Verify the record that ``value`` maps and copy the ranges out; :class:`InvalidData` where it does not hold."""
    header = parse_record_header(value, record_bytes=len(value))
    info = header.info
    listed = (entry.content_key, entry.owner, entry.expires_at_ms, entry.record_bytes)
    if info.storage_key != key or (info.content_key, info.owner, info.expires_at_ms, len(value)) != listed:
        raise InvalidData("record is of another chunk than the index says")
    payload = value[HEADER_BYTES:]
    if ranges is None:
        whole = _copy(payload)
        check_payload(header, whole)
        return Slice(info, (whole,))
    return Slice(info, tuple(_copy(payload[min(item.start, item.stop) : item.stop]) for item in ranges))


def _copy(view: memoryview) -> Buffer:
    """Copy out of the map through NumPy, which lets other threads run while pages come in from the disk."""
    if len(view) <= _SMALL_COPY_BYTES_MAX:
        return bytes(view)
    copied = np.frombuffer(view, np.uint8).copy()
    copied.flags.writeable = False
    return copied.data


def _batch_bytes(limit_bytes: int) -> int:
    return min(limits.WRITE_BATCH_BYTES_MAX, limit_bytes // _BATCH_SHARE)


def _budget_bytes(map_bytes: int) -> int:
    """What records may be charged: an eighth of the map is left to fragmentation, two batches to pages freed late."""
    return map_bytes - map_bytes // _RESERVE_SHARE - 2 * _batch_bytes(map_bytes) - _FIXED_BYTES


def _open_environment(path: Path, map_bytes: int) -> Databases:
    """Open the environment, creating it where it is missing; :class:`ConfigError` for one of another format."""
    path.mkdir(mode=0o700, exist_ok=True)
    environment = lmdb.open(
        str(path),
        map_size=map_bytes // 4096 * 4096,
        mode=0o600,
        max_dbs=DATABASES_MAX,
        max_readers=4 * _READERS,
        max_spare_txns=_READERS,
    )
    with ExitStack() as undo:
        undo.callback(environment.close)
        environment.reader_check()
        with environment.begin(write=True) as transaction:
            databases = Databases(
                environment,
                environment.open_db(RECORDS, txn=transaction),
                environment.open_db(INDEX, txn=transaction),
                environment.open_db(META, txn=transaction),
                environment.stat()["psize"],
            )
            transaction.put(FORMAT_KEY, FORMAT_VALUE, db=databases.meta, overwrite=False)
            form = transaction.get(FORMAT_KEY, db=databases.meta)
        if form != FORMAT_VALUE:
            raise ConfigError(f"{path} is of format {form!r}, this kvloom reads {FORMAT_VALUE!r}")
        sync(path)
        sync(path.parent)
        undo.pop_all()
    return databases


def _load(databases: Databases, policy: QuotaPolicy, map_bytes: int, name: str) -> SsdCatalogue:
    """Rebuild the catalogue from the index, in order of last use."""
    entries: list[tuple[int, Victim]] = []
    with databases.environment.begin(db=databases.index) as transaction, transaction.cursor() as cursor:
        for key, value in cursor:
            entry = IndexEntry.from_bytes(value)
            size_bytes = charged_bytes(entry.record_bytes, databases.page_bytes)
            entries.append((entry.used_sequence, Victim(StorageKey(key), size_bytes, entry.expires_at_ms)))
    entries.sort(key=lambda item: item[0])
    policy.quotas.check_fits(name, _budget_bytes(map_bytes))
    catalogue = SsdCatalogue(policy, _budget_bytes(map_bytes))
    catalogue.load((victim for _, victim in entries), entries[-1][0] if entries else 0)
    return catalogue


def _shrink(catalogue: SsdCatalogue, environment: Path, claimed_bytes: int) -> None:
    """Put a smaller quota into effect: evict down to it, then replace the file by a compacted copy of itself."""
    databases = _open_environment(environment, claimed_bytes + _SHRINK_SLACK_BYTES)
    target = environment.parent / "compacting"
    target.mkdir(mode=0o700)
    with closing(databases.environment):
        victims = catalogue.evict_for({})
        with databases.environment.begin(write=True) as transaction:
            for victim in victims:
                transaction.delete(victim.key, db=databases.index)
                transaction.delete(victim.key, db=databases.records)
        databases.environment.copy(str(target), compact=True)
    with (target / "data.mdb").open("rb") as copied:
        os.fsync(copied.fileno())
    (target / "data.mdb").replace(environment / "data.mdb")
    shutil.rmtree(target)
    _log.info("%s compacted to its new quota, %d records evicted", environment, len(victims))
