"""Every tier of kvloom, bare and wrapped, passes the shipped suite."""

from pathlib import Path

from kvloom.kvstore.conformance.tier import TierConformance
from kvloom.kvstore.keyring import Keyring
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Tier
from kvloom.kvstore.wrappers.checksum import ChecksumTier
from kvloom.kvstore.wrappers.encrypt import EncryptTier
from kvloom.kvstore.wrappers.fault import FaultTier, NoFaults


def encrypted(inner: Tier, directory: Path) -> Tier:
    return EncryptTier(inner, Keyring(directory / "keys", bytes(range(32))))


class TestMemory(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return MemoryTier(limit_bytes)


class TestMemoryWithChecksum(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return ChecksumTier(MemoryTier(limit_bytes))


class TestMemoryWithFaults(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return FaultTier(MemoryTier(limit_bytes), NoFaults())


class TestSsd(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return SsdTier.open(directory, limit_bytes)


class TestSsdWithChecksum(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return ChecksumTier(SsdTier.open(directory, limit_bytes))


class TestSsdWithFaults(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return FaultTier(SsdTier.open(directory, limit_bytes), NoFaults())


class TestSsdEncrypted(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return encrypted(SsdTier.open(directory, limit_bytes), directory)


class TestMemoryEncrypted(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return encrypted(MemoryTier(limit_bytes), directory)


class TestMemoryEncryptedWithChecksum(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return ChecksumTier(encrypted(MemoryTier(limit_bytes), directory))


class TestWrappersStack(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return ChecksumTier(FaultTier(ChecksumTier(MemoryTier(limit_bytes)), NoFaults()))
