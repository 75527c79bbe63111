"""The tiered store against a dictionary: what it answers is right, or it says that it has no answer.

Two machines. The clean one has room for everything and no faults: the store must behave exactly as the dictionary,
restarts included. The faulty one is small and its tiers fail, lose, fill up and flip bits: an answer must still be
right in every byte, and what was deleted must stay deleted.
"""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from blake3 import blake3
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvloom.codec.container import Container, ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, Level
from kvloom.errors import KvloomError, LevelNotStored
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.memory import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd import SsdTier
from kvloom.kvstore.store import TieredStore
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.wrappers.fault import CorruptBytes, Fail, FaultTier, Full, Lose, Operation, RandomFaults

T = TypeVar("T")
LAYERS = 3
BLOCK_LAYERS = 2
LAYOUT = Layout.uniform(layers=LAYERS, kv_heads=1, head_dim=4)
NAMESPACES = tuple(derive_namespace(bytes(32), name) for name in ("alice", "bob"))
LEVEL_SETS = ((DRAFT,), (DRAFT, ECONOMY), (EXACT,), (DRAFT, EXACT), (DRAFT, ECONOMY, EXACT))
FAULTS = {Operation.PUT: 0.2, Operation.GET: 0.2, Operation.DELETE: 0.1, Operation.CONTAINS: 0.1}

numbers = st.sampled_from([0, 3, 5])
namespaces = st.sampled_from(NAMESPACES)
levels = st.sampled_from([None, DRAFT, ECONOMY, EXACT])
layer_ranges = st.sampled_from([None, range(1), range(1, 3), range(3)])


def key_of(number: int) -> ContentKey:
    return ContentKey(blake3(f"chunk {number}".encode()).digest())


def segment_of(number: int, level: Level, layer: int, kind: Kind | None) -> bytes:
    size = (20, 700, 5000, 9000, 20, 300)[number % 6] + layer
    return blake3(f"{number}/{level}/{layer}/{kind}".encode()).digest(length=size)


def container_of(number: int, wanted: tuple[Level, ...]) -> bytes:
    digest = blake3(b"profile").digest()
    writer = ContainerWriter(
        LAYOUT,
        tokens=3,
        first_position=0,
        block_layers=BLOCK_LAYERS if set(wanted) - {EXACT} else 0,
        content_key=key_of(number),
        profile_digest=digest,
    )
    for level in wanted:
        step, kinds = (1, tuple(Kind)) if level == EXACT else (BLOCK_LAYERS, (None,))
        for layer in range(0, LAYERS, step):
            for kind in kinds:
                writer.put(level, layer, kind, segment_of(number, level, layer, kind))
    return writer.commit()


class StoreMachine(RuleBasedStateMachine):
    """What both machines do; ``model`` is the dictionary: what was put and not deleted, by namespace and number."""

    memory_bytes = 4 * 1024 * 1024
    disk_bytes = 4 * 1024 * 1024

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="kvloom-machine-"))
        self.clock = itertools.count(1)
        self.plan = RandomFaults(Random(0), {}, [Fail()])
        self.model: dict[tuple[Namespace, int], frozenset[Level]] = {}
        self.store: TieredStore | None = None

    def run_async(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def running(self) -> TieredStore:
        assert self.store is not None
        return self.store

    async def start(self) -> None:
        tiers = [MemoryTier(self.memory_bytes), SsdTier.open(self.directory, self.disk_bytes)]
        wrapped = [FaultTier(tier, self.plan) for tier in tiers]
        self.store = TieredStore(wrapped, clock_ms=self.clock.__next__)
        await self.store.start()

    def check_right(self, outcome: Hit[Any], number: int, level: Level | None, layers: range | None) -> set[Level]:
        """Every byte of the answer is the right one, and it is of what was asked for; the levels it has."""
        data = b"".join(bytes(part) for part in outcome.value.parts)
        container = Container.parse(data, content_key=key_of(number))
        assert container.header.layers == container.header.whole_blocks(layers or range(LAYERS))
        if level is not None:
            assert container.header.levels == {DRAFT: (DRAFT,), ECONOMY: (DRAFT, ECONOMY), EXACT: (EXACT,)}[level]
        for item in container.header.segments:
            assert container.segment(item.level, item.layer, item.kind) == segment_of(
                number, item.level, item.layer, item.kind
            )
        return set(container.header.levels)

    def teardown(self) -> None:
        self.plan.enabled = False
        if self.store is not None:
            self.run_async(self.store.close())
        self.runner.close()
        shutil.rmtree(self.directory)


class CleanStore(StoreMachine):
    @initialize()
    def begin(self) -> None:
        self.run_async(self.start())

    @rule(namespace=namespaces, number=numbers, wanted=st.sampled_from(LEVEL_SETS), ack=st.sampled_from(Ack))
    def put(self, namespace: Namespace, number: int, wanted: tuple[Level, ...], ack: Ack) -> None:
        payload = container_of(number, wanted)
        assert self.run_async(self.running.put(namespace, key_of(number), payload, ack=ack)) is ack
        place = (namespace, number)
        self.model[place] = self.model.get(place, frozenset()) | set(wanted)

    @rule(namespace=namespaces, number=numbers, level=levels, layers=layer_ranges)
    def get(self, namespace: Namespace, number: int, level: Level | None, layers: range | None) -> None:
        stored = self.model.get((namespace, number))
        try:
            outcome = self.run_async(self.running.get(namespace, key_of(number), level=level, layers=layers))
        except LevelNotStored:
            assert stored is not None
            assert level not in stored
            return
        if stored is None:
            assert outcome == Miss()
        else:
            assert isinstance(outcome, Hit)
            found = self.check_right(outcome, number, level, layers)
            assert found == stored if level is None else found <= stored

    @rule(namespace=namespaces, number=numbers)
    def delete(self, namespace: Namespace, number: int) -> None:
        existed = self.model.pop((namespace, number), None) is not None
        assert self.run_async(self.running.delete(namespace, key_of(number))) is existed

    @rule(namespace=namespaces)
    def list_all(self, namespace: Namespace) -> None:
        async def scan() -> list[ContentKey]:
            return [item.key async for item in self.running.scan(namespace)]

        expected = sorted(key_of(number) for owner, number in self.model if owner == namespace)
        assert sorted(self.run_async(scan())) == expected

    @rule(namespace=namespaces, order=st.permutations([0, 3, 5, 77]))
    def ask(self, namespace: Namespace, order: list[int]) -> None:
        held = [(namespace, number) in self.model for number in order]
        keys = [key_of(number) for number in order]
        assert self.run_async(self.running.contains_many(namespace, keys)) == held
        prefix = self.run_async(self.running.longest_prefix(namespace, keys))
        assert prefix == [*held, False].index(False)

    @rule()
    def flush(self) -> None:
        self.run_async(self.running.flush())
        assert self.running.stats().dirty_bytes == 0

    @rule()
    def restart(self) -> None:
        self.run_async(self.running.close())
        self.run_async(self.start())

    @invariant()
    def nothing_was_damaged(self) -> None:
        if self.store is not None:
            assert [tier.corrupt for tier in self.store.stats().tiers] == [0, 0]


class FaultyStore(StoreMachine):
    memory_bytes = 256 * 1024
    disk_bytes = 1024 * 1024

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        faults = [CorruptBytes(0), CorruptBytes(0), Fail(), Full(), Lose()]
        self.plan = RandomFaults(Random(seed), FAULTS, faults)
        self.run_async(self.start())

    @rule(namespace=namespaces, number=numbers, wanted=st.sampled_from(LEVEL_SETS), ack=st.sampled_from(Ack))
    def put(self, namespace: Namespace, number: int, wanted: tuple[Level, ...], ack: Ack) -> None:
        place = (namespace, number)
        self.model[place] = self.model.get(place, frozenset()) | set(wanted)
        with suppress(KvloomError):
            self.run_async(self.running.put(namespace, key_of(number), container_of(number, wanted), ack=ack))

    @rule(namespace=namespaces, number=numbers, level=levels, layers=layer_ranges)
    def get(self, namespace: Namespace, number: int, level: Level | None, layers: range | None) -> None:
        try:
            outcome = self.run_async(self.running.get(namespace, key_of(number), level=level, layers=layers))
        except LevelNotStored:
            assert (namespace, number) in self.model
            return
        if isinstance(outcome, Hit):
            assert self.check_right(outcome, number, level, layers) <= self.model.get((namespace, number), frozenset())

    @rule(namespace=namespaces, number=numbers)
    def delete(self, namespace: Namespace, number: int) -> None:
        self.plan.enabled = False
        self.run_async(self.running.delete(namespace, key_of(number)))
        self.plan.enabled = True
        self.model.pop((namespace, number), None)

    @rule(others=st.lists(st.integers(100, 140), min_size=5, max_size=15))
    def crowd(self, others: list[int]) -> None:
        """Put other chunks, to push these out of the tiers."""

        async def put_all() -> None:
            for number in others:
                with suppress(KvloomError):
                    payload = container_of(number, (DRAFT, ECONOMY))
                    await self.running.put(NAMESPACES[0], key_of(number), payload, ack=Ack.MEMORY)

        self.run_async(put_all())

    @rule()
    def restart(self) -> None:
        self.run_async(self.running.close())
        self.run_async(self.start())


SETTINGS = settings(
    max_examples=25,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestCleanStore = CleanStore.TestCase
TestCleanStore.settings = SETTINGS
TestFaultyStore = FaultyStore.TestCase
TestFaultyStore.settings = SETTINGS
