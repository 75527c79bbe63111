"""What is stored: presence, prefixes and listings over all tiers, without what has expired."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import not_

from ...codec.container import ContainerHeader
from ...errors import KvloomError
from ..key import ContentKey, StorageKey, storage_key, storage_keys
from ..namespace import Namespace
from ..tier import RecordInfo, Tier, is_expired
from .cascade import Cascade
from .copies import WRITE_BEHIND
from .roles import Roles
from .tally import Tally

__all__ = ["Listing", "StoredChunk"]

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
    expires_at_ms: int = 0


class Listing:
    """Questions that read no chunk. A tier that cannot answer counts as empty, and is counted."""

    def __init__(self, roles: Roles, cascade: Cascade, tally: Tally, clock_ms: Callable[[], int]) -> None:
        self._roles = roles
        self._cascade = cascade
        self._tally = tally
        self._clock_ms = clock_ms

    async def present(self, places: Sequence[StorageKey]) -> list[bool]:
        """For each place, whether it holds something."""
        return [tier is not None for tier in await self.nearest(places)]

    async def nearest(self, places: Sequence[StorageKey]) -> list[str | None]:
        """For each place, what would be read first, or ``None``; a tier is asked only about what the faster ones lack.

        What is being written counts as :data:`WRITE_BEHIND`, before all tiers.
        """
        found: list[str | None] = [None] * len(places)
        if not self._cascade.is_empty:
            found = [WRITE_BEHIND if self._is_dirty(place) else None for place in places]
        missing = [index for index, known in enumerate(found) if known is None]
        for tier in self._roles.all if missing else ():
            answers = await self.ask(tier, [places[index] for index in missing])
            for index in compress(missing, answers):
                found[index] = tier.name
            missing = list(compress(missing, map(not_, answers)))
            if not missing:
                break
        return found

    async def longest_prefix(self, namespace: Namespace, keys: Sequence[ContentKey]) -> int:
        """How many of the leading ``keys`` are stored without a gap."""
        for start in range(0, len(keys), _PREFIX_KEYS):
            page = keys[start : start + _PREFIX_KEYS]
            found = await self.present(storage_keys(namespace.secret, page))
            if not all(found):
                return start + found.index(False)
        return len(keys)

    async def scan(self, namespace: Namespace) -> AsyncIterator[StoredChunk]:
        """The namespace's chunks, each once, in no particular order."""
        seen: set[StorageKey] = set()
        for chunk in await self._listed(namespace, [record.info for record in self._cascade.records()], seen):
            yield chunk
        for tier in self._roles.all:
            page: list[RecordInfo] = []
            try:
                async for info in tier.scan_owner(namespace.owner):
                    page.append(info)
                    if len(page) == _SCAN_RECORDS:
                        for chunk in await self._listed(namespace, page, seen):
                            yield chunk
                        page = []
            except KvloomError as error:
                self._tally.note_error(tier.name, "scan", str(error))
            for chunk in await self._listed(namespace, page, seen):
                yield chunk

    async def holders(self, place: StorageKey) -> tuple[str, ...]:
        """The names of the tiers that have something at ``place``, from fast to slow."""
        return tuple([tier.name for tier in self._roles.all if (await self.ask(tier, [place]))[0]])

    async def ask(self, tier: Tier, places: Sequence[StorageKey]) -> list[bool]:
        """For each place, whether ``tier`` holds something there."""
        try:
            return await tier.contains_live(places, self._clock_ms())
        except KvloomError as error:
            self._tally.note_error(tier.name, "contains", str(error))
            return [False] * len(places)

    def _is_dirty(self, place: StorageKey) -> bool:
        record = self._cascade.find(place)
        return record is not None and not is_expired(record.expires_at_ms, self._clock_ms())

    async def _listed(
        self, namespace: Namespace, infos: Sequence[RecordInfo], seen: set[StorageKey]
    ) -> list[StoredChunk]:
        """Those of ``infos`` that are the namespace's own, not expired, and not ``seen``; they are from now on."""
        now_ms = self._clock_ms()
        own = [
            info
            for info in infos
            if info.storage_key not in seen
            and not is_expired(info.expires_at_ms, now_ms)
            and storage_key(namespace.secret, info.content_key) == info.storage_key
        ]
        places = [info.storage_key for info in own]
        seen.update(places)
        holders: list[list[str]] = [[] for _ in own]
        for tier in self._roles.all if own else ():
            for names, held in zip(holders, await self.ask(tier, places), strict=True):
                names.extend([tier.name] if held else [])
        return [
            StoredChunk(
                info.content_key,
                info.payload_bytes,
                info.stored_at_ms,
                tuple(names or [WRITE_BEHIND]),
                expires_at_ms=info.expires_at_ms,
            )
            for info, names in zip(own, holders, strict=True)
        ]
