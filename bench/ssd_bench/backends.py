"""The backends: one in LMDB, of which a minimal version lives here, and the product, its index elsewhere or off."""

import asyncio
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
from blake3 import blake3

from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.record import HEADER_BYTES, check_payload, encode_record, parse_record_header
from kvloom.kvstore.ssd.segment import Place
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.ssd.writer import _Pending
from kvloom.kvstore.tier import Record

__all__ = ["BACKENDS", "MIB", "Backend", "LmdbBackend", "ProductBackend", "key_of"]

MIB = 1024 * 1024


class LmdbBackend:
    """Records as values in LMDB, one writer thread with group commit, least recently used out first."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._environment = lmdb.open(str(directory), map_size=quota_bytes // 4096 * 4096, max_readers=32)
        self._budget_bytes = quota_bytes * 7 // 8 - 2 * min(64 * MIB, quota_bytes // 16)
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._used_bytes = 0
        self._queue: deque[tuple[bytes, bytes, Future[None]]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._readers = ThreadPoolExecutor(8)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def put(self, record: Record) -> None:
        """Durable on return."""
        value = await asyncio.get_running_loop().run_in_executor(self._readers, encode_record, record)
        done: Future[None] = Future()
        with self._changed:
            self._queue.append((record.storage_key, value, done))
            self._changed.notify()
        await asyncio.wrap_future(done)

    async def get(self, key: StorageKey) -> bool:
        """Whether it was found and is right."""
        with self._changed:
            if key in self._sizes:
                self._sizes.move_to_end(key)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, key)

    async def close(self) -> None:
        """Write what waits, close."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._readers.shutdown()
        self._environment.close()

    def _read(self, key: bytes) -> bool:
        with self._environment.begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                return False
            header = parse_record_header(value, record_bytes=len(value))
            payload = np.frombuffer(value[HEADER_BYTES:], np.uint8).copy()
        check_payload(header, payload.data)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if not self._queue:
                    return
                batch = list(self._queue)
                self._queue.clear()
            self._commit(batch)
            for _, _, done in batch:
                done.set_result(None)

    def _commit(self, batch: Sequence[tuple[bytes, bytes, Future[None]]]) -> None:
        extra_bytes = 0
        while True:
            victims = self._victims(sum(len(value) + 4096 for _, value, _ in batch) + extra_bytes)
            try:
                with self._environment.begin(write=True) as transaction:
                    for key in victims:
                        transaction.delete(key)
                    for key, value, _ in batch:
                        transaction.put(key, value)
            except lmdb.MapFullError:
                with self._environment.begin(write=True) as transaction:
                    for key in victims:
                        transaction.delete(key)
                for _ in range(2):  # freed pages can be used two transactions later
                    with self._environment.begin(write=True) as transaction:
                        transaction.put(b"turn", os.urandom(8))
                extra_bytes = 2 * extra_bytes + sum(len(value) for _, value, _ in batch)
            else:
                break
        with self._changed:
            self._note(batch)

    def _note(self, batch: Sequence[tuple[bytes, bytes, Future[None]]]) -> None:
        for key, value, _ in batch:
            self._used_bytes += len(value) + 4096 - self._sizes.pop(key, 0)
            self._sizes[key] = len(value) + 4096

    def _victims(self, needed_bytes: int) -> list[bytes]:
        with self._changed:
            return self._least_recent(needed_bytes)

    def _least_recent(self, needed_bytes: int) -> list[bytes]:
        victims = []
        while self._sizes and self._used_bytes + needed_bytes > self._budget_bytes:
            key, size = self._sizes.popitem(last=False)
            self._used_bytes -= size
            victims.append(key)
        return victims


class ProductBackend:
    """The product: its index is written by another process."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._tier = SsdTier.open(directory, quota_bytes)
        pipe = self._tier._index._pipe
        self.helper = None if pipe is None else pipe.pid

    async def put(self, record: Record) -> None:
        """Durable on return."""
        await self._tier.put(record)

    async def get(self, key: StorageKey) -> bool:
        """Whether it was found and is right."""
        return isinstance(await self._tier.get(key), Hit)

    async def close(self) -> None:
        """Close the tier."""
        await self._tier.close()


class LogBackend(ProductBackend):
    """The product with its index switched off."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        super().__init__(directory, quota_bytes)
        index = self._tier._index
        with index._writing:
            index.kill()
            index._pipe, index._retry_at = None, float("inf")
            self._tier._catalogue.lose_changes()
        self.helper = None


class SynchronousBackend(LogBackend):
    """The log, and its index in LMDB on the way of every put: one more transaction, and sync, per group."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        super().__init__(directory, quota_bytes)
        (directory / "lmdb").mkdir()
        self._index = lmdb.open(str(directory / "lmdb"), map_size=256 * MIB)
        writer = self._tier._writer
        note = writer._note

        def note_and_index(written: Sequence[_Pending], places: Sequence[Place]) -> None:
            with self._index.begin(write=True) as transaction:
                for item, place in zip(written, places, strict=True):
                    transaction.put(item.frame.key, item.frame.sealed_header() + place.packed().to_bytes(12, "little"))
            note(written, places)

        writer._note = note_and_index

    async def close(self) -> None:
        """Close both."""
        await super().close()
        self._index.close()


Backend = LmdbBackend | ProductBackend
BACKENDS: dict[str, Callable[[Path, int], Backend]] = {
    "lmdb": LmdbBackend,
    "log+lmdb": SynchronousBackend,
    "log": LogBackend,
    "log+index": ProductBackend,
}


def key_of(number: int) -> StorageKey:
    """The key of record ``number``."""
    return StorageKey(bytes(16) + blake3(number.to_bytes(8, "little")).digest()[:16])
