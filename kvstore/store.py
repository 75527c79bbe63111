"""The tiered store: the only place that knows there are several tiers.

A put verifies the container whole, joins it with what is stored under the key (:mod:`.merge`), and reaches what its
``ack`` asks for: ``memory`` means the memory tier and the write-behind queue, ``disk`` means a durable tier. A get
asks the tiers from fast to slow, verifies what it returns, deletes a damaged copy and goes on to the next, and has a
record copied upwards when a slower tier had it. Changes of one key are serialised by a lock per key; reads take none
and start again if the record is replaced under them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from .. import limits
from ..codec.container import ContainerHeader
from ..codec.level import Level
from ..errors import ConfigError, KvloomError, LevelNotStored, StorageFull, StorageUnavailable
from .chunk_reader import ChunkRead, Copy, is_sound, read_chunk, read_head, read_whole, verified_header
from .copies import WRITE_BEHIND, Copies
from .key import ContentKey, StorageKey, storage_key
from .key_locks import KeyLocks
from .merge import covers, merge_containers
from .namespace import Namespace
from .outcome import Corrupt, Hit, Miss, Outcome, Throttled, Unavailable, more_telling
from .promotion import Promoter
from .single_flight import SingleFlight
from .store_stats import StoreObserver, StoreStats, TierCounters, TierStats
from .tier import Ack, Buffer, Record, RecordInfo, Tier
from .write_behind import WriteBehind

__all__ = ["WRITE_BEHIND", "ChunkRead", "StoredChunk", "TieredStore"]

_log = logging.getLogger(__name__)
_SCAN_RECORDS = 512
_PREFIX_KEYS = 1024


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """What is known of a stored chunk; ``header`` where it was read (:meth:`TieredStore.stored`)."""

    key: ContentKey
    payload_bytes: int
    stored_at_ms: int
    tiers: tuple[str, ...]
    header: ContainerHeader | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a read asks for: the key of its single flight."""

    storage_key: StorageKey
    level: Level | None
    layers: range | None


class TieredStore:
    """``tiers`` go from fast to slow, volatile ones first. :meth:`start` before use; all methods are safe to cancel."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        *,
        clock_ms: Callable[[], int],
        dirty_bytes_max: int = limits.DIRTY_BYTES_MAX,
        put_wait_seconds_max: float = limits.PUT_WAIT_SECONDS_MAX,
        observer: StoreObserver | None = None,
    ) -> None:
        self._tiers = tuple(tiers)
        self._volatile = tuple(tier for tier in tiers if not tier.durable)
        self._durable = tuple(tier for tier in tiers if tier.durable)
        if not tiers or self._tiers != self._volatile + self._durable:
            raise ConfigError("a store needs at least one tier, and volatile tiers before durable ones")
        if len({tier.name for tier in tiers}) != len(self._tiers):
            raise ConfigError(f"tiers need names of their own, these are {[tier.name for tier in tiers]}")
        self._clock_ms = clock_ms
        self._observer = observer or StoreObserver()
        self._locks = KeyLocks()
        self._write_behind = WriteBehind(
            self._durable,
            self._locks,
            self._observer,
            bytes_max=dirty_bytes_max,
            wait_seconds_max=put_wait_seconds_max,
        )
        self._copies = Copies(self._volatile, self._write_behind, self._durable)
        self._promoter = Promoter(self._locks, self._observer, self._count_promotion)
        self._flights: SingleFlight[_Wanted, Outcome[ChunkRead]] = SingleFlight()
        self._counters = {name: TierCounters() for name in (WRITE_BEHIND, *(tier.name for tier in tiers))}
        self._misses = 0
        self._puts = 0
        self._put_bytes = 0
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Start writing behind and promoting. Once."""
        self._runner = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is dirty, stop, close the tiers. Idempotent; call it again if it was cancelled."""
        self._closed = True
        self._write_behind.finish()
        if self._runner is not None:
            await asyncio.wait((self._runner,))
            failure = None if self._runner.cancelled() else self._runner.exception()
            if failure is not None:
                _log.error("the store's background work failed", exc_info=failure)
        for tier in self._tiers:
            await tier.close()

    async def put(self, namespace: Namespace, key: ContentKey, payload: Buffer, *, ack: Ack) -> Ack:
        """Store a container and return what was reached, which is what ``ack`` asked for.

        ``payload`` is given away: nobody may change it afterwards. Raises what :func:`kvloom.codec.container.verify`
        raises for a container that does not hold or is of another chunk, :class:`LayoutMismatch` where it cannot be
        joined with what is stored, :class:`Overloaded` where too much waits to be written, :class:`StorageFull` and
        :class:`StorageUnavailable`. After an error or a cancellation the chunk may or may not be stored.
        """
        self._require_running()
        header = await verified_header(payload, key)
        place = storage_key(namespace.secret, key)
        if ack is Ack.DISK and not self._durable:
            raise StorageUnavailable("ack=disk was asked for and no durable tier is configured")
        behind = ack is Ack.MEMORY and bool(self._durable)
        reserved_bytes = len(payload) if behind else 0
        if behind:
            await self._write_behind.reserve(reserved_bytes)
        try:
            async with self._locks.hold(place):
                merged = await self._merged(place, key, header, payload)
                record = Record(place, key, merged, self._clock_ms(), namespace.owner)
                if ack is Ack.DISK:
                    await self._put_durable(record)
                    await self._put_volatile(record)
                else:
                    in_memory = await self._put_volatile(record)
                    if behind:
                        self._write_behind.add(record, reserved_bytes)
                        reserved_bytes = 0
                    elif not in_memory:
                        raise StorageFull(f"container of {len(merged)} bytes fits none of the tiers")
        finally:
            if reserved_bytes:
                self._write_behind.release(reserved_bytes)
        self._puts += 1
        self._put_bytes += len(payload)
        self._observer.on_put(len(payload))
        return ack

    async def get(
        self, namespace: Namespace, key: ContentKey, *, level: Level | None = None, layers: range | None = None
    ) -> Outcome[ChunkRead]:
        """Read ``level`` (lossy: with all coarser ones; default: everything) of ``layers`` (default: all).

        Lossy levels are stored in blocks of layers, so with them ``layers`` are widened to whole blocks; the header
        read says which they are. Every byte returned is verified. Reads of the same thing at the same time are one
        read. Raises :class:`LevelNotStored`, and :class:`InvalidRequest` for layers that the chunk has not.
        """
        self._require_running()
        wanted = _Wanted(storage_key(namespace.secret, key), level, layers)
        outcome = await self._flights.run(wanted, lambda: self._read(wanted, key))
        if isinstance(outcome, Hit):
            counters = self._counters[outcome.tier]
            counters.hits += 1
            counters.hit_bytes += outcome.value.total_bytes
            self._observer.on_hit(outcome.tier, outcome.value.total_bytes)
        else:
            self._misses += 1
            self._observer.on_miss()
        return outcome

    async def contains_many(self, namespace: Namespace, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether a chunk is stored; a tier that cannot answer counts as empty."""
        self._require_running()
        places = [storage_key(namespace.secret, key) for key in keys]
        found = [self._write_behind.find(place) is not None for place in places]
        for tier in self._tiers:
            missing = [index for index, known in enumerate(found) if not known]
            if missing:
                answers = await self._ask(tier, [places[index] for index in missing])
                for index, answer in zip(missing, answers, strict=True):
                    found[index] = answer
        return found

    async def longest_prefix(self, namespace: Namespace, keys: Sequence[ContentKey]) -> int:
        """How many of the leading ``keys`` are stored without a gap."""
        for start in range(0, len(keys), _PREFIX_KEYS):
            found = await self.contains_many(namespace, keys[start : start + _PREFIX_KEYS])
            if not all(found):
                return start + found.index(False)
        return len(keys)

    async def delete(self, namespace: Namespace, key: ContentKey) -> bool:
        """Forget a chunk in every tier and in the queue; whether there was one.

        Every tier is tried; then the first failure is raised, :class:`StorageUnavailable` or another.
        """
        self._require_running()
        place = storage_key(namespace.secret, key)
        failure: KvloomError | None = None
        async with self._locks.hold(place):
            existed = self._write_behind.discard(place)
            for tier in self._tiers:
                try:
                    existed = await tier.delete(place) or existed
                except KvloomError as error:
                    self._note_error(tier.name, "delete", str(error))
                    failure = failure or error
        if failure is not None:
            raise failure
        return existed

    async def scan(self, namespace: Namespace) -> AsyncIterator[StoredChunk]:
        """The chunks of ``namespace``, each once, in no particular order; no others are shown."""
        self._require_running()
        seen: set[StorageKey] = set()
        for chunk in await self._listed(namespace, [item.info for item in self._write_behind.records()], seen):
            yield chunk
        for tier in self._tiers:
            page: list[RecordInfo] = []
            async for info in tier.scan():
                page.append(info)
                if len(page) == _SCAN_RECORDS:
                    for chunk in await self._listed(namespace, page, seen):
                        yield chunk
                    page = []
            for chunk in await self._listed(namespace, page, seen):
                yield chunk

    async def stored(self, namespace: Namespace, key: ContentKey) -> StoredChunk | None:
        """What is stored under ``key``, with the container's header, or ``None``. Not counted as a read."""
        self._require_running()
        place = storage_key(namespace.secret, key)
        for copy in self._copies.of(place, key):
            found = await read_head(copy)
            if isinstance(found, Hit):
                info = found.value.info
                tiers = [tier.name for tier in self._tiers if (await self._ask(tier, [place]))[0]]
                return StoredChunk(
                    key, info.payload_bytes, info.stored_at_ms, tuple(tiers or [copy.tier]), found.value.header
                )
        return None

    def note_corrupt(self, tier: str, key: ContentKey, detail: str) -> None:
        """Count a damaged record that somebody else found, and has deleted, in ``tier``."""
        self._counters[tier].corrupt += 1
        self._observer.on_corrupt(tier, key, detail)

    def stats(self) -> StoreStats:
        """All counters now."""
        tiers = tuple(
            TierStats(
                tier.name,
                tier.durable,
                tier.capacity(),
                counters.hits,
                counters.hit_bytes,
                counters.corrupt,
                counters.errors,
                counters.promotions,
            )
            for tier in self._tiers
            for counters in (self._counters[tier.name],)
        )
        return StoreStats(
            tiers=tiers,
            misses=self._misses,
            puts=self._puts,
            put_bytes=self._put_bytes,
            dirty_bytes=self._write_behind.dirty_bytes,
            dirty_records=len(self._write_behind),
            write_behind_hits=self._counters[WRITE_BEHIND].hits,
            write_behind_failures=self._write_behind.failures,
        )

    async def flush(self) -> None:
        """Wait until everything accepted so far is durable; :class:`StorageUnavailable` if some of it cannot be."""
        self._require_running()
        await self._write_behind.flush()

    async def settled(self) -> None:
        """Wait until the promotions under way are done."""
        self._require_running()
        await self._promoter.settled()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            promoting = group.create_task(self._promoter.run())
            await self._write_behind.run()
            promoting.cancel()

    async def _read(self, wanted: _Wanted, key: ContentKey) -> Outcome[ChunkRead]:
        worst: Outcome[ChunkRead] = Miss()
        not_stored: LevelNotStored | None = None
        for copy in self._copies.of(wanted.storage_key, key):
            try:
                outcome = await read_chunk(copy, level=wanted.level, layers=wanted.layers)
                if isinstance(outcome, Corrupt) and not await self._discarded(copy, outcome):
                    outcome = await read_chunk(copy, level=wanted.level, layers=wanted.layers)
            except LevelNotStored as error:
                not_stored = error
                continue
            if isinstance(outcome, Hit):
                self._offer_promotion(copy, outcome.value)
                return outcome
            if isinstance(outcome, Unavailable | Throttled):
                self._note_error(copy.tier, "get", str(outcome))
            worst = more_telling(worst, outcome)
        if not_stored is not None:
            raise not_stored
        return worst

    async def _discarded(self, copy: Copy, found: Corrupt) -> bool:
        """Count a damaged copy and delete it if it still is damaged now that nobody can be replacing it."""
        self._counters[copy.tier].corrupt += 1
        self._observer.on_corrupt(copy.tier, copy.content_key, found.detail)
        async with self._locks.hold(copy.storage_key):
            if await is_sound(copy):
                return False
            await self._forget(copy)
        return True

    async def _forget(self, copy: Copy) -> None:
        for tier in self._tiers:
            if tier.name == copy.tier:
                try:
                    await tier.delete(copy.storage_key)
                except KvloomError as error:
                    self._note_error(tier.name, "delete", str(error))

    async def _merged(self, place: StorageKey, key: ContentKey, header: ContainerHeader, payload: Buffer) -> Buffer:
        """``payload``, or it and what is stored under its key in one container. Hold the key's lock."""
        for copy in self._copies.of(place, key):
            head = await read_head(copy)
            if not isinstance(head, Hit):
                continue
            if covers(header, head.value.header):
                return payload
            old = await read_whole(copy)
            if isinstance(old, Hit):
                return await asyncio.to_thread(merge_containers, old.value.parts[0], payload)
        return payload

    async def _put_durable(self, record: Record) -> None:
        for tier in self._durable:
            await tier.put(record)
        self._write_behind.discard(record.storage_key)

    async def _put_volatile(self, record: Record) -> bool:
        """Put into the memory tiers as far as they take it; an older copy does not stay behind in one that refuses."""
        taken = False
        for tier in self._volatile:
            try:
                await tier.put(record)
                taken = True
            except KvloomError as error:
                self._note_error(tier.name, "put", str(error))
                await self._forget(self._copies.in_tier(tier, record.storage_key, record.content_key))
        return taken

    async def _listed(
        self, namespace: Namespace, infos: Sequence[RecordInfo], seen: set[StorageKey]
    ) -> list[StoredChunk]:
        """Those of ``infos`` that are the namespace's own and not ``seen``; they are from now on."""
        own = [
            info
            for info in infos
            if info.storage_key not in seen and storage_key(namespace.secret, info.content_key) == info.storage_key
        ]
        places = [info.storage_key for info in own]
        seen.update(places)
        holders: list[list[str]] = [[] for _ in own]
        for tier in self._tiers:
            for names, held in zip(holders, await self._ask(tier, places), strict=True):
                names.extend([tier.name] if held else [])
        return [
            StoredChunk(info.content_key, info.payload_bytes, info.stored_at_ms, tuple(names or [WRITE_BEHIND]))
            for info, names in zip(own, holders, strict=True)
        ]

    async def _ask(self, tier: Tier, places: Sequence[StorageKey]) -> list[bool]:
        try:
            return await tier.contains_many(places)
        except KvloomError as error:
            self._note_error(tier.name, "contains", str(error))
            return [False] * len(places)

    def _offer_promotion(self, copy: Copy, read: ChunkRead) -> None:
        names = [tier.name for tier in self._tiers]
        if copy.tier in names[1:]:
            self._promoter.offer(copy, read.total_bytes, self._tiers[: names.index(copy.tier)])

    def _count_promotion(self, tier: Tier) -> None:
        self._counters[tier.name].promotions += 1

    def _note_error(self, tier: str, operation: str, detail: str) -> None:
        self._counters[tier].errors += 1
        self._observer.on_tier_error(tier, operation, detail)

    def _require_running(self) -> None:
        if self._closed or self._runner is None or self._runner.done():
            raise StorageUnavailable("the store is closed" if self._closed else "the store is not running")
