# ruff: noqa: S101
"""What the conformance suite is made of: records whose content anybody can make again, and a tier to try."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from blake3 import blake3

from ...codec.container import ByteRange
from ..attributes import ChunkAttributes
from ..key import KEY_BYTES, OWNER_BYTES, ContentKey, OwnerId, StorageKey
from ..outcome import Hit
from ..tier import NEVER, UNOWNED, Record, Slice, Tier

__all__ = ["TierCase", "bytes_of", "make_record", "read_whole"]


def make_record(
    number: int,
    size_bytes: int,
    *,
    version: int = 0,
    stored_at_ms: int = 1_700_000_000_000,
    owner: OwnerId = UNOWNED,
    expires_at_ms: int = NEVER,
) -> Record:
    """Record ``number``: its keys depend on owner and number only, its payload on number, version and size.

    It stands behind record ``number - 1``, so that a tier that loses attributes does not give back what was put.
    """
    content_key = ContentKey(blake3(f"content {number}".encode()).digest())
    place, before = (
        StorageKey(owner + blake3(f"storage {item}".encode()).digest(KEY_BYTES - OWNER_BYTES))
        for item in (number, number - 1)
    )
    attributes = ChunkAttributes(before if number else None, 256 * number, 200)
    payload = Random(f"{number}/{version}/{size_bytes}").randbytes(size_bytes)  # noqa: S311 - test content
    return Record(place, content_key, payload, stored_at_ms + version, owner, expires_at_ms, attributes)


async def read_whole(tier: Tier, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Slice:
    """The record, which must be there."""
    outcome = await tier.get(key, ranges)
    assert isinstance(outcome, Hit), outcome
    return outcome.value


def bytes_of(found: Slice) -> bytes:
    """Everything that was asked for, as one value."""
    return b"".join(bytes(part) for part in found.parts)


class TierCase(ABC):
    """A tier under test; the limits and sizes below suit tiers whose smallest capacity is a few MiB."""

    limit_bytes = 4 * 1024 * 1024
    record_bytes = 20_000
    evicts_least_recently_used = True
    """Whether the tier made here evicts in order of last use; the test of the order is left out where it does not."""
    bounded = True
    """Whether the tier made here keeps to ``limit_bytes`` by itself; a shared one leaves that to its engine."""
    listed_records = 1100
    churned_records = 100
    visitors = 40
    """Records in the tests of long listings, of changes during one, and of concurrent use; fewer where each is slow."""

    @abstractmethod
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        """A tier on ``directory``; a durable one finds there what an earlier one has left."""

    @asynccontextmanager
    async def opened(self, directory: Path, limit_bytes: int | None = None) -> AsyncIterator[Tier]:
        """A tier, closed at the end. Made in a worker thread, since opening may block."""
        tier = await asyncio.to_thread(self.make_tier, directory, limit_bytes or self.limit_bytes)
        try:
            yield tier
        finally:
            await tier.close()

    async def fill(self, tier: Tier, *, times: int) -> None:
        """Put ``times`` as many bytes as the limit has, several records at once."""
        numbers = range(1000, 1000 + times * self.limit_bytes // self.record_bytes)
        for start in range(0, len(numbers), 16):
            await asyncio.gather(
                *(tier.put(make_record(number, self.record_bytes)) for number in numbers[start : start + 16])
            )

    async def count(self, tier: Tier) -> int:
        """The records in ``tier``: by its capacity where that is live, else by listing them."""
        return tier.capacity().records if self.bounded else len([info async for info in tier.scan()])
