"""The application core under every edge: what a daemon does, without a word about how it is asked.

Edges parse what they were sent, call one method here, and write out what comes back; every refusal is a typed error of
:mod:`kvloom.errors`. The daemon never decodes a chunk and needs no model: it verifies containers and keeps them.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from .. import __version__, limits
from ..clients import tenancy, wire
from ..codec.container import generic_digest, parse_header
from ..codec.level import EXACT, Level
from ..errors import (
    CodecMismatch,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProfileMismatch,
    StorageUnavailable,
    TooManyItems,
)
from ..kvstore.key import ContentKey, chunk_refs
from ..kvstore.namespace import Namespace
from ..kvstore.outcome import Corrupt, Hit, Miss, Outcome, Throttled, Unavailable
from ..kvstore.profiles import ProfileShelf
from ..kvstore.tier import NEVER, Ack, Buffer
from ..kvstore.tiered.lending import LentChunk
from ..kvstore.tiered.pins import LeaseId
from ..kvstore.tiered.stats import StageStats, TierStats
from ..kvstore.tiered.store import ChunkRead, PinnedChunks, StoredChunk, TieredStore
from ..kvstore.tiered.tenants import TenantStats
from .admission import Admission

__all__ = ["Service"]

T = TypeVar("T")
_KEY_PREFIX: Final = re.compile(r"[0-9a-f]{0,64}")


class Service:
    """One daemon's chunks and profiles in one namespace. Belongs to one event loop; all methods are safe to cancel.

    ``store`` is started and closed by whoever made it. :meth:`open` before use.
    """

    def __init__(
        self,
        store: TieredStore,
        shelf: ProfileShelf,
        namespace: Namespace,
        admission: Admission,
        *,
        dirty_bytes_max: int,
    ) -> None:
        self.admission = admission
        self._store = store
        self._shelf = shelf
        self._namespace = namespace
        self._dirty_bytes_max = dirty_bytes_max
        self._profiles: set[bytes] = set()
        self._reads = asyncio.Semaphore(limits.STORE_READS_MAX)
        self._started = time.monotonic()

    async def open(self) -> None:
        """Learn which profiles are on the shelf; requests are admitted from now on."""
        self._profiles.update(await self._shelf.list())
        self.admission.open()

    async def put(
        self,
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
        header = parse_header(payload, declared_bytes=len(payload))
        lossy = any(level != EXACT for level in header.levels)
        if lossy and header.codec is not self._namespace.codec:
            raise CodecMismatch(
                f"container has lossy levels of codec {header.codec}, "
                f"namespace {self._namespace.name} keeps those of {self._namespace.codec}"
            )
        generic = lossy and header.profile_digest == generic_digest(header.layout)
        if lossy and not generic and header.profile_digest not in self._profiles:
            raise ProfileMismatch(
                f"container is coded with profile {header.profile_digest.hex()[:16]}…, "
                f"which is not among the {len(self._profiles)} profiles here; put it first"
            )
        return await self._store.put(self._namespace, key, payload, ack=ack, ttl_seconds=ttl_seconds, parent=parent)

    @asynccontextmanager
    async def reading(
        self, key: ContentKey, *, level: Level | None = None, layers: range | None = None
    ) -> AsyncIterator[ChunkRead]:
        """Read a chunk and hold its bytes against the budget until the context ends; lossy levels in whole blocks.

        Raises :class:`NotFound` (a damaged chunk is one), :class:`LevelNotStored`, :class:`InvalidRequest` for layers
        it has not, :class:`Overloaded`, :class:`StorageUnavailable`.
        """
        async with self._reads:
            outcome = await self._store.get(self._namespace, key, level=level, layers=layers)
        chunk = _found(outcome, f"chunk {key.hex()[:16]}…")
        with self.admission.reserve(chunk.total_bytes):
            yield chunk

    async def lend(
        self, key: ContentKey, *, level: Level | None = None, layers: range | None = None
    ) -> LentChunk | None:
        """A chunk in memory that a local client can map, until its lease is released; None: ask :meth:`reading`."""
        outcome = await self._store.lend(self._namespace, key, level=level, layers=layers)
        return outcome.value if isinstance(outcome, Hit) else None

    async def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether it is stored."""
        return await self._store.contains_many(self._namespace, keys)

    async def match_prefix(self, keys: Sequence[ContentKey]) -> int:
        """How many of the leading ``keys`` are stored without a gap."""
        return await self._store.longest_prefix(self._namespace, keys)

    async def longest_prefix(self, question: wire.PrefixQuestion) -> wire.PrefixCount:
        """How many leading chunks are stored, of keys, or of tokens that are cut and keyed here."""
        if question.keys is not None and question.tokens is None and question.identity is None:
            return wire.PrefixCount(await self.match_prefix(wire.parse_keys(question.keys)))
        if question.keys is not None or question.tokens is None or question.identity is None:
            raise InvalidRequest("a prefix question has either keys, or identity and tokens")
        refs = await asyncio.to_thread(
            chunk_refs, question.identity, question.tokens, chunk_tokens=question.chunk_tokens
        )
        if len(refs) > limits.PREFIX_CHUNKS_MAX:
            raise TooManyItems(f"tokens make {len(refs)} chunks, the limit is {limits.PREFIX_CHUNKS_MAX}")
        matched = await self._store.longest_prefix(self._namespace, [ref.key for ref in refs])
        keys = tuple(ref.key.hex() for ref in refs[:matched])
        return wire.PrefixCount(matched, refs[matched - 1].stop if matched else 0, keys)

    async def delete(self, key: ContentKey) -> bool:
        """Forget a chunk on every tier; whether there was one."""
        return await self._store.delete(self._namespace, key)

    async def delete_many(self, keys: Sequence[ContentKey]) -> list[bool]:
        """Forget chunks on every tier; for each, whether there was one."""
        return await self._store.delete_many(self._namespace, keys)

    async def delete_namespace(self) -> int:
        """Forget every chunk of the namespace; how many records there were, each once per tier."""
        return await self._store.delete_namespace(self._namespace)

    @asynccontextmanager
    async def reading_many(
        self, keys: Sequence[ContentKey], *, level: Level | None = None, layers: range | None = None
    ) -> AsyncIterator[list[ChunkRead | None]]:
        """Read chunks in the order of ``keys``, ``None`` for what is not stored, and hold their bytes as above.

        A chunk that cannot be read for now is ``None`` too: to a batch it is one that has to be computed. Raises
        :class:`Overloaded` where what was found is more than the budget has room for, :class:`InvalidRequest`.
        """
        async with self._reads:
            outcomes = await self._store.get_many(self._namespace, keys, level=level, layers=layers)
        found = [outcome.value if isinstance(outcome, Hit) else None for outcome in outcomes]
        with self.admission.reserve(sum(chunk.total_bytes for chunk in found if chunk is not None)):
            yield found

    async def pin(self, keys: Sequence[ContentKey], *, lease_seconds: float) -> PinnedChunks:
        """Keep chunks from being evicted until the lease ends; raises what :meth:`TieredStore.pin` raises."""
        return await self._store.pin(self._namespace, keys, lease_seconds=lease_seconds)

    def release(self, lease: LeaseId) -> bool:
        """End a lease now; whether it was running."""
        return self._store.release(self._namespace, lease)

    async def prefetch(self, keys: Sequence[ContentKey]) -> int:
        """Have chunks copied into memory in the background; for how many that is under way or not needed."""
        return await self._store.prefetch(self._namespace, keys)

    def hint(self, keys: Sequence[ContentKey], *, finished: bool) -> None:
        """Say that chunks will not be used again (or will), for eviction to act on."""
        self._store.hint(self._namespace, keys, finished=finished)

    async def describe(self, key: ContentKey) -> wire.ChunkDetail:
        """What is stored under ``key``, without its segments; :class:`NotFound` where nothing is."""
        stored = await self._store.stored(self._namespace, key)
        if stored is None or stored.header is None:
            raise NotFound(f"chunk {key.hex()[:16]}… is not stored")
        header = stored.header
        lossy = any(level != EXACT for level in header.levels)
        return wire.ChunkDetail(
            chunk=_entry(stored),
            tokens=header.tokens,
            first_position=header.first_position,
            layers=len(header.layout.layers),
            dtype=header.layout.dtype.value,
            layout_digest=header.layout.digest(),
            raw_bytes=header.tokens * header.layout.bytes_per_token,
            levels=tuple(
                wire.LevelBytes(level, sum(item.length for item in header.segments if item.level == level))
                for level in header.levels
            ),
            codec=header.codec if lossy else None,
            profile_digest=header.profile_digest if lossy else None,
        )

    async def list_chunks(self, *, limit: int, prefix: str) -> wire.ChunkList:
        """Up to ``limit`` chunks whose key begins with the hexadecimal digits ``prefix``, in no particular order."""
        if not 1 <= limit <= limits.LIST_CHUNKS_MAX:
            raise InvalidRequest(f"limit is {limit}, must be 1 to {limits.LIST_CHUNKS_MAX}")
        if not _KEY_PREFIX.fullmatch(prefix):
            raise InvalidRequest(f"prefix {prefix[:80]!r} is not up to 64 lower-case hexadecimal digits")
        found: list[wire.ChunkEntry] = []
        async for stored in self._store.scan(self._namespace):
            if not stored.key.hex().startswith(prefix):
                continue
            if len(found) == limit:
                return wire.ChunkList(tuple(found), truncated=True)
            found.append(_entry(stored))
        return wire.ChunkList(tuple(found), truncated=False)

    async def put_profile(self, digest: bytes, data: Buffer) -> None:
        """Put a codec profile on the shelf; raises what :meth:`ProfileShelf.put` raises."""
        await self._shelf.put(digest, data)
        self._profiles.add(digest)

    @asynccontextmanager
    async def reading_profile(self, digest: bytes) -> AsyncIterator[bytes]:
        """Read a profile and hold its bytes against the budget; raises as :meth:`reading` does."""
        async with self._reads:
            outcome = await self._shelf.get(digest)
        data = _found(outcome, f"profile {digest.hex()[:16]}…")
        with self.admission.reserve(len(data)):
            yield data

    def health(self) -> wire.Health:
        """Which daemon this is, and its phase."""
        return wire.Health(self.admission.phase.value, __version__, os.getpid())

    def stats(self) -> wire.DaemonStats:
        """The daemon and its tiers now."""
        store = self._store.stats()
        return wire.DaemonStats(
            version=__version__,
            pid=os.getpid(),
            phase=self.admission.phase.value,
            uptime_seconds=time.monotonic() - self._started,
            namespace=self._namespace.name,
            requests_inflight=self.admission.requests,
            bytes_inflight=self.admission.inflight_bytes,
            bytes_inflight_max=self.admission.inflight_bytes_max,
            dirty_bytes=store.dirty_bytes,
            dirty_bytes_max=self._dirty_bytes_max,
            hits=sum(tier.hits for tier in store.tiers) + store.write_behind_hits,
            misses=store.misses,
            puts=store.puts,
            put_bytes=store.put_bytes,
            write_behind_failures=store.write_behind_failures,
            profiles=len(self._profiles),
            tiers=tuple(_tier(item) for item in store.tiers),
            codec=self._namespace.codec,
            stages=tuple(_stage(item) for item in store.stages),
            tenants=(_tenant(self._store.tenant_stats(self._namespace)),),
            expired=store.expired,
            pinned_bytes=store.pinned_bytes,
            leases=store.leases,
            admitted=store.admitted,
            deferred=store.deferred,
            promotions_dropped=store.promotions_dropped,
        )


def _found(outcome: Outcome[T], what: str) -> T:
    """What was read; an outcome that is none is the error an edge answers with. Damage is a miss to whoever asks."""
    match outcome:
        case Hit(value=value):
            return value
        case Miss() | Corrupt():
            raise NotFound(f"{what} is not stored")
        case Throttled():
            raise Overloaded(f"{what}: {outcome.tier} is busy, try again in {outcome.retry_seconds} s")
        case Unavailable():
            raise StorageUnavailable(f"{what}: {outcome.tier} cannot answer: {outcome.detail}")


def _entry(stored: StoredChunk) -> wire.ChunkEntry:
    expires_at_ms = None if stored.expires_at_ms == NEVER else stored.expires_at_ms
    return wire.ChunkEntry(stored.key, stored.payload_bytes, stored.stored_at_ms, stored.tiers, expires_at_ms)


def _tier(stats: TierStats) -> wire.TierStats:
    return wire.TierStats(
        name=stats.name,
        durable=stats.durable,
        limit_bytes=stats.capacity.limit_bytes,
        used_bytes=stats.capacity.used_bytes,
        records=stats.capacity.records,
        hits=stats.hits,
        hit_bytes=stats.hit_bytes,
        corrupt=stats.corrupt,
        errors=stats.errors,
        evictions=stats.capacity.evictions,
        promotions=stats.promotions,
        shared=stats.shared,
        eviction=stats.capacity.eviction,
    )


def _stage(stats: StageStats) -> tenancy.StageStats:
    return tenancy.StageStats(
        stats.tier,
        stats.dirty_bytes,
        stats.dirty_bytes_max,
        stats.dirty_records,
        stats.written,
        stats.failures,
        stats.dropped,
    )


def _tenant(stats: TenantStats) -> tenancy.TenantStats:
    return tenancy.TenantStats(
        stats.namespace,
        stats.puts,
        stats.put_bytes,
        stats.hits,
        stats.hit_bytes,
        stats.misses,
        stats.pinned_bytes,
        tuple(
            tenancy.TenantTier(
                item.tier,
                item.holdings.used_bytes,
                item.holdings.records,
                item.holdings.evictions,
                item.holdings.limit_bytes,
            )
            for item in stats.tiers
        ),
    )
