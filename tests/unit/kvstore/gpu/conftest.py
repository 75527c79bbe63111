"""Pools in every place that there is here."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import pytest
from pool_source import PAGE_TOKENS, FarArrays, Shelf, check_books

from kvloom.errors import ConfigError, MissingDependency
from kvloom.kvstore.gpu.arrays import Mark, PoolArrays, always_passed, open_arrays
from kvloom.kvstore.gpu.pool import DecodedPool, PoolRules


def _open(place: str) -> PoolArrays:
    if place == "far":
        return FarArrays()
    if place == "torch far":
        return _far_torch()
    try:
        return open_arrays(place)
    except (ConfigError, MissingDependency) as error:
        pytest.skip(str(error))


def _far_torch() -> PoolArrays:
    """Torch on the CPU, which the pool takes for a GPU: every byte travels, and all work is torch's."""
    from kvloom.kvstore.gpu.torch_arrays import TorchArrays

    class FarTorch(TorchArrays):
        kernels = None

        def __init__(self) -> None:
            super().__init__("cpu")
            self.on_host, self.name = False, "torch far"

        def active(self) -> AbstractContextManager[None]:
            return nullcontext()

        def free_bytes(self) -> int:
            return 2**30

        def host(self, array: Any) -> Any:
            return super().host(array).copy()

        def upload(self, array: Any) -> Any:
            return super().upload(array).clone()

        def mark(self) -> Mark:
            return always_passed

        def synchronise(self) -> None:
            return

    return FarTorch()


@pytest.fixture(
    params=[
        "host",
        "far",
        pytest.param("torch:cpu", marks=pytest.mark.model),
        pytest.param("torch far", marks=pytest.mark.model),
        pytest.param("cuda:0", marks=pytest.mark.model),
        "cupy:0",
    ]
)
def arrays(request: pytest.FixtureRequest) -> PoolArrays:
    """Every place that a pool can be in; those that this machine has not are skipped, and say so."""
    return _open(request.param)


@pytest.fixture
def open_pool(arrays: PoolArrays) -> Callable[..., Any]:
    """A function: a pool of so many pages in the place under test, closed at the end with nothing left in use."""

    @asynccontextmanager
    async def opened(source: Shelf, pages: int = 8, *, idle: bool = True, **options: Any) -> AsyncIterator[DecodedPool]:
        rules = options.pop("rules", PoolRules(page_tokens=PAGE_TOKENS, threads=2))
        page_bytes = rules.page_tokens * source.layout.bytes_per_token
        pool = DecodedPool(
            source.layout, source, limit_bytes=pages * page_bytes + 1, arrays=arrays, rules=rules, **options
        )
        try:
            yield pool
            if idle:
                check_books(pool)
                assert pool.stats().leased == 0
        finally:
            source.gate.set()
            await pool.close()

    return opened
