"""Reading one chunk from wherever it is: tier after tier, damage deleted, levels joined."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...codec.container import ContainerHeader
from ...codec.level import Level
from ...errors import KvloomError, LevelNotStored
from ...tracing import span
from ..expiry import later_expiry
from ..key import ContentKey, StorageKey
from ..key_locks import KeyLocks
from ..outcome import Corrupt, Hit, Miss, Outcome, Throttled, Unavailable, more_telling
from ..tier import Record, Tier
from .cascade import Cascade
from .chunk_reader import ChunkRead, Copy, is_sound, read_chunk, read_head, read_whole, verified_header
from .copies import Copies
from .merge import covers, merge_containers
from .roles import Roles
from .tally import Tally

__all__ = ["Reading", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a read asks for: the key of its single flight."""

    storage_key: StorageKey
    level: Level | None
    layers: range | None


class Reading:
    """The reads of a store. Safe to cancel."""

    def __init__(
        self,
        roles: Roles,
        cascade: Cascade,
        copies: Copies,
        locks: KeyLocks,
        tally: Tally,
        on_hit: Callable[[Copy, ChunkRead, int], None],
        mark: Callable[[], int],
    ) -> None:
        """``on_hit`` is told which copy answered, with what, and the ``mark`` that was taken before it was read."""
        self._roles = roles
        self._cascade = cascade
        self._copies = copies
        self._locks = locks
        self._tally = tally
        self._on_hit = on_hit
        self._mark = mark
        self._under_way: Counter[str] = Counter()

    async def read(self, wanted: Wanted, key: ContentKey) -> Outcome[ChunkRead]:
        """The first copy that has what is wanted; raises :class:`LevelNotStored` where copies are, but none with it."""
        worst: Outcome[ChunkRead] = Miss()
        not_stored: LevelNotStored | None = None
        mark = self._mark()
        for copy in self._copies.of(wanted.storage_key, key):
            try:
                outcome = await self._timed(copy, wanted)
                if isinstance(outcome, Corrupt) and not await self._discarded(copy, outcome):
                    outcome = await read_chunk(copy, level=wanted.level, layers=wanted.layers)
            except LevelNotStored as error:
                not_stored = error
                continue
            if isinstance(outcome, Hit):
                self._on_hit(copy, outcome.value, mark)
                return outcome
            if isinstance(outcome, Unavailable | Throttled):
                self._tally.note_error(copy.tier, "get", str(outcome))
            worst = more_telling(worst, outcome)
        if not_stored is not None:
            raise not_stored
        return worst

    async def read_at_hand(self, wanted: Wanted, key: ContentKey, caller_verifies: bool) -> Hit[ChunkRead] | None:
        """All of a chunk out of a tier that has it in memory, with nothing to wait for; None: :meth:`read` it."""
        if wanted.level is not None or wanted.layers is not None:
            return None
        mark = self._mark()
        for tier in self._roles.volatile:
            if not tier.sums_words:
                continue
            copy = self._copies.in_tier(tier, wanted.storage_key, key)
            outcome = await _read(copy, wanted, caller_verifies=caller_verifies)
            if isinstance(outcome, Hit):
                self._on_hit(copy, outcome.value, mark)
                return outcome
        return None

    async def _timed(self, copy: Copy, wanted: Wanted) -> Outcome[ChunkRead]:
        """What is wanted of one copy; the observer is told how long a read took that was answered."""
        self._under_way[copy.tier] += 1
        begun = time.perf_counter()
        concurrent = self._under_way[copy.tier]
        try:
            outcome = await _read(copy, wanted)
        finally:
            self._under_way[copy.tier] -= 1
        if isinstance(outcome, Hit):
            seconds = time.perf_counter() - begun
            self._tally.observer.on_read(copy.tier, outcome.value.total_bytes, seconds, concurrent)
        return outcome

    async def joined(self, record: Record, header: ContainerHeader) -> Record:
        """``record`` with what this store's own tiers have under its key. Hold the key's lock.

        Nothing stored is taken away: the result has the levels of both, and the later expiry of the two.
        """
        for copy in self._copies.of(record.storage_key, record.content_key, shared=False):
            joined = await _joined(copy, record, header)
            if joined is not None:
                return joined
        return record

    async def joined_with_shared(self, tier: Tier, record: Record) -> Record:
        """``record`` with what ``tier``, a shared one, has under its key, whoever put it there.

        What cannot be joined is replaced: nobody waits for an answer by now.
        """
        copy = self._copies.in_tier(tier, record.storage_key, record.content_key)
        header = await verified_header(record.payload, record.content_key)
        try:
            return await _joined(copy, record, header) or record
        except KvloomError as error:
            self._tally.note_error(tier.name, "join", str(error))
            return record

    async def forget(self, tier: Tier, place: StorageKey) -> None:
        """Delete a copy that must not stay; a tier that cannot is counted."""
        try:
            if await tier.delete(place):
                self._tally.observer.on_removed(tier.name, place)
        except KvloomError as error:
            self._tally.note_error(tier.name, "delete", str(error))

    async def _discarded(self, copy: Copy, found: Corrupt) -> bool:
        """Count a damaged copy and delete it if it still is damaged now that nobody can be replacing it."""
        self._tally.note_corrupt(copy.tier, copy.content_key, found.detail)
        async with self._locks_of(copy).hold(copy.storage_key):
            if await is_sound(copy):
                return False
            tier = self._roles.named(copy.tier)
            if tier is not None:
                await self.forget(tier, copy.storage_key)
        return True

    def _locks_of(self, copy: Copy) -> KeyLocks:
        return next((stage.locks for stage in self._cascade.shared if stage.tier.name == copy.tier), self._locks)


async def _read(copy: Copy, wanted: Wanted, *, caller_verifies: bool = False) -> Outcome[ChunkRead]:
    with span("tier.get", tier=copy.tier) as reading:
        outcome = await read_chunk(copy, level=wanted.level, layers=wanted.layers, caller_verifies=caller_verifies)
        reading.set("outcome", type(outcome).__name__)
    return outcome


async def _joined(copy: Copy, record: Record, header: ContainerHeader) -> Record | None:
    """``record`` and what is in ``copy`` as one; ``None`` where nothing is there that could be joined."""
    head = await read_head(copy)
    if not isinstance(head, Hit):
        return None
    expires_at_ms = later_expiry(record.expires_at_ms, head.value.info.expires_at_ms)
    if record.attributes.parent is None and head.value.info.attributes.parent is not None:
        record = replace(record, attributes=head.value.info.attributes)  # who put it first knew more
    if covers(header, head.value.header):
        return replace(record, expires_at_ms=expires_at_ms)
    old = await read_whole(copy)
    if not isinstance(old, Hit):
        return None
    merged = await asyncio.to_thread(merge_containers, old.value.parts[0], record.payload)
    return replace(record, payload=merged, expires_at_ms=expires_at_ms)
