"""Where a chunk may be found, from fast to slow: volatile tiers, records being written, durable tiers, shared tiers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from ...codec.container import ByteRange
from ...errors import StorageUnavailable
from ..key import ContentKey, StorageKey
from ..outcome import Hit, Miss, Outcome, Unavailable
from ..tier import Slice, Tier, is_expired
from .cascade import Cascade
from .chunk_reader import Copy
from .roles import Roles

__all__ = ["WRITE_BEHIND", "Copies"]

WRITE_BEHIND: Final = "write-behind"
"""The name under which the queues of records being written answer reads."""


class Copies:
    """Lists the places to ask for a chunk, each as something that can be read. What has expired is a miss in each."""

    def __init__(self, roles: Roles, cascade: Cascade, clock_ms: Callable[[], int]) -> None:
        self._roles = roles
        self._cascade = cascade
        self._clock_ms = clock_ms

    def of(self, place: StorageKey, key: ContentKey, *, shared: bool = True) -> Iterator[Copy]:
        """The places, one after another; whether the chunk is there shows when it is read."""
        yield from self._in_tiers(self._roles.volatile, place, key)
        if self._cascade.find(place) is not None:
            yield Copy(WRITE_BEHIND, place, key, lambda ranges: self._read_dirty(place, ranges))
        yield from self._in_tiers(self._roles.durable, place, key)
        if shared:
            yield from self._in_tiers(self._roles.shared, place, key)

    def in_tier(self, tier: Tier, place: StorageKey, key: ContentKey) -> Copy:
        """The chunk in one tier; a tier that is closed or fails answers :class:`Unavailable`."""

        async def read(ranges: Sequence[ByteRange] | None) -> Outcome[Slice]:
            try:
                return self._live(await tier.get(place, ranges))
            except StorageUnavailable as error:
                return Unavailable(tier.name, str(error))

        return Copy(tier.name, place, key, read, whole_at_once=tier.shared or tier.sums_words)

    async def local_bytes(self, place: StorageKey) -> int | None:
        """The length of what is at ``place`` in a local tier or on its way to one; ``None`` where nothing is."""
        waiting = self._cascade.find(place)
        if waiting is not None and not is_expired(waiting.expires_at_ms, self._clock_ms()):
            return len(waiting.payload)
        for tier in self._roles.local:
            try:
                found = self._live(await tier.get(place, ()))
            except StorageUnavailable:
                continue
            if isinstance(found, Hit):
                return found.value.info.payload_bytes
        return None

    def _in_tiers(self, tiers: Iterable[Tier], place: StorageKey, key: ContentKey) -> Iterator[Copy]:
        for tier in tiers:
            yield self.in_tier(tier, place, key)

    async def _read_dirty(self, place: StorageKey, ranges: Sequence[ByteRange] | None) -> Outcome[Slice]:
        record = self._cascade.find(place)
        if record is None:
            return Miss()
        view = memoryview(record.payload).toreadonly()
        wanted = (ByteRange(0, len(view)),) if ranges is None else ranges
        parts = tuple(view[item.start : item.stop] for item in wanted)
        return self._live(Hit(Slice(record.info, parts), WRITE_BEHIND))

    def _live(self, found: Outcome[Slice]) -> Outcome[Slice]:
        if isinstance(found, Hit) and is_expired(found.value.info.expires_at_ms, self._clock_ms()):
            return Miss()
        return found
