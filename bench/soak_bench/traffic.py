"""What clients do to the daemon: puts, reads, deletions, pins and the like, some given up in the middle.

Every chunk's content follows from its key, so whatever comes back is compared with what was put.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from blake3 import blake3

from kvloom.clients import AsyncKvloomClient, ChunkToPut
from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.errors import DaemonUnavailable, KvloomError, Overloaded, StorageFull, StorageUnavailable
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.outcome import Corrupt, Hit
from kvloom.kvstore.tier import Ack

__all__ = ["EXPECTED", "Memory", "Tally", "Worker", "make_chunk"]

LAYOUT = Layout.uniform(layers=4, kv_heads=2, head_dim=16)
SIZES = (4_000, 60_000, 250_000, 1_000_000)
WEIGHTS = (4, 4, 3, 1)
NOISE = os.urandom(4 * 1024 * 1024)
REMEMBERED_MAX = 3000
EXPECTED = (Overloaded, StorageFull, StorageUnavailable, DaemonUnavailable)
"""What a client that asks for too much is told: counted, and no fault."""


@dataclass
class Tally:
    """What was done and what came of it; ``faults`` is what must not have been."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, line: str) -> None:
        """Note something that must not be."""
        self.counts["fault"] += 1
        if len(self.faults) < 100:
            self.faults.append(line)


@dataclass
class Memory:
    """The chunks of one tenant that may be stored: keys and the digests of their containers, the oldest forgotten."""

    digests: dict[ContentKey, bytes] = field(default_factory=dict)

    def add(self, key: ContentKey, data: bytes) -> None:
        """A chunk was put."""
        self.digests[key] = blake3(data).digest()
        if len(self.digests) > REMEMBERED_MAX:
            del self.digests[next(iter(self.digests))]

    def pick(self, count: int = 1) -> list[ContentKey]:
        """Keys, the latest oftener; new ones where there are none."""
        known = list(self.digests)
        if not known:
            return [ContentKey(os.urandom(32)) for _ in range(count)]
        return [known[-1 - int(len(known) * random.random() ** 2)] for _ in range(count)]


def make_chunk(key: ContentKey) -> bytes:
    """A container whose content follows from ``key``."""
    chance = random.Random(key)
    size_bytes = chance.choices(SIZES, WEIGHTS)[0]
    writer = ContainerWriter(LAYOUT, tokens=16, first_position=0, content_key=key)
    for layer in range(4):
        for kind in Kind:
            start = chance.randrange(len(NOISE) - size_bytes)
            writer.put(EXACT, layer, kind, NOISE[start : start + size_bytes // 8])
    return writer.commit()


class Worker:
    """One client of one tenant over one edge, doing one thing after another."""

    def __init__(self, client: AsyncKvloomClient, memory: Memory, tally: Tally, edge: str) -> None:
        self._client, self._memory, self._tally, self._edge = client, memory, tally, edge
        self._acts: dict[Callable[[], Awaitable[None]], int] = {
            self._put: 20,
            self._put_many: 4,
            self._get: 30,
            self._get_many: 6,
            self._look_up: 8,
            self._delete: 4,
            self._pin: 4,
            self._advise: 6,
            self._cancelled: 8,
            self._ask: 4,
        }

    async def run(self, seconds_between: float) -> None:
        """Act until cancelled, ``seconds_between`` acts on average."""
        acts, weights = list(self._acts), list(self._acts.values())
        while True:
            act = random.choices(acts, weights)[0]
            name = act.__name__.strip("_")
            try:
                await act()
            except EXPECTED as error:
                self._tally.counts[f"{self._edge} {name}: {error.code}"] += 1
            except KvloomError as error:
                self._tally.fault(f"{self._edge} {name}: {error!r}")
            else:
                self._tally.counts[f"{self._edge} {name}"] += 1
            await asyncio.sleep(random.expovariate(1) * seconds_between)

    async def _put(self) -> None:
        key = ContentKey(os.urandom(32))
        data = make_chunk(key)
        ttl = random.choice((None, None, None, 5.0, 60.0))
        parent = random.choice((None, self._memory.pick()[0]))
        ack = random.choice((Ack.MEMORY, Ack.MEMORY, Ack.DISK))
        self._memory.add(key, data)
        await self._client.put(key, data, ack=ack, ttl_seconds=ttl, parent=parent)

    async def _put_many(self) -> None:
        keys = [ContentKey(os.urandom(32)) for _ in range(4)]
        chunks = [ChunkToPut(key, make_chunk(key)) for key in keys]
        for chunk in chunks:
            self._memory.add(chunk.key, bytes(chunk.container))
        for item in await self._client.put_many(chunks):
            if item.error is not None:
                raise item.error

    async def _get(self) -> None:
        (key,) = self._memory.pick()
        found = await self._client.get(key)
        self._judge(key, found)

    async def _get_many(self) -> None:
        keys = self._memory.pick(8)
        for key, found in zip(keys, await self._client.get_many(keys), strict=True):
            self._judge(key, found)

    async def _look_up(self) -> None:
        await self._client.exists(self._memory.pick(50))

    async def _delete(self) -> None:
        await self._client.delete_many(self._memory.pick(2))

    async def _pin(self) -> None:
        """Half of the pins are left to end by themselves, as those of clients that die."""
        pin = await self._client.pin(self._memory.pick(3), lease_seconds=3.0)
        if random.random() < 0.5:
            async with pin:
                self._judge_all(await self._client.get_many(self._memory.pick(2)))

    async def _advise(self) -> None:
        keys = self._memory.pick(10)
        await self._client.prefetch(keys)
        await self._client.hint(keys, finished=random.random() < 0.5)

    async def _cancelled(self) -> None:
        """Begin something long, and be gone in the middle of it."""
        act = random.choice((self._put, self._put_many, self._get, self._get_many))
        task = asyncio.create_task(act())  # type: ignore[arg-type]
        await asyncio.wait((task,), timeout=random.random() * 0.01)
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()

    async def _ask(self) -> None:
        await self._client.tenant()
        await self._client.list_chunks(limit=20)
        await self._client.health()

    def _judge(self, key: ContentKey, found: object) -> None:
        if isinstance(found, Corrupt):
            self._tally.fault(f"{self._edge}: corrupt {found}")
        if isinstance(found, Hit):
            self._tally.counts[f"{self._edge} hit from {found.tier}"] += 1
            digest = self._memory.digests.get(key)
            if digest is not None and blake3(found.value.data).digest() != digest:
                self._tally.fault(f"{self._edge}: wrong bytes of {key.hex()[:16]}")
        else:
            self._tally.counts[f"{self._edge} {type(found).__name__.lower()}"] += 1

    def _judge_all(self, found: list[object]) -> None:
        for item in found:
            if isinstance(item, Corrupt):
                self._tally.fault(f"{self._edge}: corrupt {item}")
