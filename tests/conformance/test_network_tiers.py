"""Every network tier, bare and with its guards, passes the suite of shared tiers, against real servers."""

from pathlib import Path

import pytest
from blake3 import blake3
from network_servers import S3_BUCKET, MooncakeServers, S3Server, ValkeyCluster, ValkeyServer

from kvloom.kvstore.conformance.shared import SharedTierConformance
from kvloom.kvstore.network import guarded, open_network_tier, parse_network
from kvloom.kvstore.tier import Tier
from kvloom.kvstore.wrappers.breaker import BreakerPolicy, BreakerTier
from kvloom.kvstore.wrappers.checksum import ChecksumTier
from kvloom.kvstore.wrappers.fault import FaultTier, NoFaults
from kvloom.kvstore.wrappers.retry import RetryPolicy
from kvloom.kvstore.wrappers.throttle import InflightBytes

PATIENT = RetryPolicy(seconds_max=30.0, tries_max=12), BreakerPolicy(stall_seconds=15.0, ping_seconds=15.0)
"""The machines that run these tests stall now and then; what the real policies do is tested with a clock of its own."""


def prefix_of(directory: Path) -> str:
    """A prefix of the store that belongs to the test whose directory this is."""
    return "t" + blake3(str(directory).encode()).hexdigest()[:16]


class TestValkey(SharedTierConformance):
    @pytest.fixture(autouse=True)
    def use(self, valkey_server: ValkeyServer) -> None:
        self.hosts = f"127.0.0.1:{valkey_server.port}"

    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        from kvloom.kvstore.network.valkey import ValkeyTier

        return ValkeyTier(parse_network(f"valkey://{self.hosts}/{prefix_of(directory)}"), value_bytes_max=64 * 1024)


class TestValkeyCluster(TestValkey):
    listed_records = 300

    @pytest.fixture(autouse=True)
    def use(self, valkey_cluster: ValkeyCluster) -> None:
        self.hosts = valkey_cluster.hosts


class TestValkeyGuarded(TestValkey):
    listed_records = 300

    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        wrapped = ChecksumTier(FaultTier(super().make_tier(directory, limit_bytes), NoFaults()))
        return guarded(wrapped, InflightBytes(1024 * 1024), *PATIENT)


class TestS3(SharedTierConformance):
    """With its guards: moto answers 500 to some concurrent puts of one key, as S3 may at any time."""

    listed_records, churned_records, visitors = 40, 8, 8

    @pytest.fixture(autouse=True)
    def use(self, s3_server: S3Server) -> None:
        self.server = s3_server

    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        from kvloom.kvstore.network.s3 import S3Tier

        tier = S3Tier(parse_network(f"s3://{S3_BUCKET}/{prefix_of(directory)}"))
        return guarded(tier, InflightBytes(1024 * 1024), *PATIENT)


class TestMooncake(SharedTierConformance):
    listed_records, churned_records, visitors = 60, 20, 10

    @pytest.fixture(autouse=True)
    def use(self, mooncake_servers: MooncakeServers) -> None:
        self.servers = mooncake_servers

    def make_tier(self, directory: Path, limit_bytes: int) -> Tier:
        from kvloom.kvstore.network.mooncake import MooncakeTier

        return MooncakeTier(parse_network(self.servers.url(prefix_of(directory))), client=self.servers.client())


async def test_one_line_opens_a_tier_with_its_guards(valkey_server: ValkeyServer) -> None:
    tier = open_network_tier(f"valkey://127.0.0.1:{valkey_server.port}/one-line")
    assert isinstance(tier, BreakerTier)
    await tier.ping()
    await tier.close()
