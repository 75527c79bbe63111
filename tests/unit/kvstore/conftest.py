"""Chunks of the store's tests: real containers around random bytes, numbered."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from kvloom.codec.level import DRAFT, ECONOMY, EXACT, Level
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Record, Tier
from kvloom.kvstore.tiered.store import TieredStore
from kvloom.kvstore.wrappers.fault import Fault, FaultPlan, FaultTier, Operation

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    key: ContentKey
    payload: bytes


@pytest.fixture
def namespace() -> Namespace:
    return derive_namespace(bytes(32), "tests")


@pytest.fixture(scope="session")
def chunk(container_bytes: Callable[..., bytes]) -> Callable[..., Chunk]:
    """A function: chunk ``number`` at ``levels``; further arguments go to ``container_bytes``."""

    def make(
        number: int, levels: Sequence[Level] = (DRAFT, ECONOMY, EXACT), *, seed: int | None = None, **options: Any
    ) -> Chunk:
        key = ContentKey(blake3(f"chunk {number}".encode()).digest())
        content_seed = number if seed is None else seed
        return Chunk(key, container_bytes(levels, content_key=key, seed=content_seed, **options))

    return make


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


class Plan(FaultPlan):
    """What a test says for an operation happens to it until the test says otherwise; counts the calls."""

    def __init__(self) -> None:
        self.faults: dict[Operation, Fault] = {}
        self.calls: dict[Operation, int] = dict.fromkeys(Operation, 0)
        self.gates: dict[Operation, asyncio.Event] = {}

    def next_fault(self, operation: Operation) -> Fault | None:
        self.calls[operation] += 1
        return self.faults.get(operation)


class GatedTier(FaultTier):
    """Operations with a gate wait until it is opened; ``kept_open`` outlives its store, as a network store does."""

    plan: Plan

    def __init__(self, inner: Tier, *, shared: bool = False, kept_open: bool = False) -> None:
        super().__init__(inner, Plan())
        self.shared = shared
        self.kept_open = kept_open
        self.arrived = asyncio.Event()
        """Set once something waits at a gate."""

    async def put(self, record: Record) -> None:
        await self._pass(Operation.PUT)
        await super().put(record)

    async def get(self, *args: Any) -> Any:
        await self._pass(Operation.GET)
        return await super().get(*args)

    async def delete(self, *args: Any) -> bool:
        await self._pass(Operation.DELETE)
        return await super().delete(*args)

    async def close(self) -> None:
        if not self.kept_open:
            await super().close()

    async def _pass(self, operation: Operation) -> None:
        if operation in self.plan.gates:
            self.arrived.set()
            await self.plan.gates[operation].wait()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fast() -> GatedTier:
    return GatedTier(MemoryTier(4 * MIB))


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[GatedTier]:
    tier = GatedTier(SsdTier.open(tmp_path / "slow", 8 * MIB))
    yield tier
    await tier.close()


@pytest.fixture
def network() -> GatedTier:
    """A memory tier that plays the store that daemons share."""
    return GatedTier(MemoryTier(8 * MIB, name="network"), shared=True, kept_open=True)


@pytest.fixture
def running() -> Callable[..., AbstractAsyncContextManager[TieredStore]]:
    """A function: a started store over ``tiers``, closed at the end; its clock counts up from 1."""

    @asynccontextmanager
    async def run(*tiers: Tier, **options: Any) -> AsyncIterator[TieredStore]:
        now = 0

        def clock_ms() -> int:
            nonlocal now
            now += 1
            return now

        store = TieredStore(tiers, **{"clock_ms": clock_ms, **options})
        await store.start()
        try:
            yield store
        finally:
            await store.close()

    return run
