"""The pool: decoded chunks by content key, level and position, loaded when they are asked for.

A resident chunk is handed out as a lease on its pages: an engine attends to them in place, others copy them out. What
is not resident is got from the source, decoded into pages and kept, one flight per chunk; a chunk that stands at
another position is rotated on the device instead. What an engine computes is put in and stored behind its back.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ... import limits
from ...codec.cuda.paged import PagedKv
from ...codec.entropy.native import THREADS
from ...codec.layout import Layout
from ...codec.level import EXACT
from ...errors import InvalidRequest, InvalidTensor, StorageUnavailable
from ..key import OwnerId
from ..outcome import Hit
from ..quota import QuotaPolicy
from ..tier import UNOWNED, Holdings
from .arrays import HostArrays, Mark, PoolArrays
from .filling import TIER
from .flights import BatchFlights
from .journal import Changes
from .lease import PoolLease
from .loading import Got, Loading, release
from .pages import KvViews, PageArena
from .residency import Residency
from .source import ChunkSource, ChunkWanted, Encoding
from .write_behind import WriteBehind

__all__ = ["DecodedPool", "PoolRules", "PoolStats"]


@dataclass(frozen=True, slots=True)
class PoolRules:
    """What a pool does where there is a choice. ``dirty_bytes_max`` is cut down to half of the pool."""

    page_tokens: int = limits.POOL_PAGE_TOKENS_DEFAULT
    dirty_bytes_max: int = limits.POOL_DIRTY_BYTES_MAX
    threads: int = THREADS
    """Chunks decoded or encoded on the host at once."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool now, and what has happened since it was made.

    ``loads`` are chunks decoded into it, ``moves`` those rotated from another position; ``unstored`` what the source
    refused to keep, ``leases_dropped`` leases that nobody released.
    """

    device: str
    limit_bytes: int
    used_bytes: int
    page_bytes: int
    chunks: int
    leased: int
    hits: int
    misses: int
    loads: int
    loaded_bytes: int
    moves: int
    corrupt: int
    refused: int
    evictions: int
    dirty_bytes: int
    stored: int
    unstored: int
    prefetches_dropped: int
    leases_dropped: int


class DecodedPool:
    """Pages of one layout in one place. Belongs to an event loop, but for what says otherwise; everything may be
    cancelled: then no page stays reserved, and the threads that fill pages are waited for.

    ``policy`` says who gives way (default: LRU per owner; a chunk that goes costs a load, not a prefill). Raises
    :class:`ConfigError` where the memory is not there.
    """

    def __init__(
        self,
        layout: Layout,
        source: ChunkSource,
        *,
        limit_bytes: int,
        arrays: PoolArrays | None = None,
        policy: QuotaPolicy | None = None,
        rules: PoolRules | None = None,
    ) -> None:
        rules = rules or PoolRules()
        self._arrays = arrays or HostArrays()
        with self._arrays.active():
            self._arena = PageArena(layout, self._arrays, limit_bytes=limit_bytes, page_tokens=rules.page_tokens)
        self.layout = layout
        self._residency = Residency(
            self._arena.pages,
            page_bytes=self._arena.page_bytes,
            policy=QuotaPolicy() if policy is None else policy,  # an empty one is falsy
            mark=self._mark,
            settle=self._settle,
        )
        self._loading = Loading(self._residency, self._arena, source, threads=rules.threads)
        self._flights = BatchFlights[ChunkWanted, Got](self._loading.share, release)
        self._write_behind = WriteBehind(
            self._loading.store, bytes_max=min(rules.dirty_bytes_max, self._arena.pages * self._arena.page_bytes // 2)
        )
        self._prefetches: set[asyncio.Task[None]] = set()
        self._misses = self._prefetches_dropped = 0
        self._closing = False

    @property
    def device(self) -> str:
        """Where the pages are."""
        return self._arrays.name

    @property
    def limit_bytes(self) -> int:
        """What the pages take: allocated once, never more."""
        return self._arena.pages * self._arena.page_bytes

    def paged(self) -> PagedKv:
        """All pages, for attention kernels that are given a lease's block table."""
        return self._arena.paged()

    async def get(self, wanted: ChunkWanted) -> Got:
        """:meth:`get_many` of one."""
        return (await self.get_many([wanted]))[0]

    async def get_many(self, wanted: Sequence[ChunkWanted]) -> list[Got]:
        """Lease chunks in the order of ``wanted``, loading what is not resident, in batches.

        A damaged chunk comes to :class:`Corrupt`, and one for which no page may be freed to :class:`Throttled`; it may
        be decoded elsewhere. Raises :class:`StorageUnavailable` once closed.
        """
        self._require_open()
        distinct = list(dict.fromkeys(wanted))
        found: dict[ChunkWanted, Got] = {}
        try:
            for item in distinct:
                lease = self._residency.find(item)
                if lease is not None:
                    found[item] = Hit(lease, TIER)
            absent = [item for item in distinct if item not in found]
            self._misses += len(absent)
            for start in range(0, len(absent), limits.POOL_BATCH_CHUNKS_MAX):
                batch = absent[start : start + limits.POOL_BATCH_CHUNKS_MAX]
                found.update(await self._flights.run(batch, self._loading.bring))
            return [found[item] if n == 0 else self._loading.share(found[item]) for item, n in _counted(wanted)]
        except BaseException:
            for outcome in found.values():
                release(outcome)
            raise

    def resident(self, wanted: ChunkWanted) -> PoolLease | None:
        """Lease a chunk if it is resident; nothing is loaded. From any thread."""
        return self._residency.find(wanted)

    def longest_prefix(self, wanted: Sequence[ChunkWanted]) -> int:
        """How many of the leading chunks are resident. From any thread; not a use."""
        return next((n for n, item in enumerate(wanted) if not self._residency.holds(item)), len(wanted))

    async def put(
        self, wanted: ChunkWanted, keys: KvViews, values: KvViews, *, encoding: Encoding | None = None
    ) -> bool:
        """Copy in what an engine has computed, ``[kv_heads, tokens, head_dim]`` per layer; False if it is resident.

        The arrays may change again when this returns. With ``encoding`` the chunk is encoded and stored soon, and not
        evicted before; without, its KV is stored already, or need not be. Raises :class:`StorageFull`,
        :class:`Overloaded` where too much waits to be stored, :class:`InvalidTensor`, :class:`InvalidRequest`.
        """
        self._require_open()
        if wanted.first_position is None or wanted.level != EXACT:
            raise InvalidRequest("what an engine has computed is put at level exact and at a position of its own")
        if not len(keys):
            raise InvalidTensor(f"keys have 0 layers, the layout has {len(self.layout.layers)}")
        size_bytes = self._arena.pages_of(int(keys[0].shape[1])) * self._arena.page_bytes if encoding else 0
        if self._residency.holds(wanted):
            return False
        if encoding:
            await self._write_behind.reserve(size_bytes)
        try:
            lease = await self._loading.write(wanted, wanted.first_position, keys, values)
        except BaseException:
            await self._write_behind.cancel(size_bytes)
            raise
        if encoding:
            self._write_behind.add(lease, encoding, size_bytes)
        else:
            lease.release()
        return True

    def prefetch(self, wanted: Sequence[ChunkWanted]) -> int:
        """Load chunks in the background; for how many that is under way or not needed. Nothing is promised."""
        self._require_open()
        absent = [item for item in wanted if not self._residency.holds(item)]
        if absent and len(self._prefetches) >= limits.POOL_PREFETCHES_MAX:
            self._prefetches_dropped += len(absent)
            return len(wanted) - len(absent)
        if absent:
            task = asyncio.create_task(self._prefetch(absent))
            self._prefetches.add(task)
            task.add_done_callback(self._prefetches.discard)
        return len(wanted)

    def copy_out(self, lease: PoolLease, keys: KvViews, values: KvViews, *, first_position: int | None = None) -> None:
        """Copy a leased chunk to arrays of one per layer ``[kv_heads, tokens, head_dim]``, from any thread.

        ``first_position`` is where it stands there (default: as in the pool); keys are rotated on their way, once more
        rounded. Raises :class:`InvalidTensor` and :class:`LayoutMismatch`.
        """
        moved_by = 0 if first_position is None else first_position - lease.first_position
        with self._arrays.active():
            self._arena.read(lease.pages, lease.tokens, keys, values, moved_by=moved_by)

    def forget(self, wanted: ChunkWanted) -> bool:
        """Forget a chunk, at the position wanted or at all; whether there was one. From any thread."""
        return self._residency.forget(wanted)

    def forget_owner(self, owner: OwnerId) -> int:
        """Forget all that is an owner's; how many chunks that was. From any thread."""
        return self._residency.forget_owner(owner)

    def hint(self, wanted: Sequence[ChunkWanted], *, finished: bool) -> None:
        """Tell the policy that chunks will not be used again, or will. From any thread."""
        for item in wanted:
            self._residency.hint(item, finished=finished)

    def watch(self, owner: OwnerId = UNOWNED) -> None:
        """Keep a journal of an owner's chunks, for :meth:`take_changes`."""
        self._residency.watch(owner)

    def take_changes(self, owner: OwnerId = UNOWNED, *, everything: bool = False) -> Changes:
        """What has changed since the last call, or all that is resident. From any thread."""
        return self._residency.take_changes(owner, everything=everything)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What an owner has in the pool. From any thread."""
        return self._residency.holdings(owner)

    def stats(self) -> PoolStats:
        """The pool now. From any thread."""
        counts = self._residency.counts()
        return PoolStats(
            device=self.device,
            limit_bytes=self.limit_bytes,
            used_bytes=(counts.pages - counts.pages_free) * self._arena.page_bytes,
            page_bytes=self._arena.page_bytes,
            chunks=counts.chunks,
            leased=counts.leased,
            hits=counts.hits,
            misses=self._misses,
            loads=self._loading.loads,
            loaded_bytes=self._loading.loaded_bytes,
            moves=self._loading.moves,
            corrupt=self._loading.corrupt,
            refused=self._loading.refused,
            evictions=counts.evictions,
            dirty_bytes=self._write_behind.dirty_bytes,
            stored=self._write_behind.stored,
            unstored=self._write_behind.failures,
            prefetches_dropped=self._prefetches_dropped,
            leases_dropped=counts.leases_dropped,
        )

    async def drained(self) -> None:
        """Wait until all that was put is stored, or refused."""
        await self._write_behind.drained()

    async def close(self) -> None:
        """Store what is left, end what runs. Idempotent; leases may still be released, nothing else works any more."""
        self._closing = True
        for task in list(self._prefetches):
            task.cancel()
        if self._prefetches:
            await asyncio.wait(self._prefetches)
        await self._write_behind.close()
        await self._loading.close()

    async def _prefetch(self, wanted: Sequence[ChunkWanted]) -> None:
        for outcome in await self.get_many(wanted):
            release(outcome)

    def _mark(self) -> Mark:
        with self._arrays.active():
            return self._arrays.mark()

    def _settle(self) -> None:
        with self._arrays.active():
            self._arrays.synchronise()

    def _require_open(self) -> None:
        if self._closing:
            raise StorageUnavailable("the pool is closed")


def _counted(wanted: Sequence[ChunkWanted]) -> Iterator[tuple[ChunkWanted, int]]:
    """Each item, and how often it came before."""
    seen: Counter[ChunkWanted] = Counter()
    for item in wanted:
        yield item, seen[item]
        seen[item] += 1
