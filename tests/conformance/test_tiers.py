"""Every tier of kvloom passes the shipped suite: bare, wrapped, and where every fourth operation fails at first."""

import asyncio
from pathlib import Path
from random import Random

from kvloom.kvstore.conformance.tier import TierConformance
from kvloom.kvstore.keyring import Keyring
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Tier
from kvloom.kvstore.wrappers.checksum import ChecksumTier
from kvloom.kvstore.wrappers.encrypt import EncryptTier
from kvloom.kvstore.wrappers.fault import Fail, FaultTier, NoFaults, Operation, RandomFaults
from kvloom.kvstore.wrappers.retry import RetryPolicy, RetryTier


def encrypted(inner: Tier, directory: Path) -> Tier:
    return EncryptTier(inner, Keyring(directory / "keys", bytes(range(32))))


def failing(inner: Tier) -> Tier:
    """Fails in every fourth put, read and look-up, and is asked again. Deleting all of an owner's never is."""
    faults = RandomFaults(Random(4), dict.fromkeys(set(Operation) - {Operation.DELETE}, 0.25), [Fail()])
    policy = RetryPolicy(seconds_max=60.0, tries_max=30)
    return RetryTier(FaultTier(inner, faults), policy, sleep=lambda _: asyncio.sleep(0))


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


class TestMemoryThatFails(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return failing(MemoryTier(limit_bytes))


class TestSsdThatFails(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return failing(SsdTier.open(directory, limit_bytes))


class TestEncryptedSsdThatFails(TierConformance):
    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        return encrypted(failing(SsdTier.open(directory, limit_bytes)), directory)


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
