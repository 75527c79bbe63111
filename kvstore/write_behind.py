"""Records acknowledged in memory on their way to the durable tiers, bounded in bytes and readable meanwhile.

A put reserves its bytes before it takes any lock and waits here when too many are dirty: that is the back-pressure.
The flusher writes what has gathered concurrently, so that the durable tier can commit it as a group. Each write holds
the key's lock, so a newer put or a deletion of the same key is never overtaken by an older write.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

from .. import limits
from ..errors import KvloomError, Overloaded, StorageUnavailable
from .key import StorageKey
from .key_locks import KeyLocks
from .store_stats import StoreObserver
from .tier import Record, Tier

__all__ = ["WriteBehind"]


class WriteBehind:
    """The queue and its flusher; :meth:`run` is the flusher's life and ends after :meth:`finish`, drained."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        locks: KeyLocks,
        observer: StoreObserver,
        *,
        bytes_max: int,
        wait_seconds_max: float,
    ) -> None:
        self._tiers = tuple(tiers)
        self._locks = locks
        self._observer = observer
        self._bytes_max = bytes_max
        self._wait_seconds_max = wait_seconds_max
        self._records: dict[StorageKey, Record] = {}
        self._reserved_bytes = 0
        self._failures = 0
        self._finishing = False
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def dirty_bytes(self) -> int:
        """Bytes of records waiting, and of puts on their way in."""
        return self._reserved_bytes

    @property
    def failures(self) -> int:
        """Records that a durable tier refused."""
        return self._failures

    def __len__(self) -> int:
        return len(self._records)

    def find(self, key: StorageKey) -> Record | None:
        """The record waiting to be written under ``key``."""
        return self._records.get(key)

    def records(self) -> list[Record]:
        """All records waiting."""
        return list(self._records.values())

    async def reserve(self, size_bytes: int) -> None:
        """Wait for room for ``size_bytes``; :class:`Overloaded` when there is none in time.

        One record is always let in, however large. Safe to cancel: nothing is reserved then.
        """

        def has_room() -> bool:
            return self._reserved_bytes == 0 or self._reserved_bytes + size_bytes <= self._bytes_max

        try:
            async with asyncio.timeout(self._wait_seconds_max):
                await self._wait_until(has_room)
        except TimeoutError as error:
            raise Overloaded(
                f"{self._reserved_bytes} bytes wait to be written to disk, the limit is {self._bytes_max}, "
                f"and {size_bytes} more found no room in {self._wait_seconds_max} seconds"
            ) from error
        self._reserved_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give back a reservation that :meth:`add` did not take over."""
        self._reserved_bytes -= size_bytes
        self._wake()

    def add(self, record: Record, reserved_bytes: int) -> None:
        """Queue ``record`` in place of an older one of its key, taking over a reservation. Hold the key's lock.

        Raises :class:`StorageUnavailable` once :meth:`run` has ended: nobody would write it.
        """
        if self._ended:
            raise StorageUnavailable("the store is closed")
        self.discard(record.storage_key)
        self._reserved_bytes += len(record.payload) - reserved_bytes
        self._records[record.storage_key] = record
        self._wake()

    def discard(self, key: StorageKey) -> bool:
        """Forget what waits under ``key``; whether something did. Hold the key's lock."""
        record = self._records.pop(key, None)
        if record is None:
            return False
        self.release(len(record.payload))
        return True

    async def flush(self) -> None:
        """Wait until all that waits now is written; :class:`StorageUnavailable` if any of it was refused."""
        waiting = self.records()
        failures = self._failures
        await self._wait_until(
            lambda: not any(self._records.get(record.storage_key) is record for record in waiting),
        )
        if self._failures > failures:
            raise StorageUnavailable(f"{self._failures - failures} chunks could not be written to disk")

    def finish(self) -> None:
        """Let :meth:`run` end once nothing waits."""
        self._finishing = True
        self._wake()

    async def run(self) -> None:
        """Write what gathers until :meth:`finish` and then until nothing waits."""
        try:
            while True:
                await self._wait_until(lambda: bool(self._records) or self._finishing)
                if not self._records:
                    return
                async with asyncio.TaskGroup() as group:
                    for record in self._batch():
                        group.create_task(self._write(record))
        finally:
            self._ended = True
            self._wake()

    def _batch(self) -> list[Record]:
        batch: list[Record] = []
        size_bytes = 0
        for record in islice(self._records.values(), limits.WRITE_BATCH_RECORDS_MAX):
            size_bytes += len(record.payload)
            if batch and size_bytes > limits.WRITE_BATCH_BYTES_MAX:
                break
            batch.append(record)
        return batch

    async def _write(self, record: Record) -> None:
        async with self._locks.hold(record.storage_key):
            if self._records.get(record.storage_key) is not record:
                return
            try:
                for tier in self._tiers:
                    try:
                        await tier.put(record)
                    except KvloomError as error:
                        if not tier.shared:
                            raise
                        self._observer.on_tier_error(tier.name, "put", str(error))
            except KvloomError as error:
                self._failures += 1
                self._observer.on_write_behind_failed(record.content_key, str(error))
            else:
                self._observer.on_write_behind(len(record.payload))
            self.discard(record.storage_key)

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self._ended:
                raise StorageUnavailable("the store is closed")
            await self._changed.wait()

    def _wake(self) -> None:
        """Wake everyone who waits for a change; each looks again for itself."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
