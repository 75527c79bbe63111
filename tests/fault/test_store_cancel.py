"""Ten thousand operations cut off at any moment leave nothing behind: no buffer, descriptor, pin, lock or task."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from kvloom.codec.level import DRAFT
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.admission import AdmissionRule
from kvloom.kvstore.tiered.cascade import CascadeLimits
from kvloom.kvstore.tiered.store import StoreRules, TieredStore
from kvloom.kvstore.wrappers.fault import FaultTier, NoFaults

MIB = 1024 * 1024
OPERATIONS = 10_000
AT_ONCE = 25
MEMORY = "/memfd:kvloom-segment (deleted)"
"""A segment of the memory tier."""
NAMESPACES = tuple(derive_namespace(bytes(32), name) for name in ("alice", "bob"))
KEYS = [ContentKey(blake3(f"chunk {number}".encode()).digest()) for number in range(12)]


class SlowNetwork(FaultTier):
    """A shared tier that lets others go first at every step."""

    def __init__(self) -> None:
        super().__init__(MemoryTier(4 * MIB, name="network"), NoFaults())
        self.shared = True

    async def put(self, record: Any) -> None:
        await asyncio.sleep(0)
        await super().put(record)

    async def get(self, *args: Any) -> Any:
        await asyncio.sleep(0)
        return await super().get(*args)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> Counter[str]:
    """How often what is open, by name."""
    targets: Counter[str] = Counter()
    for item in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the others
            targets[str(item.readlink())] += 1
    return targets


def besides_tiers(log: Path) -> Counter[str]:
    """What is open, without the files of the tiers, which come and go with what they hold: each segment once."""
    opened = descriptors()
    del opened[MEMORY]
    for path in log.glob("*.log"):
        assert opened.pop(str(path)) == 1
    return opened


async def test_ten_thousand_cancelled_operations_leak_nothing(
    tmp_path: Path, container_bytes: Callable[..., bytes], rng: np.random.Generator
) -> None:
    payloads = [container_bytes(content_key=key, segment_bytes=6000, seed=seed) for seed, key in enumerate(KEYS)]
    small = [container_bytes([DRAFT], content_key=key, seed=seed) for seed, key in enumerate(KEYS)]
    now_ms = [1000]
    before = descriptors()
    memory = MemoryTier(4 * MIB)
    disk = SsdTier.open(tmp_path, 8 * MIB)
    rules = StoreRules(CascadeLimits(dirty_bytes_max=400_000), AdmissionRule.SECOND_USE)
    store = TieredStore([FaultTier(memory, NoFaults()), disk, SlowNetwork()], clock_ms=lambda: now_ms[0], rules=rules)
    await store.start()

    async def scan(namespace: Any) -> None:
        async for _ in store.scan(namespace):
            pass

    def operation() -> Coroutine[Any, Any, Any]:
        namespace = NAMESPACES[int(rng.integers(2))]
        which = int(rng.integers(len(KEYS)))
        key = KEYS[which]
        some = [KEYS[index] for index in rng.integers(len(KEYS), size=4)]
        kinds: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: store.put(namespace, key, payloads[which], ack=Ack.MEMORY),
            lambda: store.put(namespace, key, payloads[which], ack=Ack.DISK, ttl_seconds=5),
            lambda: store.put(namespace, key, small[which], ack=Ack.MEMORY),
            lambda: store.get(namespace, key),
            lambda: store.get(namespace, key, layers=range(1, 2)),
            lambda: store.get_many(namespace, some),
            lambda: store.delete(namespace, key),
            lambda: store.delete_many(namespace, some),
            lambda: store.pin(namespace, some, lease_seconds=0.001),
            lambda: store.prefetch(namespace, some),
            lambda: store.stored(namespace, key),
            lambda: store.contains_many(namespace, some),
            lambda: store.flush(),
            lambda: store.keep_up(),
            lambda: scan(namespace),
        ]
        return kinds[int(rng.integers(len(kinds)))]()

    async def cancel_some(count: int) -> int:
        cancelled = 0
        for _ in range(0, count, AT_ONCE):
            tasks = [asyncio.ensure_future(operation()) for _ in range(AT_ONCE)]
            for _ in range(int(rng.integers(8))):
                await asyncio.sleep(0)
            for task in tasks:
                cancelled += task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return cancelled

    async def settle() -> None:
        await store.flush(shared=True)
        await store.settled()
        gc.collect()

    await cancel_some(OPERATIONS // 10)  # pools, caches and arenas grow to what they need
    await settle()
    idle, opened, resident = len(asyncio.all_tasks()), besides_tiers(tmp_path), resident_bytes()
    cancelled = await cancel_some(OPERATIONS)
    await settle()
    assert cancelled > OPERATIONS // 4
    assert len(asyncio.all_tasks()) == idle
    assert besides_tiers(tmp_path) == opened
    assert (len(store._locks), len(store._flights)) == (0, 0)
    assert all(len(stage.locks) == 0 for stage in store._cascade.shared)
    assert [stage.dirty_bytes for stage in store.stats().stages] == [0, 0]
    assert store._promoter._held_bytes == 0
    assert resident_bytes() - resident < 16 * MIB  # 10,000 payloads are some 200 MiB

    # Leases whose holder was cut off end by themselves.
    now_ms[0] = 10_000
    await store.keep_up()
    assert (store.stats().leases, store.stats().pinned, store.stats().pinned_bytes) == (0, 0, 0)
    for namespace in NAMESPACES:
        await store.delete_namespace(namespace)
    gc.collect()
    assert memory.capacity().records == disk.capacity().records == 0
    assert memory.capacity().used_bytes < MIB
    await store.put(NAMESPACES[0], KEYS[0], payloads[0], ack=Ack.DISK)
    assert isinstance(await store.get(NAMESPACES[0], KEYS[0]), Hit)
    await store.close()
    gc.collect()
    left = descriptors()
    assert left[MEMORY] <= before[MEMORY]
    assert not [name for name in left if name.startswith(f"{tmp_path}/")]
    assert asyncio.all_tasks() == {asyncio.current_task()}
