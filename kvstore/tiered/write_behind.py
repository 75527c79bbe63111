"""Records on their way to one slower tier: a queue bounded in bytes, readable meanwhile, and what empties it.

Who brings a record reserves its bytes before it takes any lock. Where too many are dirty, ``wait`` makes it wait: that
is the back-pressure, down to the put. ``drop`` lets it go on without this tier: for tiers that no put may wait for.
The flusher writes what has gathered concurrently, so that the tier can commit it as a group, and passes each record on
to the next stage. Each write holds the key's lock, so a newer put or a deletion is never overtaken by an older write.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from itertools import islice

from ... import limits
from ...errors import KvloomError, Overloaded, StorageUnavailable
from ..key import StorageKey
from ..key_locks import KeyLocks
from ..tier import Record, Tier, is_expired
from .stats import StageStats, StoreObserver

__all__ = ["Overflow", "Stage"]


class Overflow(StrEnum):
    """What becomes of a record that finds a stage full."""

    WAIT = "wait"
    """It waits for room, and so does whoever brings it."""
    DROP = "drop"
    """It does not go to this tier; where it is already, it stays."""


class Stage:
    """One tier's queue; :meth:`run` is its flusher's life and ends after :meth:`finish`, drained or out of time."""

    def __init__(
        self,
        tier: Tier,
        locks: KeyLocks,
        observer: StoreObserver,
        *,
        clock_ms: Callable[[], int],
        bytes_max: int,
        wait_seconds_max: float,
        overflow: Overflow = Overflow.WAIT,
        prepare: Callable[[Record], Awaitable[Record | None]] | None = None,
        drain_seconds_max: float | None = None,
        following: "Stage | None" = None,
    ) -> None:
        """``prepare`` makes what is written of a record, ``None`` for nothing; ``following`` is where it goes next."""
        self.tier = tier
        self.locks = locks
        """What serialises the changes of one key in this tier."""
        self.overflow = overflow
        self._observer = observer
        self._clock_ms = clock_ms
        self._bytes_max = bytes_max
        self._wait_seconds_max = wait_seconds_max
        self._prepare = prepare
        self._drain_seconds_max = drain_seconds_max
        self._following = following
        self._records: dict[StorageKey, Record] = {}
        self._reserved_bytes = 0
        self._written = 0
        self._written_bytes = 0
        self._failures = 0
        self._dropped = 0
        self._finishing = False
        self._ended = False
        self._drain: asyncio.Timeout | None = None
        self._changed = asyncio.Event()

    @property
    def dirty_bytes(self) -> int:
        """Bytes of records waiting, and of those on their way in."""
        return self._reserved_bytes

    @property
    def failures(self) -> int:
        """Records that the tier refused."""
        return self._failures

    def __len__(self) -> int:
        return len(self._records)

    def stats(self) -> StageStats:
        """The counters now."""
        return StageStats(
            self.tier.name,
            self._reserved_bytes,
            self._bytes_max,
            len(self._records),
            self._written,
            self._failures,
            self._dropped,
            self._written_bytes,
        )

    def find(self, key: StorageKey) -> Record | None:
        """The record waiting to be written under ``key``."""
        return self._records.get(key)

    def records(self) -> list[Record]:
        """All records waiting."""
        return list(self._records.values())

    async def reserve(self, size_bytes: int, *, patient: bool = False) -> bool:
        """Reserve room for ``size_bytes``; ``False``, counted, where there is none and the stage drops.

        One record is always let in, however large. A stage that waits raises :class:`Overloaded` when there is no
        room in time, unless ``patient``. Safe to cancel: nothing is reserved then.
        """
        if not self._has_room(size_bytes):
            if self.overflow is Overflow.DROP:
                self._dropped += 1
                self._observer.on_write_behind_dropped(self.tier.name, size_bytes)
                return False
            try:
                async with asyncio.timeout(None if patient else self._wait_seconds_max):
                    await self._wait_until(lambda: self._has_room(size_bytes))
            except TimeoutError as error:
                raise Overloaded(
                    f"{self._reserved_bytes} bytes wait to be written to {self.tier.name}, "
                    f"the limit is {self._bytes_max}, "
                    f"and {size_bytes} more found no room in {self._wait_seconds_max} seconds"
                ) from error
        self._reserved_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Give back a reservation that :meth:`add` did not take over."""
        self._reserved_bytes -= size_bytes
        self._wake()

    def add(self, record: Record, reserved_bytes: int) -> None:
        """Queue ``record`` in place of an older one of its key, taking over a reservation. Hold the store's lock.

        Raises :class:`StorageUnavailable` once :meth:`run` has ended: nobody would write it.
        """
        if self._ended:
            raise StorageUnavailable("the store is closed")
        self.discard(record.storage_key)
        self._reserved_bytes += len(record.payload) - reserved_bytes
        self._records[record.storage_key] = record
        self._wake()

    def discard(self, key: StorageKey) -> bool:
        """Forget what waits under ``key``; whether something did. Hold the store's lock of the key."""
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
            raise StorageUnavailable(f"{self._failures - failures} chunks could not be written to {self.tier.name}")

    def finish(self) -> None:
        """Let :meth:`run` end once nothing waits, or when the time for draining is over."""
        self._finishing = True
        self._limit_drain()
        self._wake()

    async def run(self) -> None:
        """Write what gathers until :meth:`finish` and then until nothing waits; what is left then is dropped."""
        try:
            async with asyncio.timeout(None) as self._drain:
                self._limit_drain()
                await self._keep_writing()
        except TimeoutError:
            self._dropped += len(self._records)
            self._observer.on_write_behind_dropped(self.tier.name, self._reserved_bytes)
        finally:
            self._drain = None
            self._ended = True
            self._wake()

    async def _keep_writing(self) -> None:
        while True:
            await self._wait_until(lambda: bool(self._records) or self._finishing)
            if not self._records:
                return
            async with asyncio.TaskGroup() as group:
                for record in self._batch():
                    group.create_task(self._write(record))

    def _limit_drain(self) -> None:
        if self._finishing and self._drain is not None and self._drain_seconds_max is not None:
            self._drain.reschedule(asyncio.get_running_loop().time() + self._drain_seconds_max)

    def _has_room(self, size_bytes: int) -> bool:
        return self._reserved_bytes == 0 or self._reserved_bytes + size_bytes <= self._bytes_max

    def _batch(self) -> Sequence[Record]:
        batch: list[Record] = []
        size_bytes = 0
        for record in islice(self._records.values(), limits.WRITE_BATCH_RECORDS_MAX):
            size_bytes += len(record.payload)
            if batch and size_bytes > limits.WRITE_BATCH_BYTES_MAX:
                break
            batch.append(record)
        return batch

    async def _write(self, record: Record) -> None:
        """Write one record, unless something newer has taken its place, and pass it on."""
        following = self._following
        size_bytes = len(record.payload)
        async with self.locks.hold(record.storage_key):
            if self._records.get(record.storage_key) is not record:
                return
            await self._put(record)
            if following is None or following.overflow is Overflow.DROP:
                self._pass_on(record, following is not None and await following.reserve(size_bytes))
                return
        # Nobody's lock is held while there is no room further down.
        reserved = await following.reserve(size_bytes, patient=True)
        try:
            async with self.locks.hold(record.storage_key):
                reserved, handed = False, reserved
                self._pass_on(record, handed)
        finally:
            if reserved:
                following.release(size_bytes)

    async def _put(self, record: Record) -> None:
        if is_expired(record.expires_at_ms, self._clock_ms()):
            return
        try:
            prepared = record if self._prepare is None else await self._prepare(record)
            if prepared is None:
                return
            await self.tier.put(prepared)
        except KvloomError as error:
            self._failures += 1
            if self.tier.shared:
                self._observer.on_tier_error(self.tier.name, "write behind", str(error))
            else:
                self._observer.on_write_behind_failed(record.content_key, str(error))
        else:
            self._written += 1
            self._written_bytes += len(prepared.payload)
            self._observer.on_stored(self.tier.name, prepared.info)
            if not self.tier.shared:
                self._observer.on_write_behind(len(record.payload))

    def _pass_on(self, record: Record, reserved: bool) -> None:
        """Hand a record over to the following stage, with the room reserved there, unless it is out of date."""
        following = self._following
        if self._records.get(record.storage_key) is not record:
            if following is not None and reserved:
                following.release(len(record.payload))
            return
        if following is not None:
            following.discard(record.storage_key)
            if reserved:
                following.add(record, len(record.payload))
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
