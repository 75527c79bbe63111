"""The application core under every edge: what a daemon does, without a word about how it is asked.

Edges find out who calls, parse what they were sent, call one method here, and write out what comes back; every refusal
is a typed error of :mod:`kvloom.errors`. What a caller may do is checked here, and whose chunks are meant follows from
the credential: nothing that is sent can name another tenant. The daemon never decodes a chunk and needs no model: it
verifies containers and keeps them.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from .. import __version__, limits
from ..clients import leases, tenancy, wire
from ..clients.kv_events import KvEvent
from ..clients.pool_wire import Held, PoolIntroduction, PoolMatches
from ..clients.scrubs import ScrubReport
from ..codec.container import ContainerHeader, generic_digest, parse_header
from ..codec.level import EXACT, Level
from ..errors import CodecMismatch, InvalidRequest, NotFound, ProfileMismatch, TooManyItems
from ..kvstore.key import ContentKey, chunk_refs
from ..kvstore.profiles import ProfileShelves
from ..kvstore.tier import Ack, Buffer
from ..kvstore.tiered.chunk_reader import select_asked
from ..kvstore.tiered.lending import LentChunk, LentUses
from ..kvstore.tiered.pins import LeaseId
from ..kvstore.tiered.store import ChunkRead, PinnedChunks, TieredStore
from ..tracing import span
from .admission import Admission
from .caller import Caller, Scope
from .events import EventHub, Subscription
from .fair_slots import FairSlots
from .journal import Journal, note_read, note_tenant, note_written
from .outcomes import value_of
from .planner.measured import MeasuredLinks
from .planning import Planning
from .pools import PoolRegistry, RegisteredPool
from .reports import chunk_detail, chunk_entry, daemon_stats, tenant_stats
from .scrubbing import AskedScrub

__all__ = ["ChunkOutline", "Service"]

T = TypeVar("T")
_KEY_PREFIX: Final = re.compile(r"[0-9a-f]{0,64}")


@dataclass(frozen=True, slots=True)
class ChunkOutline:
    """A container that could be read: its header, also as the bytes it begins with, its length, and where it is."""

    header: ContainerHeader
    header_bytes: bytes
    total_bytes: int
    tier: str


class Service:
    """One daemon's chunks and profiles, each tenant's apart. Belongs to one event loop; all methods are safe to cancel.

    Every method that takes a caller raises :class:`Forbidden` where its scope is missing. ``store`` is started and
    closed by whoever made it. :meth:`open` before use.
    """

    def __init__(
        self,
        store: TieredStore,
        shelves: ProfileShelves,
        admission: Admission,
        *,
        dirty_bytes_max: int,
        hub: EventHub | None = None,
        scrub: AskedScrub | None = None,
        journal: Journal | None = None,
        links: MeasuredLinks | None = None,
    ) -> None:
        self.admission = admission
        self.journal = journal or Journal()
        self.planning = Planning(store, links or MeasuredLinks(), inflight_bytes=lambda: admission.inflight_bytes)
        self._pools = PoolRegistry()
        self._store = store
        self._shelves = shelves
        self._hub = EventHub() if hub is None else hub
        self._scrub = scrub
        self._dirty_bytes_max = dirty_bytes_max
        self._reads = FairSlots(limits.STORE_READS_MAX)
        self._started = time.monotonic()

    def open(self) -> None:
        """Requests are admitted from now on."""
        self.admission.open()

    def entering(self, caller: Caller) -> AbstractContextManager[None]:
        """Hold the place of one request; entering it raises what :meth:`Admission.enter` raises."""
        note_tenant(caller.tenant)
        return self.admission.enter(caller.tenant)

    def reserving(self, caller: Caller, size_bytes: int) -> AbstractContextManager[None]:
        """Hold memory for a request's body before it is read; entering raises what :meth:`Admission.reserve` raises."""
        return self.admission.reserve(size_bytes, caller.tenant)

    async def put(
        self,
        caller: Caller,
        key: ContentKey,
        payload: Buffer,
        *,
        ack: Ack,
        ttl_seconds: float | None = None,
        parent: ContentKey | None = None,
    ) -> Ack:
        """Keep a container, given away by the caller, for ``ttl_seconds`` if given, and return what was reached.

        Raises what :meth:`TieredStore.put` raises, :class:`CodecMismatch` for lossy levels of another codec than the
        namespace's, and :class:`ProfileMismatch` for lossy levels whose profile is neither on the shelf nor the generic
        one, which everybody has: whoever reads them could not decode them.
        """
        caller.require(Scope.WRITE)
        note_written(len(payload))
        header = parse_header(payload, declared_bytes=len(payload))
        lossy = any(level != EXACT for level in header.levels)
        if lossy and header.codec is not caller.namespace.codec:
            raise CodecMismatch(
                f"container has lossy levels of codec {header.codec}, "
                f"namespace {caller.namespace.name} keeps those of {caller.namespace.codec}"
            )
        generic = lossy and header.profile_digest == generic_digest(header.layout)
        if lossy and not generic:
            profiles = await self._shelves.known(caller.namespace)
            if header.profile_digest not in profiles:
                raise ProfileMismatch(
                    f"container is coded with profile {header.profile_digest.hex()[:16]}…, "
                    f"which is not among the {len(profiles)} profiles here; put it first"
                )
        with span("service.put", tenant=caller.tenant, ack=ack.value):
            return await self._store.put(
                caller.namespace, key, payload, ack=ack, ttl_seconds=ttl_seconds, parent=parent, header=header
            )

    @asynccontextmanager
    async def reading(
        self,
        caller: Caller,
        key: ContentKey,
        *,
        level: Level | None = None,
        layers: range | None = None,
        caller_verifies: bool = False,
    ) -> AsyncIterator[ChunkRead]:
        """Read a chunk and hold its bytes against the budget until the context ends; lossy levels in whole blocks.

        Where the ``caller_verifies`` what comes, a chunk whose word sum goes with it is not verified here.
        Raises :class:`NotFound` (a damaged chunk is one), :class:`LevelNotStored`, :class:`InvalidRequest` for layers
        it has not, :class:`Overloaded`, :class:`StorageUnavailable`.
        """
        caller.require(Scope.READ)
        with span("service.get", tenant=caller.tenant):
            async with self._reads.of(caller.tenant):
                outcome = await self._store.get(
                    caller.namespace, key, level=level, layers=layers, caller_verifies=caller_verifies
                )
        chunk = value_of(outcome, f"chunk {key.hex()[:16]}…")
        note_read(chunk)
        with self.admission.reserve(chunk.total_bytes, caller.tenant):
            yield chunk

    def lend(
        self, caller: Caller, key: ContentKey, *, level: Level | None = None, layers: range | None = None
    ) -> LentChunk | None:
        """A chunk in memory that a local client can map, until its lease is released; None: ask :meth:`reading`."""
        caller.require(Scope.READ)
        return self._store.lend(caller.namespace, key, level=level, layers=layers)

    def note_uses(self, caller: Caller, uses: Sequence[LentUses]) -> None:
        """Chunks that were lent were read again without asking."""
        caller.require(Scope.READ)
        self._store.uses.note_lent(caller.namespace, uses)

    async def exists(self, caller: Caller, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether it is stored."""
        caller.require(Scope.READ)
        return await self._store.contains_many(caller.namespace, keys)

    async def match_prefix(self, caller: Caller, keys: Sequence[ContentKey]) -> int:
        """How many of the leading ``keys`` are stored without a gap."""
        caller.require(Scope.READ)
        with span("service.prefix", tenant=caller.tenant, chunks=len(keys)):
            return await self._store.longest_prefix(caller.namespace, keys)

    async def longest_prefix(self, caller: Caller, question: wire.PrefixQuestion) -> wire.PrefixCount:
        """How many leading chunks are stored, of keys, or of tokens that are cut and keyed here."""
        caller.require(Scope.READ)
        if question.keys is not None and question.tokens is None and question.identity is None:
            return wire.PrefixCount(await self.match_prefix(caller, wire.parse_keys(question.keys)))
        if question.keys is not None or question.tokens is None or question.identity is None:
            raise InvalidRequest("a prefix question has either keys, or identity and tokens")
        refs = await asyncio.to_thread(
            chunk_refs, question.identity, question.tokens, chunk_tokens=question.chunk_tokens
        )
        if len(refs) > limits.PREFIX_CHUNKS_MAX:
            raise TooManyItems(f"tokens make {len(refs)} chunks, the limit is {limits.PREFIX_CHUNKS_MAX}")
        with span("service.prefix", tenant=caller.tenant, chunks=len(refs)):
            matched = await self._store.longest_prefix(caller.namespace, [ref.key for ref in refs])
        keys = tuple(ref.key.hex() for ref in refs[:matched])
        return wire.PrefixCount(matched, refs[matched - 1].stop if matched else 0, keys)

    async def delete(self, caller: Caller, key: ContentKey) -> bool:
        """Forget a chunk on every tier; whether there was one."""
        caller.require(Scope.WRITE)
        return await self._store.delete(caller.namespace, key)

    async def delete_many(self, caller: Caller, keys: Sequence[ContentKey]) -> list[bool]:
        """Forget chunks on every tier; for each, whether there was one."""
        caller.require(Scope.WRITE)
        return await self._store.delete_many(caller.namespace, keys)

    async def delete_namespace(self, caller: Caller) -> int:
        """Forget every chunk of the namespace; how many records there were, each once per tier."""
        caller.require(Scope.ADMIN)
        return await self._store.delete_namespace(caller.namespace)

    async def pin(self, caller: Caller, keys: Sequence[ContentKey], *, lease_seconds: float) -> PinnedChunks:
        """Keep chunks from being evicted until the lease ends; raises what :meth:`TieredStore.pin` raises."""
        caller.require(Scope.READ)
        return await self._store.pin(caller.namespace, keys, lease_seconds=lease_seconds)

    def release(self, caller: Caller, lease: LeaseId) -> bool:
        """End a lease now; whether it was running."""
        caller.require(Scope.READ)
        return self._store.release(caller.namespace, lease)

    async def prefetch(self, caller: Caller, keys: Sequence[ContentKey]) -> int:
        """Have chunks copied into memory in the background; for how many that is under way or not needed."""
        caller.require(Scope.READ)
        return await self._store.prefetch(caller.namespace, keys)

    def hint(self, caller: Caller, keys: Sequence[ContentKey], *, finished: bool) -> None:
        """Say that chunks will not be used again (or will), for eviction to act on."""
        caller.require(Scope.WRITE)
        self._store.hint(caller.namespace, keys, finished=finished)

    def register_pool(self, caller: Caller, about: PoolIntroduction) -> RegisteredPool:
        """Keep count of a pool of decoded chunks in another process; to be ended by :meth:`remove_pool`."""
        caller.require(Scope.WRITE)
        return self._pools.register(caller.namespace.owner, about)

    def update_pool(self, caller: Caller, pool: RegisteredPool, held: Held) -> None:
        """Note what changed in a pool. What is used there is used here too, and so is not evicted for being so near."""
        caller.require(Scope.WRITE)
        self._pools.update(pool, held)
        self._hub.note_pool(pool.owner, pool.about.device, held.added, held.gone)
        self._store.uses.note_elsewhere(caller.namespace, [*held.used, *held.gone])

    def remove_pool(self, pool: RegisteredPool) -> None:
        """A pool is there no more."""
        self._hub.note_pool(pool.owner, pool.about.device, (), tuple(pool.keys))
        self._pools.remove(pool)

    def resident(self, caller: Caller, keys: Sequence[ContentKey]) -> PoolMatches:
        """How many of the leading ``keys`` each of the tenant's pools holds."""
        caller.require(Scope.READ)
        return PoolMatches(self._pools.resident(caller.namespace.owner, keys))

    async def describe(self, caller: Caller, key: ContentKey) -> wire.ChunkDetail:
        """What is stored under ``key``, without its segments; :class:`NotFound` where nothing is."""
        caller.require(Scope.READ)
        stored = await self._store.stored(caller.namespace, key)
        if stored is None or stored.header is None:
            raise NotFound(f"chunk {key.hex()[:16]}… is not stored")
        return chunk_detail(stored, stored.header)

    async def outline(
        self, caller: Caller, key: ContentKey, *, level: Level | None = None, layers: range | None = None
    ) -> ChunkOutline:
        """What :meth:`reading` would read, without reading it; raises as that does."""
        caller.require(Scope.READ)
        stored = await self._store.stored(caller.namespace, key)
        if stored is None or stored.header is None:
            raise NotFound(f"chunk {key.hex()[:16]}… is not stored")
        selection = select_asked(stored.header, level, layers)
        return ChunkOutline(parse_header(selection.header), selection.header, selection.total_bytes, stored.tiers[0])

    async def list_chunks(self, caller: Caller, *, limit: int, prefix: str) -> wire.ChunkList:
        """Up to ``limit`` chunks whose key begins with the hexadecimal digits ``prefix``, in no particular order."""
        caller.require(Scope.READ)
        if not 1 <= limit <= limits.LIST_CHUNKS_MAX:
            raise InvalidRequest(f"limit is {limit}, must be 1 to {limits.LIST_CHUNKS_MAX}")
        if not _KEY_PREFIX.fullmatch(prefix):
            raise InvalidRequest(f"prefix {prefix[:80]!r} is not up to 64 lower-case hexadecimal digits")
        found: list[wire.ChunkEntry] = []
        async for stored in self._store.scan(caller.namespace):
            if not stored.key.hex().startswith(prefix):
                continue
            if len(found) == limit:
                return wire.ChunkList(tuple(found), truncated=True)
            found.append(chunk_entry(stored))
        return wire.ChunkList(tuple(found), truncated=False)

    async def put_profile(self, caller: Caller, digest: bytes, data: Buffer) -> None:
        """Put a codec profile on the shelf; raises what :meth:`ProfileShelf.put` raises."""
        caller.require(Scope.WRITE)
        known = await self._shelves.known(caller.namespace)
        await (await self._shelves.shelf(caller.namespace)).put(digest, data)
        known.add(digest)

    @asynccontextmanager
    async def reading_profile(self, caller: Caller, digest: bytes) -> AsyncIterator[bytes]:
        """Read a profile and hold its bytes against the budget; raises as :meth:`reading` does."""
        caller.require(Scope.READ)
        async with self._reads.of(caller.tenant):
            outcome = await (await self._shelves.shelf(caller.namespace)).get(digest)
        data = value_of(outcome, f"profile {digest.hex()[:16]}…")
        with self.admission.reserve(len(data), caller.tenant):
            yield data

    def subscribing(self, caller: Caller, *, resumed: bool = False) -> AbstractContextManager[Subscription]:
        """The KV events of the caller's tenant from now on; entering raises what :meth:`EventHub.subscribing` does."""
        caller.require(Scope.READ)
        return self._hub.subscribing(caller.namespace.owner, resumed=resumed)

    def events(self, caller: Caller, *, resumed: bool = False) -> AsyncGenerator[KvEvent, None]:
        """:meth:`subscribing` as an iterator, until the daemon drains; close it (``aclosing``) to unsubscribe."""
        caller.require(Scope.READ)
        return self._hub.events(caller.namespace.owner, resumed=resumed)

    def tenant(self, caller: Caller) -> tenancy.TenantStats:
        """What the caller's tenant did and holds: all that a tenant gets to see of the daemon's figures."""
        caller.require(Scope.READ)
        return tenant_stats(self._store.tenant_stats(caller.namespace))

    def namespaces(self, caller: Caller) -> leases.NamespaceList:
        """The namespaces of the daemon that anybody has asked for, the caller's own first, and their quotas."""
        caller.require(Scope.ADMIN)
        known = {item.owner: item for item in (caller.namespace, *self._store.tenants())}
        return leases.NamespaceList(tuple(tenant_stats(self._store.tenant_stats(item)) for item in known.values()))

    def start_scrub(self, caller: Caller) -> ScrubReport:
        """Begin to verify all of the SSD tier, of all tenants; :class:`NotFound` where there is no such tier."""
        caller.require(Scope.ADMIN)
        return self._scrubber.start()

    def scrub_report(self, caller: Caller) -> ScrubReport:
        """How far that has come; raises likewise."""
        caller.require(Scope.ADMIN)
        return self._scrubber.report()

    @property
    def _scrubber(self) -> AskedScrub:
        if self._scrub is None:
            raise NotFound("this daemon has no SSD tier that could be scrubbed")
        return self._scrub

    def health(self) -> wire.Health:
        """Which daemon this is, and its phase."""
        return wire.Health(self.admission.phase.value, __version__, os.getpid())

    def stats(self, caller: Caller) -> wire.DaemonStats:
        """The daemon, its tiers and its tenants now, the caller's own first."""
        caller.require(Scope.ADMIN)
        return daemon_stats(
            self._store.stats(),
            self.health(),
            self.admission,
            caller.namespace,
            uptime_seconds=time.monotonic() - self._started,
            dirty_bytes_max=self._dirty_bytes_max,
            profiles=self._shelves.count(caller.namespace),
            tenants=self.namespaces(caller).namespaces,
            pools=self._pools.reports(),
            planner=self.planning.stats(),
            quality=self.planning.quality.stats(),
        )
