"""What a wrapper is not about reaches the tier behind it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from kvloom.errors import StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import OwnerId
from kvloom.kvstore.keyring import Keyring
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.tier import UNOWNED, RecordInfo, Tier
from kvloom.kvstore.wrappers.checksum import ChecksumTier
from kvloom.kvstore.wrappers.encrypt import EncryptTier
from kvloom.kvstore.wrappers.fault import FaultTier, NoFaults
from kvloom.kvstore.wrappers.passing import PassingTier

Wrap: TypeAlias = Callable[[Tier, Path], Tier]
WRAPPERS: list[Wrap] = [
    lambda inner, _: PassingTier(inner),
    lambda inner, _: ChecksumTier(inner),
    lambda inner, _: FaultTier(inner, NoFaults()),
    lambda inner, folder: EncryptTier(inner, Keyring(folder / "keys", bytes(range(32)))),
]


class EngineTier(MemoryTier):
    """Has a backend that can be away, and that lists and deletes by owner itself."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.asked: list[str] = []

    async def ping(self) -> None:
        raise StorageUnavailable("away")

    async def scan_owner(self, owner: OwnerId) -> AsyncIterator[RecordInfo]:
        self.asked.append("scan_owner")
        async for info in super().scan_owner(owner):
            yield info

    async def delete_owner(self, owner: OwnerId) -> int:
        self.asked.append("delete_owner")
        return await super().delete_owner(owner)


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_backend_that_is_away_is_noticed_through_a_wrapper(wrap: Wrap, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="away"):
        await wrap(EngineTier(), tmp_path).ping()


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_listing_of_an_owner_is_the_backends_own(wrap: Wrap, tmp_path: Path) -> None:
    inner = EngineTier()
    tier = wrap(inner, tmp_path)
    await tier.put(make_record(1, 100))
    assert [info.payload_bytes async for info in tier.scan_owner(UNOWNED)] == [100]
    assert "scan_owner" in inner.asked


@pytest.mark.parametrize("wrap", [wrap for wrap in WRAPPERS if wrap is not WRAPPERS[2]])
async def test_deletion_of_an_owner_is_the_backends_own(wrap: Wrap, tmp_path: Path) -> None:
    inner = EngineTier()
    tier = wrap(inner, tmp_path)
    await tier.put(make_record(1, 100))
    assert await tier.delete_owner(UNOWNED) == 1
    assert "delete_owner" in inner.asked
    assert inner.capacity().records == 0


def test_no_operation_of_a_tier_is_forgotten() -> None:
    """``usage`` alone is counted from the listing, whose lengths are those that were put."""
    operations = {name for name, item in vars(Tier).items() if callable(item) and not name.startswith("_")}
    assert operations - vars(PassingTier).keys() == {"usage"}
