"""The tiered store: the only place that knows there are several tiers.

A put verifies the container whole, joins it with what is stored under the key (:mod:`.merge`), and reaches what its
``ack`` asks for: ``memory`` means the memory tiers and the write-behind queue, ``disk`` the first durable tier. From
there it goes on in the background, tier by tier (:mod:`.cascade`), last to the tiers that daemons share, which nobody
waits for. A get asks the tiers from fast to slow, verifies what it returns, deletes a damaged copy and goes on to the
next, and has a record copied upwards when a slower tier had it. Changes of one key are serialised by a lock per key;
reads take none and start again if the record is replaced under them. What has expired is absent everywhere.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from ... import limits
from ...codec.container import ContainerHeader
from ...codec.level import Level
from ...errors import LevelNotStored, StorageUnavailable
from ..attributes import ChunkAttributes
from ..concurrency import each_in_order
from ..key import ContentKey, StorageKey, check_count, storage_key, storage_keys
from ..key_locks import KeyLocks
from ..namespace import Namespace, check_ttl
from ..outcome import Hit, Miss, Outcome
from ..quota import Quotas
from ..sharing import SharesMemory
from ..single_flight import SingleFlight
from ..tier import NEVER, Ack, Buffer, Record, Tier
from .admission import DiskAdmission
from .cascade import Cascade
from .change_log import ChangeLog
from .chunk_reader import ChunkRead, Copy, read_head, verified_header
from .copies import WRITE_BEHIND, Copies
from .erasure import Erasure
from .leasing import Leasing, PinnedChunks
from .lending import LentChunk, lend_chunk
from .listing import Listing, StoredChunk
from .pins import LeaseId
from .placing import Placing
from .prefetch import Prefetch
from .promotion import Promoter
from .reading import Reading, Wanted
from .reporting import Reporting
from .roles import Roles
from .rules import StoreRules
from .shared_quota import SharedQuota
from .stats import StoreObserver, StoreStats
from .tally import Tally
from .tenants import Tenants, TenantStats
from .upkeep import Upkeep
from .uses import Uses
from .warming import Warming

__all__ = ["WRITE_BEHIND", "ChunkRead", "PinnedChunks", "StoreRules", "StoredChunk", "TieredStore"]

_log = logging.getLogger(__name__)


class TieredStore:
    """``tiers`` go from fast to slow (:class:`.Roles`). :meth:`start` before use; all methods are safe to cancel."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        *,
        clock_ms: Callable[[], int],
        rules: StoreRules | None = None,
        observer: StoreObserver | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        rules = rules or StoreRules()
        observer = observer or StoreObserver()
        roles = self._roles = Roles.of(tiers)
        self._lenders = tuple(tier for tier in tiers if isinstance(tier, SharesMemory))
        self._clock_ms = clock_ms
        self._locks = KeyLocks()
        self._changes = ChangeLog()
        self._admission = DiskAdmission(rules.admission)
        self._tenants = Tenants()
        self._tally = tally = Tally((WRITE_BEHIND, *(tier.name for tier in tiers)), observer)
        self._cascade = cascade = Cascade(
            roles, self._locks, observer, rules.cascade, clock_ms=clock_ms, prepare_shared=self._prepare_shared
        )
        self._copies = Copies(roles, cascade, clock_ms)
        self._leasing = Leasing(roles, self._copies, clock_ms)
        self._pins = pins = self._leasing.pins
        self._promoter = Promoter(
            self._locks, self._changes, observer, tally.note_promotion, lambda info: self._erasure.is_erased(info)
        )
        self._reading = Reading(roles, cascade, self._copies, self._locks, tally, self._after_hit, self._changes.mark)
        self._listing = Listing(roles, cascade, tally, clock_ms)
        self._prefetch = Prefetch(roles, self._listing, self._copies, self._promoter)
        self.warming = Warming(roles, self._copies, self._promoter, sleep=sleep)
        self._erasure = Erasure(roles, cascade, self._locks, self._changes, self._promoter, pins, tally, clock_ms)
        self._placing = Placing(
            roles,
            cascade,
            self._reading,
            self._locks,
            self._changes,
            self._admission,
            pins,
            tally,
            clock_ms,
            self._erasure.erased_at_ms,
        )
        quotas = rules.shared_quotas
        self._shared_quotas = {stage.tier.name: SharedQuota(stage.tier, quotas) for stage in cascade.shared}
        shared = tuple(self._shared_quotas.values())
        self._upkeep = Upkeep(
            roles, self._locks, pins, self._erasure, shared, self._tenants, tally, clock_ms=clock_ms, sleep=sleep
        )
        lender = self._lenders[0] if self._lenders else None
        self.uses = Uses(roles, lender, self._tenants, tally)
        self._reporting = Reporting(roles, cascade, tally, self._tenants, pins, self._admission, self._promoter)
        self._flights: SingleFlight[Wanted, Outcome[ChunkRead]] = SingleFlight()
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Start writing behind, promoting and keeping up. Once."""
        self._runner = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is dirty (to shared tiers for a bounded time), stop, close the tiers. Repeat it if cancelled."""
        self._closed = True
        self._cascade.finish()
        if self._runner is not None:
            await asyncio.wait((self._runner,))
            if not self._runner.cancelled() and (failure := self._runner.exception()) is not None:
                _log.error("the store's background work failed", exc_info=failure)
        for tier in self._roles.all:
            await tier.close()

    async def put(
        self,
        namespace: Namespace,
        key: ContentKey,
        payload: Buffer,
        *,
        ack: Ack,
        ttl_seconds: float | None = None,
        parent: ContentKey | None = None,
        header: ContainerHeader | None = None,
    ) -> Ack:
        """Store a container and return what was reached, which is what ``ack`` asked for.

        ``payload`` is given away: nobody may change it afterwards; ``header`` is its own, where it was parsed already.
        It expires after ``ttl_seconds`` (default: the namespace's); where the chunk is stored already, at the later of
        both times. ``parent`` is the chunk before it: eviction gives up the leaves of a tree of prefixes first. Raises
        what :func:`kvloom.codec.container.verify` raises for a container that does not hold or is of another chunk,
        :class:`LayoutMismatch` where it cannot be joined with what is stored, :class:`Overloaded` where too much waits
        to be written, :class:`StorageFull` and :class:`StorageUnavailable`. After an error or a cancellation the chunk
        may or may not be stored.
        """
        self._require_running()
        expires_at_ms = self._expiry(namespace.ttl_seconds if ttl_seconds is None else ttl_seconds)
        header = await verified_header(payload, key, header)
        place = storage_key(namespace.secret, key)
        above = None
        if parent is not None and parent != key:
            above = storage_key(namespace.secret, parent)
            self._tally.observer.on_named(above, parent)
        about = ChunkAttributes(above, header.first_position, header.tokens)
        await self._placing.put(Record(place, key, payload, 0, namespace.owner, expires_at_ms, about), header, ack)
        self._tally.note_put(self._tenants.of(namespace), len(payload))
        return ack

    async def get(
        self,
        namespace: Namespace,
        key: ContentKey,
        *,
        level: Level | None = None,
        layers: range | None = None,
        caller_verifies: bool = False,
    ) -> Outcome[ChunkRead]:
        """Read ``level`` (lossy: with all coarser ones; default: everything) of ``layers`` (default: all).

        Lossy levels are stored in blocks of layers, so with them ``layers`` are widened to whole blocks; the header
        read says which they are. Every byte returned is verified, unless the ``caller_verifies`` it by the word sum
        that is told with it (:attr:`ChunkRead.is_verified`). Reads of the same thing at the same time are one read.
        Raises :class:`LevelNotStored`, and :class:`InvalidRequest` for layers that the chunk has not.
        """
        self._require_running()
        wanted = Wanted(storage_key(namespace.secret, key), level, layers)
        outcome: Outcome[ChunkRead] | None = await self._reading.read_at_hand(wanted, key, caller_verifies)
        if outcome is None:
            outcome = await self._flights.run(wanted, lambda: self._reading.read(wanted, key))
        self._tally.note_read(self._tenants.of(namespace), outcome)
        return outcome

    async def get_many(
        self,
        namespace: Namespace,
        keys: Sequence[ContentKey],
        *,
        level: Level | None = None,
        layers: range | None = None,
        at_once: int = limits.GETS_AT_ONCE_DEFAULT,
    ) -> list[Outcome[ChunkRead]]:
        """:meth:`get` for each key, in their order, ``at_once`` of them under way; not stored at ``level`` is a miss.

        The caller holds all that is found: it bounds the number of keys by what it has room for.
        """
        check_count(keys)

        async def get(key: ContentKey) -> Outcome[ChunkRead]:
            try:
                return await self.get(namespace, key, level=level, layers=layers)
            except LevelNotStored:
                return Miss()

        return await each_in_order(get, keys, at_once=at_once)

    def lend(
        self, namespace: Namespace, key: ContentKey, *, level: Level | None = None, layers: range | None = None
    ) -> LentChunk | None:
        """Lend what :meth:`get` would read, at once, where a tier has it in memory that can be shared; None: ``get``.

        The bytes are not verified here: who maps them does (:mod:`.sharing`).
        """
        self._require_running()
        place = storage_key(namespace.secret, key)
        for tier in self._lenders:
            lent = lend_chunk(tier, place, key, level=level, layers=layers, now_ms=self._clock_ms())
            if lent is not None:
                self._tally.note_hit(self._tenants.of(namespace), tier.name, lent.total_bytes)
                return lent
        return None

    async def contains_many(self, namespace: Namespace, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether a chunk is stored; a tier that cannot answer counts as empty."""
        self._require_running()
        return await self._listing.present(storage_keys(namespace.secret, keys))

    async def nearest(self, namespace: Namespace, keys: Sequence[ContentKey]) -> list[str | None]:
        """For each key, the tier that a read would find it in first, or ``None`` where it is not stored."""
        self._require_running()
        return await self._listing.nearest(storage_keys(namespace.secret, keys))

    async def longest_prefix(self, namespace: Namespace, keys: Sequence[ContentKey]) -> int:
        """How many of the leading ``keys`` are stored without a gap."""
        self._require_running()
        return await self._listing.longest_prefix(namespace, keys)

    async def delete(self, namespace: Namespace, key: ContentKey) -> bool:
        """Forget a chunk in every tier and queue; whether there was one. The first failure is raised after all."""
        self._require_running()
        return await self._placing.delete(storage_key(namespace.secret, key))

    async def delete_many(self, namespace: Namespace, keys: Sequence[ContentKey]) -> list[bool]:
        """:meth:`delete` for each key, in their order; the first failure ends it."""
        check_count(keys)
        return await each_in_order(lambda key: self.delete(namespace, key), keys, at_once=limits.DELETIONS_AT_ONCE_MAX)

    async def delete_namespace(self, namespace: Namespace) -> int:
        """Forget all chunks of ``namespace``, here now, on daemons that share a tier with this one soon after.

        How many records there were, each once per tier. Every tier is tried; then the first failure is raised.
        """
        self._require_running()
        return await self._erasure.erase(namespace)

    async def scan(self, namespace: Namespace) -> AsyncIterator[StoredChunk]:
        """The chunks of ``namespace``, each once, in no order."""
        self._require_running()
        async for chunk in self._listing.scan(namespace):
            yield chunk

    async def stored(self, namespace: Namespace, key: ContentKey) -> StoredChunk | None:
        """What is stored under ``key``, with the container's header, or ``None``. Not counted as a read."""
        self._require_running()
        place = storage_key(namespace.secret, key)
        for copy in self._copies.of(place, key):
            found = await read_head(copy)
            if isinstance(found, Hit):
                info, header = found.value.info, found.value.header
                tiers = await self._listing.holders(place) or (copy.tier,)
                return StoredChunk(key, info.payload_bytes, info.stored_at_ms, tiers, header, info.expires_at_ms)
        return None

    async def pin(self, namespace: Namespace, keys: Sequence[ContentKey], *, lease_seconds: float) -> PinnedChunks:
        """Keep those of ``keys`` that are stored here from being evicted where they are, until the lease ends.

        A deletion or the expiry of a chunk ends its pin. Raises :class:`StorageFull` where that would pin too many
        bytes (a quarter of the owner's quota), :class:`Overloaded` for too many leases; nothing is pinned then.
        """
        return await self._leasing.pin(namespace.owner, self._places(namespace, keys), lease_seconds)

    def release(self, namespace: Namespace, lease: LeaseId) -> bool:
        """End a lease of ``namespace`` now; whether it was running (another's is like none)."""
        return self._pins.release(namespace.owner, lease)

    def hint(self, namespace: Namespace, keys: Sequence[ContentKey], *, finished: bool) -> None:
        """Say that ``keys`` will not be used again (or will): eviction policies that take hints act on it."""
        places = self._places(namespace, keys)
        for tier in self._roles.all:
            tier.hint(places, finished=finished)

    async def prefetch(self, namespace: Namespace, keys: Sequence[ContentKey]) -> int:
        """Have ``keys`` copied into the memory tiers in the background; for how many that is under way or not needed.

        Nothing is promised: a full queue drops the rest, and a chunk that is not stored is found out later.
        """
        return await self._prefetch.start(keys, self._places(namespace, keys))

    def _places(self, namespace: Namespace, keys: Sequence[ContentKey]) -> list[StorageKey]:
        self._require_running()
        check_count(keys)
        return storage_keys(namespace.secret, keys)

    def note_corrupt(self, tier: str, key: ContentKey, detail: str) -> None:
        """Count a damaged record that somebody else found, and has deleted, in ``tier``."""
        self._tally.note_corrupt(tier, key, detail)

    def stats(self) -> StoreStats:
        """The counters of the store now."""
        return self._reporting.stats()

    def tenant_stats(self, namespace: Namespace) -> TenantStats:
        """The counters of one tenant now."""
        return self._reporting.tenant(namespace)

    def tenants(self) -> list[Namespace]:
        """The namespaces that have counters of their own: those that have been asked about."""
        return self._tenants.namespaces()

    def set_shared_quotas(self, quotas: Quotas) -> None:
        """Put other quotas in force on the shared tiers."""
        for shared in self._shared_quotas.values():
            shared.set_quotas(quotas)

    async def flush(self, *, shared: bool = False) -> None:
        """Wait until everything accepted so far is on the local tiers that are to have it, or on the ``shared`` too.

        Raises :class:`StorageUnavailable` if some of it was refused. A chunk kept off the disk at its first use is
        not waited for.
        """
        self._require_running()
        await self._cascade.flush(shared=shared)

    async def settled(self) -> None:
        """Wait until the promotions under way are done."""
        self._require_running()
        await self._promoter.settled()

    async def keep_up(self) -> int:
        """Do now what is done from time to time: free what has expired and the like; how many records that freed."""
        self._require_running()
        return await self._upkeep.round()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._promoter.run()), group.create_task(self._upkeep.run())]
            await self._cascade.run()
            for task in background:
                task.cancel()

    def _after_hit(self, copy: Copy, read: ChunkRead, mark: int) -> None:
        """Copy what was read to where its use says that it belongs."""
        tier = self._roles.named(copy.tier)
        if tier is None:
            return
        place = copy.storage_key
        if tier in self._roles.volatile and self._admission.is_waiting(place):
            if self._promoter.offer(copy, read, self._roles.durable[:1], mark):
                self._admission.use(place)
            return
        targets = self._roles.faster_than(tier)
        if tier.shared and not self._admission.takes_all and not self._admission.use(place):
            targets = tuple(item for item in targets if not item.durable)
        if targets:
            self._promoter.offer(copy, read, targets, mark)

    async def _prepare_shared(self, tier: Tier, record: Record) -> Record | None:
        """What is written to a shared tier: the record joined with what is there, within its owner's quota."""
        if self._erasure.is_erased(record.info):
            return None
        joined = await self._reading.joined_with_shared(tier, record)
        await self._shared_quotas[tier.name].make_room(joined)
        return joined

    def _expiry(self, ttl_seconds: float | None) -> int:
        if ttl_seconds is None:
            return NEVER
        check_ttl(ttl_seconds)
        return self._clock_ms() + round(ttl_seconds * 1000)

    def _require_running(self) -> None:
        if self._closed or self._runner is None or self._runner.done():
            raise StorageUnavailable("the store is closed" if self._closed else "the store is not running")
