"""How a chunk that is not resident comes to be: got from the source and decoded, or rotated from another position."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from ... import limits
from ...codec.level import Level
from ...errors import KvloomError, StorageFull, StorageUnavailable
from ..key import StorageKey
from ..outcome import Corrupt, Hit, Miss, Outcome, Throttled
from .filling import TIER, Arrival, Filler, Refused, outcome_of
from .flights import until_done
from .lease import PoolLease
from .pages import KvViews, PageArena
from .residency import Chunk, Residency
from .source import ChunkSource, ChunkWanted, Encoding

__all__ = ["Got", "Loading", "release"]

R = TypeVar("R")
Got = Outcome[PoolLease]
_RETRY_SECONDS = 0.05


def release(outcome: Got) -> None:
    """Let go of what was got, if it was a lease."""
    if isinstance(outcome, Hit):
        outcome.value.release()


class Loading:
    """Fills pages, in threads. A place is filled by one at a time, and pages are given back only when no thread writes
    to them any more: a caller that is cancelled meanwhile waits for that.
    """

    def __init__(self, residency: Residency, arena: PageArena, source: ChunkSource, *, threads: int) -> None:
        self._residency = residency
        self._arena = arena
        self._source = source
        self._filler = Filler(arena)
        self._claims: dict[StorageKey, asyncio.Future[None]] = {}
        """Places being filled, and what is done when they no longer are."""
        self._fillers = ThreadPoolExecutor(threads, thread_name_prefix="kvloom-pool-fill")
        self._callers = ThreadPoolExecutor(limits.POOL_LOADS_MAX, thread_name_prefix="kvloom-pool-load")
        self._closed = False
        self.loads = self.loaded_bytes = self.moves = self.corrupt = self.refused = 0

    async def bring(self, wanted: Sequence[ChunkWanted]) -> list[Got]:
        """Move or load distinct chunks; a lease of each, in their order."""
        found: dict[ChunkWanted, Got] = {}
        crowded: set[ChunkWanted] = set()
        """Resident elsewhere, without room beside it: once loaded, what is there may give way to it."""
        try:
            for item in wanted:
                try:
                    moved = await self._move(item)
                except StorageFull:
                    crowded.add(item)
                else:
                    if moved is not None:
                        found[item] = moved
            by_level: dict[Level, list[ChunkWanted]] = {}
            for item in wanted:
                if item not in found:
                    by_level.setdefault(item.level, []).append(item)
            for level, items in by_level.items():
                read = await self._call(partial(self._read, items, level))
                for item, came in zip(items, read, strict=True):
                    if not isinstance(came, Arrival):
                        found[item] = self._no_room() if item in crowded and isinstance(came, Miss) else came
                await self._decode([item for item in read if isinstance(item, Arrival)], found)
        except BaseException:
            for outcome in found.values():
                release(outcome)
            raise
        self.corrupt += sum(isinstance(outcome, Corrupt) for outcome in found.values())
        return [found[item] for item in wanted]

    async def fill(
        self, wanted: ChunkWanted, first_position: int, tokens: int, work: Callable[[Chunk], None], *, original: bool
    ) -> PoolLease:
        """A lease of the chunk at that position: resident already, or filled by ``work``, whose error is raised.

        Raises :class:`StorageFull`.
        """
        place = wanted.place(first_position)
        async with self._claimed([place]):
            lease = self._residency.find_at(wanted, first_position)
            if lease is not None:
                return lease
            pages = self._arena.pages_of(tokens)
            chunk = self._residency.reserve(wanted, first_position, tokens, pages=pages, original=original)
            try:
                await self._filled([partial(work, chunk)])
            except BaseException:
                self._residency.abandon(chunk)
                raise
            return self._residency.commit(chunk)

    async def write(self, wanted: ChunkWanted, first_position: int, keys: KvViews, values: KvViews) -> PoolLease:
        """:meth:`fill` with what an engine has computed."""
        tokens = int(keys[0].shape[1])
        work = partial(self._filler.write, keys=keys, values=values)
        return await self.fill(wanted, first_position, tokens, work, original=True)

    async def store(self, lease: PoolLease, encoding: Encoding) -> None:
        """Encode a chunk and have the source keep it; raises :class:`KvloomError`."""
        (container,) = await self._filled([partial(self._filler.encode, lease.chunk, encoding)])
        await self._call(partial(self._source.store, lease.content_key, container, encoding.parent))

    async def close(self) -> None:
        """Wait for the threads; nothing is filled any more."""
        self._closed = True
        await asyncio.to_thread(self._fillers.shutdown)
        await asyncio.to_thread(self._callers.shutdown)

    async def _move(self, wanted: ChunkWanted) -> Got | None:
        """The chunk rotated from where it is resident; None where it is nowhere, or no rotation does that.

        Raises :class:`StorageFull`.
        """
        position = wanted.first_position
        source = None if position is None or not self._arena.movable else self._residency.find_original(wanted)
        if position is None or source is None:
            return None
        with source:
            work = partial(self._filler.move, source.chunk)
            lease = await self.fill(wanted, position, source.tokens, work, original=False)
            self.moves += 1
            return Hit(lease, TIER)

    def _read(self, wanted: Sequence[ChunkWanted], level: Level) -> list[Arrival | Refused | Throttled]:
        """Read chunks from the source and judge them; in a thread."""
        judged: list[Arrival | Refused | Throttled] = []
        outcomes = self._source.load([item.content_key for item in wanted], level)
        for item, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, Hit):
                judged.append(self._filler.judge(item, outcome.value, self._source.profile))
            else:
                judged.append(outcome)
        return judged

    async def _decode(self, arrivals: Sequence[Arrival], found: dict[ChunkWanted, Got]) -> None:
        """Reserve pages, decode into them, and add to ``found`` what each came to."""
        by_place: dict[StorageKey, list[Arrival]] = {}
        for item in arrivals:
            by_place.setdefault(item.wanted.place(item.first_position), []).append(item)
        async with self._claimed(list(by_place)):
            outcomes = await self._decode_claimed([items[0] for items in by_place.values()])
        for items, outcome in zip(by_place.values(), outcomes, strict=True):
            found[items[0].wanted] = outcome
            for item in items[1:]:  # the same position, once by its number and once as what the chunk has
                found[item.wanted] = self.share(outcome)

    async def _decode_claimed(self, arrivals: Sequence[Arrival]) -> list[Got]:
        outcomes: list[Got | None] = [self._lease_at(item) for item in arrivals]
        chunks: dict[int, Chunk] = {}
        try:
            for index, item in enumerate(arrivals):
                if outcomes[index] is None:
                    try:
                        chunks[index] = self._reserve(item)
                    except StorageFull:
                        outcomes[index] = self._no_room()
            works = self._works([(arrivals[index], chunk) for index, chunk in chunks.items()])
            failures = [failure for batch in await self._filled(works) for failure in batch]
        except BaseException:
            for chunk in chunks.values():
                self._residency.abandon(chunk)
            for outcome in outcomes:
                if outcome is not None:
                    release(outcome)
            raise
        for (index, chunk), failure in zip(chunks.items(), failures, strict=True):
            if failure is not None:
                self._residency.abandon(chunk)
                outcomes[index] = outcome_of(failure)
            else:
                self.loads += 1
                self.loaded_bytes += len(arrivals[index].container.data)
                outcomes[index] = Hit(self._residency.commit(chunk), TIER)
        return [outcome for outcome in outcomes if outcome is not None]

    def _works(self, items: Sequence[tuple[Arrival, Chunk]]) -> list[Callable[[], Sequence[KvloomError | None]]]:
        """What fills them: one call for all where the device takes batches, one each for the threads of a host."""
        groups = [items] if self._filler.takes_batches else [[item] for item in items]
        return [partial(self._filler.fill, [a for a, _ in own], [c for _, c in own]) for own in groups if own]

    def _lease_at(self, item: Arrival) -> Got | None:
        lease = self._residency.find_at(item.wanted, item.first_position)
        return None if lease is None else Hit(lease, TIER)

    def _reserve(self, item: Arrival) -> Chunk:
        tokens = item.container.header.tokens
        pages = self._arena.pages_of(tokens)
        return self._residency.reserve(
            item.wanted, item.first_position, tokens, pages=pages, original=not item.is_turned
        )

    def share(self, outcome: Got) -> Got:
        """The same outcome with a lease of its own."""
        return Hit(self._residency.share(outcome.value), TIER) if isinstance(outcome, Hit) else outcome

    def _no_room(self) -> Throttled:
        self.refused += 1
        return Throttled(TIER, _RETRY_SECONDS)

    @asynccontextmanager
    async def _claimed(self, places: Sequence[StorageKey]) -> AsyncIterator[None]:
        """Be the one who fills these places. All are claimed at once, so that no two wait for each other."""
        while busy := [self._claims[place] for place in places if place in self._claims]:
            await asyncio.wait(busy)
        done = asyncio.get_running_loop().create_future()
        self._claims.update(dict.fromkeys(places, done))
        try:
            yield
        finally:
            for place in places:
                del self._claims[place]
            done.set_result(None)

    async def _call(self, work: Callable[[], R]) -> R:
        """Run what waits for the source, in a thread; who is cancelled leaves it to itself."""
        self._require_open()
        return await asyncio.wrap_future(self._callers.submit(work))

    async def _filled(self, works: Sequence[Callable[[], R]]) -> list[R]:
        """Run what reads or writes pages, in threads; who is cancelled waits until none of it runs."""
        self._require_open()
        futures = [self._fillers.submit(work) for work in works]
        done = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        try:
            results = await asyncio.shield(done)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            await until_done(done)
            raise
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnavailable("the pool is closed")
