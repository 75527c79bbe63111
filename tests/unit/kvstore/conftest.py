"""Chunks of the store's tests: real containers around random bytes, numbered."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from blake3 import blake3

from kvloom.codec.level import DRAFT, ECONOMY, EXACT, Level
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.store import TieredStore
from kvloom.kvstore.tier import Tier


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

        store = TieredStore(tiers, clock_ms=clock_ms, **options)
        await store.start()
        try:
            yield store
        finally:
            await store.close()

    return run
