"""A source for pools, with real chunks: KV that the codec has encoded; and what tests look at a pool with."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3

from kvloom import codec
from kvloom.codec import EXACT, Container, Kind, KvDtype, LayerLayout, Layout, Level, Rope
from kvloom.kvstore.gpu.arrays import HostArrays, Mark
from kvloom.kvstore.gpu.lease import PoolLease
from kvloom.kvstore.gpu.pool import DecodedPool
from kvloom.kvstore.gpu.source import ChunkWanted
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Outcome

PAGE_TOKENS = 4
ROPE = Rope((1.0, 0.3, 0.02, 0.001))
PLAIN = Layout.uniform(layers=2, kv_heads=2, head_dim=8, rope=ROPE)
MIXED = Layout(
    KvDtype.FLOAT32,
    (
        LayerLayout(2, 8, ROPE),
        LayerLayout(1, 12, Rope((1.0, 0.1), interleaved=True, first_dim=3), value_head_dim=6),
        LayerLayout(1, 8, ROPE, value_head_dim=0),
    ),
)


class FarArrays(HostArrays):
    """NumPy behind a bus: what travels is copied, and work is done when the test says so."""

    name = "far"
    on_host = False

    def __init__(self) -> None:
        self.pending: list[bool] = []
        self.holding = False
        self.synchronised = 0

    def host(self, array: Any) -> Any:
        return np.array(array)

    def upload(self, array: Any) -> Any:
        return np.array(array)

    def mark(self) -> Mark:
        number = len(self.pending)
        self.pending.append(self.holding)
        return lambda: not self.pending[number]

    def synchronise(self) -> None:
        self.synchronised += 1

    def finish(self) -> None:
        """All that was queued is done."""
        self.pending = [False] * len(self.pending)


@dataclass(frozen=True)
class Kv:
    """A chunk as arrays per layer ``[kv_heads, tokens, head_dim]``."""

    keys: list[np.ndarray]
    values: list[np.ndarray]

    def same_as(self, other: "Kv") -> bool:
        """Bit for bit."""
        pairs = zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True)
        return all(ours.dtype == its.dtype and ours.tobytes() == its.tobytes() for ours, its in pairs)


def kv_like(layout: Layout, tokens: int) -> Kv:
    """Room for a chunk."""
    return Kv(
        *(
            [np.zeros((spec.kv_heads, tokens, spec.head_dim_of(kind)), layout.dtype.numpy) for spec in layout.layers]
            for kind in Kind
        )
    )


def draw_kv(layout: Layout, tokens: int, seed: int) -> Kv:
    rng = np.random.default_rng(seed)
    room = kv_like(layout, tokens)
    for array in (*room.keys, *room.values):
        array[...] = rng.normal(size=array.shape)
    return room


@dataclass
class Shelf:
    """A source over a dictionary; what it does can be counted, held up, and made to fail."""

    layout: Layout = PLAIN
    containers: dict[ContentKey, bytes] = field(default_factory=dict)
    calls: list[tuple[ContentKey, ...]] = field(default_factory=list)
    stored: list[ContentKey] = field(default_factory=list)
    parents: dict[ContentKey, ContentKey | None] = field(default_factory=dict)
    damaged: set[ContentKey] = field(default_factory=set)
    refuse: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()

    def load(self, keys: Sequence[ContentKey], level: Level) -> list[Outcome[Container]]:
        self._pass()
        self.calls.append(tuple(keys))
        return [self._load(key, level) for key in keys]

    def profile(self, digest: bytes) -> None:
        return None

    def store(self, key: ContentKey, container: bytes, parent: ContentKey | None) -> None:
        self._pass()
        if self.refuse is not None:
            raise self.refuse
        self.stored.append(key)
        self.parents[key] = parent
        self.containers[key] = container

    def _load(self, key: ContentKey, level: Level) -> Outcome[Container]:
        if key in self.damaged:
            return Corrupt("ssd", "a bit has flipped")
        if key not in self.containers:
            return Miss()
        return Hit(Container.parse(self.containers[key], content_key=key), "memory")

    def _pass(self) -> None:
        self.waiting.release()
        assert self.gate.wait(30)

    def add(
        self, number: int, *, tokens: int = PAGE_TOKENS, first_position: int = 0, level: Level = EXACT
    ) -> ContentKey:
        """Encode chunk ``number`` and keep it."""
        key = key_of(number)
        kv = draw_kv(self.layout, tokens, number)
        profile = None if level == EXACT else codec.generic_profile(self.layout)
        self.containers[key] = codec.encode(
            kv.keys,
            kv.values,
            layout=self.layout,
            profile=profile,
            levels=None if profile else {EXACT},
            first_position=first_position,
            content_key=key,
        )
        return key

    def decoded(self, key: ContentKey, level: Level = EXACT, first_position: int | None = None) -> Kv:
        """What the codec makes of it."""
        keys, values = codec.decode(self.containers[key], level=level, first_position=first_position)
        return Kv(list(keys), list(values))


def key_of(number: int) -> ContentKey:
    return ContentKey(blake3(number.to_bytes(8, "little")).digest())


def content(pool: DecodedPool, lease: PoolLease, first_position: int | None = None) -> Kv:
    """What a reader of the lease sees."""
    room = kv_like(pool.layout, lease.tokens)
    pool.copy_out(lease, room.keys, room.values, first_position=first_position)
    return room


async def leased(pool: DecodedPool, wanted: ChunkWanted) -> PoolLease:
    """A lease of a chunk that must come."""
    outcome = await pool.get(wanted)
    assert isinstance(outcome, Hit), outcome
    return outcome.value


async def touch(pool: DecodedPool, wanted: ChunkWanted) -> None:
    """Have a chunk loaded, or used."""
    (await leased(pool, wanted)).release()


def check_books(pool: DecodedPool) -> None:
    """No page has two owners, none is lost, and the bytes are those of the pages."""
    stats, residency = pool.stats(), pool._residency
    chunks = [*residency._chunks.values(), *residency._leaving]
    taken = [int(page) for chunk in chunks for page in chunk.pages]
    assert len(set(taken)) == len(taken)
    assert not residency._free._free[taken].any()
    assert len(taken) + residency._free.count == residency.pages == len(residency._free._free)
    assert int(residency._free._free.sum()) == residency._free.count
    assert stats.used_bytes == len(taken) * stats.page_bytes <= stats.limit_bytes
    assert residency._policy.total_bytes == sum(len(c.pages) for c in residency._chunks.values()) * stats.page_bytes


async def reached(source: Shelf) -> None:
    """Wait until a thread stands before the source's gate."""
    assert await asyncio.to_thread(source.waiting.acquire, timeout=30)
