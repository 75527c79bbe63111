"""What is in memory when a store closes, and having it in memory again when the next one opens.

Only keys are kept, in a file of the daemon's: the chunks themselves are read from the local disk, in the background,
while requests are served. What has been deleted, has expired or is on no disk is left out, and so is what would push
something else out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from ... import limits
from ...errors import InvalidData
from ..key import KEY_BYTES, ContentKey, StorageKey
from .copies import Copies
from .promotion import Promoter
from .roles import Roles

__all__ = ["Resident", "Warming", "decode_residents", "encode_residents"]

_MAGIC: Final = b"KVLW\x01"
_ENTRY_BYTES: Final = 2 * KEY_BYTES
_FULL_SHARE: Final = 0.8
"""The rest is for what is put meanwhile, and for what is on its way when this is reached."""
_AT_ONCE_MAX: Final = 2
_PAUSE_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class Resident:
    """One record, by both of its keys."""

    storage_key: StorageKey
    content_key: ContentKey


def encode_residents(residents: Sequence[Resident]) -> bytes:
    """The first :data:`limits.WARM_RECORDS_MAX` of them as a file, with a digest behind them."""
    kept = residents[: limits.WARM_RECORDS_MAX]
    data = _MAGIC + b"".join(item.storage_key + item.content_key for item in kept)
    return data + blake3(data).digest()


def decode_residents(data: bytes) -> list[Resident]:
    """What :func:`encode_residents` wrote; :class:`InvalidData` for anything else."""
    body, digest = data[:-KEY_BYTES], data[-KEY_BYTES:]
    entries = body[len(_MAGIC) :]
    if not body.startswith(_MAGIC) or len(entries) % _ENTRY_BYTES or blake3(body).digest() != digest:
        raise InvalidData(f"{len(data)} bytes are no list of records that were in memory")
    return [
        Resident(
            StorageKey(entries[place : place + KEY_BYTES]),
            ContentKey(entries[place + KEY_BYTES : place + _ENTRY_BYTES]),
        )
        for place in range(0, len(entries), _ENTRY_BYTES)
    ]


class Warming:
    """Lists and fills the fastest tier of a store."""

    def __init__(
        self,
        roles: Roles,
        copies: Copies,
        promoter: Promoter,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._roles, self._copies, self._promoter, self._sleep = roles, copies, promoter, sleep

    async def residents(self) -> list[Resident]:
        """What is in the fastest tier now; at most :data:`limits.WARM_RECORDS_MAX`."""
        found: list[Resident] = []
        for tier in self._roles.volatile[:1]:
            async for info in tier.scan():
                found.append(Resident(info.storage_key, info.content_key))
                if len(found) == limits.WARM_RECORDS_MAX:
                    break
        return found

    async def fill(self, residents: Sequence[Resident]) -> int:
        """Have what is on the local disk copied to the fastest tier until it is almost full; how many were asked for.

        Two at a time and only while nothing else is promoted, so that requests come first. Safe to cancel.
        """
        if not self._roles.volatile or not self._roles.durable:
            return 0
        asked = 0
        fastest = self._roles.volatile[0]
        evictions = fastest.capacity().evictions
        for batch in _batches(residents):
            present = await fastest.contains_many([item.storage_key for item in batch])
            for item, is_there in zip(batch, present, strict=True):
                if is_there:
                    continue
                while self._promoter.unfinished >= _AT_ONCE_MAX:
                    await self._sleep(_PAUSE_SECONDS)
                capacity = fastest.capacity()
                if capacity.evictions > evictions or capacity.used_bytes > _FULL_SHARE * capacity.limit_bytes:
                    return asked
                sources = [
                    (self._copies.in_tier(tier, item.storage_key, item.content_key), (fastest,))
                    for tier in self._roles.durable
                ]
                asked += self._promoter.fetch(item.storage_key, sources)
        return asked


def _batches(residents: Sequence[Resident]) -> Iterator[Sequence[Resident]]:
    for start in range(0, len(residents), limits.KEYS_PER_REQUEST_MAX):
        yield residents[start : start + limits.KEYS_PER_REQUEST_MAX]
