"""The tiered store against a dictionary: what it answers is right, or it says that it has no answer.

Three machines over memory, SSD and a memory tier that plays the network. The clean one has room for everything and no
faults: the store must behave exactly as the dictionary, expiry, restarts and deleted namespaces included. The faulty
one is small and all its tiers fail, lose, fill up and flip bits: an answer must still be right in every byte, and what
was deleted or has expired must stay gone. In the crowded one the tenants have quotas and pins, its own tiers work and
the network does not: what is pinned or guaranteed must stay, and nobody may have more than its quota.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
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
from kvloom.kvstore.expiry import later_expiry
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.quota import Quota, QuotaPolicy, Quotas
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import NEVER, Ack, is_expired
from kvloom.kvstore.tiered.admission import AdmissionRule
from kvloom.kvstore.tiered.pins import LeaseId
from kvloom.kvstore.tiered.store import StoreRules, TieredStore
from kvloom.kvstore.wrappers.fault import CorruptBytes, Fail, FaultTier, Full, Lose, Operation, RandomFaults

T = TypeVar("T")
LAYERS = 3
BLOCK_LAYERS = 2
LAYOUT = Layout.uniform(layers=LAYERS, kv_heads=1, head_dim=4)
NAMESPACES = tuple(derive_namespace(bytes(32), name) for name in ("alice", "bob"))
LEVEL_SETS = ((DRAFT,), (DRAFT, ECONOMY), (EXACT,), (DRAFT, EXACT), (DRAFT, ECONOMY, EXACT))
FAULTS = {Operation.PUT: 0.2, Operation.GET: 0.2, Operation.DELETE: 0.1, Operation.CONTAINS: 0.1}

EXAMPLES = int(os.environ.get("KVLOOM_MACHINE_EXAMPLES", "25"))
"""Per machine, of 30 steps each; ``KVLOOM_MACHINE_EXAMPLES=1300`` makes over 100,000 steps of all."""

numbers = st.sampled_from([0, 3, 5])
lives = st.sampled_from([None, None, 5.0, 30.0])
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


class SharedTier(FaultTier):
    """What daemons share: outlives the store."""

    def __init__(self, plan: RandomFaults, limit_bytes: int) -> None:
        super().__init__(MemoryTier(limit_bytes, name="network"), plan)
        self.shared = True

    async def close(self) -> None:
        """Stays open."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the dictionary says of a chunk."""

    levels: frozenset[Level]
    expires_at_ms: int


class StoreMachine(RuleBasedStateMachine):
    """What all machines do; ``model`` is the dictionary: what was put and not deleted, by namespace and number."""

    memory_bytes = 4 * 1024 * 1024
    disk_bytes = 4 * 1024 * 1024
    quotas = Quotas()
    store_rules = StoreRules()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="kvloom-machine-"))
        self.now_ms = 1_700_000_000_000
        self.plan = RandomFaults(Random(0), {}, [Fail()])
        self.network_plan = RandomFaults(Random(0), {}, [Fail()])
        self.network: SharedTier | None = None
        self.model: dict[tuple[Namespace, int], Expected] = {}
        self.store: TieredStore | None = None

    def run_async(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def running(self) -> TieredStore:
        assert self.store is not None
        return self.store

    def clock_ms(self) -> int:
        return self.now_ms

    async def start(self) -> None:
        self.now_ms += 1
        self.network = self.network or SharedTier(self.network_plan, 8 * 1024 * 1024)
        tiers = [
            FaultTier(MemoryTier(self.memory_bytes, policy=QuotaPolicy(quotas=self.quotas)), self.plan),
            FaultTier(SsdTier.open(self.directory, self.disk_bytes, policy=QuotaPolicy(quotas=self.quotas)), self.plan),
        ]
        self.store = TieredStore([*tiers, self.network], clock_ms=self.clock_ms, rules=self.store_rules)
        await self.store.start()

    def live(self, namespace: Namespace, number: int) -> Expected | None:
        expected = self.model.get((namespace, number))
        return None if expected is None or is_expired(expected.expires_at_ms, self.now_ms) else expected

    def note_put(self, namespace: Namespace, number: int, wanted: tuple[Level, ...], ttl: float | None) -> None:
        expires_at_ms = NEVER if ttl is None else self.now_ms + round(1000 * ttl)
        levels = frozenset(wanted)
        before = self.live(namespace, number)
        if before is not None:
            levels |= before.levels
            expires_at_ms = later_expiry(expires_at_ms, before.expires_at_ms)
        self.model[namespace, number] = Expected(levels, expires_at_ms)

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

    @rule(seconds=st.sampled_from([0.001, 1.0, 5.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_ms += round(1000 * seconds)

    @rule()
    def keep_up(self) -> None:
        self.run_async(self.running.keep_up())

    @rule(namespace=namespaces, asked=st.lists(st.sampled_from([0, 3, 5, 77]), max_size=4))
    def prefetch(self, namespace: Namespace, asked: list[int]) -> None:
        keys = [key_of(number) for number in asked]
        assert self.run_async(self.running.prefetch(namespace, keys)) == len(keys)
        self.running.hint(namespace, keys, finished=bool(asked))

    def teardown(self) -> None:
        self.plan.enabled = self.network_plan.enabled = False
        if self.store is not None:
            self.run_async(self.store.close())
            assert len(self.store._locks) == len(self.store._flights) == 0
        self.runner.close()
        shutil.rmtree(self.directory)


class CleanStore(StoreMachine):
    @initialize()
    def begin(self) -> None:
        self.run_async(self.start())

    @rule(namespace=namespaces, number=numbers, wanted=st.sampled_from(LEVEL_SETS), ack=st.sampled_from(Ack), ttl=lives)
    def put(self, namespace: Namespace, number: int, wanted: tuple[Level, ...], ack: Ack, ttl: float | None) -> None:
        payload = container_of(number, wanted)
        putting = self.running.put(namespace, key_of(number), payload, ack=ack, ttl_seconds=ttl)
        assert self.run_async(putting) is ack
        self.note_put(namespace, number, wanted, ttl)

    @rule(namespace=namespaces, number=numbers, level=levels, layers=layer_ranges)
    def get(self, namespace: Namespace, number: int, level: Level | None, layers: range | None) -> None:
        expected = self.live(namespace, number)
        try:
            outcome = self.run_async(self.running.get(namespace, key_of(number), level=level, layers=layers))
        except LevelNotStored:
            assert expected is not None
            assert level not in expected.levels
            return
        if expected is None:
            assert outcome == Miss()
        else:
            assert isinstance(outcome, Hit)
            found = self.check_right(outcome, number, level, layers)
            assert found == expected.levels if level is None else found <= expected.levels

    @rule(namespace=namespaces, asked=st.lists(st.sampled_from([0, 3, 5, 77]), max_size=6))
    def get_many(self, namespace: Namespace, asked: list[int]) -> None:
        outcomes = self.run_async(self.running.get_many(namespace, [key_of(number) for number in asked]))
        for number, outcome in zip(asked, outcomes, strict=True):
            expected = self.live(namespace, number)
            if expected is None:
                assert outcome == Miss()
            else:
                assert isinstance(outcome, Hit)
                assert self.check_right(outcome, number, None, None) == expected.levels

    @rule(namespace=namespaces, number=numbers)
    def delete(self, namespace: Namespace, number: int) -> None:
        existed = self.live(namespace, number) is not None
        self.model.pop((namespace, number), None)
        assert self.run_async(self.running.delete(namespace, key_of(number))) is existed

    @rule(namespace=namespaces)
    def delete_namespace(self, namespace: Namespace) -> None:
        self.run_async(self.running.delete_namespace(namespace))
        self.model = {place: expected for place, expected in self.model.items() if place[0] != namespace}

    @rule(namespace=namespaces)
    def list_all(self, namespace: Namespace) -> None:
        async def scan() -> list[ContentKey]:
            return [item.key async for item in self.running.scan(namespace)]

        expected = sorted(
            key_of(number) for owner, number in self.model if owner == namespace and self.live(owner, number)
        )
        assert sorted(self.run_async(scan())) == expected

    @rule(namespace=namespaces, order=st.permutations([0, 3, 5, 77]))
    def ask(self, namespace: Namespace, order: list[int]) -> None:
        held = [self.live(namespace, number) is not None for number in order]
        keys = [key_of(number) for number in order]
        assert self.run_async(self.running.contains_many(namespace, keys)) == held
        prefix = self.run_async(self.running.longest_prefix(namespace, keys))
        assert prefix == [*held, False].index(False)
        for key, present in zip(keys, held, strict=True):
            assert (self.run_async(self.running.stored(namespace, key)) is not None) == present

    @rule(shared=st.booleans())
    def flush(self, shared: bool) -> None:
        self.run_async(self.running.flush(shared=shared))
        assert self.running.stats().dirty_bytes == 0

    @rule()
    def restart(self) -> None:
        self.run_async(self.running.close())
        self.run_async(self.start())

    @invariant()
    def nothing_was_damaged(self) -> None:
        if self.store is not None:
            stats = self.store.stats()
            assert [tier.corrupt for tier in stats.tiers] == [0, 0, 0]
            assert [stage.dropped for stage in stats.stages] == [0, 0]


class SparingStore(CleanStore):
    """With a disk that takes what is used twice; nothing is lost while memory has room, so there is no restart."""

    store_rules = StoreRules(admission=AdmissionRule.SECOND_USE)

    @rule()
    def restart(self) -> None:
        self.run_async(self.running.settled())


class FaultyStore(StoreMachine):
    memory_bytes = 256 * 1024
    disk_bytes = 1024 * 1024

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        faults = [CorruptBytes(0), CorruptBytes(0), Fail(), Full(), Lose()]
        self.plan = RandomFaults(Random(seed), FAULTS, faults)
        self.network_plan = RandomFaults(Random(seed + 1), FAULTS, faults)
        self.run_async(self.start())

    @rule(namespace=namespaces, number=numbers, wanted=st.sampled_from(LEVEL_SETS), ack=st.sampled_from(Ack), ttl=lives)
    def put(self, namespace: Namespace, number: int, wanted: tuple[Level, ...], ack: Ack, ttl: float | None) -> None:
        self.note_put(namespace, number, wanted, ttl)
        with suppress(KvloomError):
            payload = container_of(number, wanted)
            self.run_async(self.running.put(namespace, key_of(number), payload, ack=ack, ttl_seconds=ttl))

    @rule(namespace=namespaces, number=numbers, level=levels, layers=layer_ranges)
    def get(self, namespace: Namespace, number: int, level: Level | None, layers: range | None) -> None:
        expected = self.live(namespace, number)
        try:
            outcome = self.run_async(self.running.get(namespace, key_of(number), level=level, layers=layers))
        except LevelNotStored:
            assert expected is not None
            return
        if isinstance(outcome, Hit):
            assert expected is not None
            assert self.check_right(outcome, number, level, layers) <= expected.levels

    @rule(namespace=namespaces, number=numbers)
    def delete(self, namespace: Namespace, number: int) -> None:
        self.plan.enabled = self.network_plan.enabled = False
        self.run_async(self.running.delete(namespace, key_of(number)))
        self.plan.enabled = self.network_plan.enabled = True
        self.model.pop((namespace, number), None)

    @rule(namespace=namespaces)
    def delete_namespace(self, namespace: Namespace) -> None:
        self.plan.enabled = self.network_plan.enabled = False
        self.run_async(self.running.delete_namespace(namespace))
        self.plan.enabled = self.network_plan.enabled = True
        self.model = {place: expected for place, expected in self.model.items() if place[0] != namespace}

    @rule(namespace=namespaces, number=numbers)
    def pin(self, namespace: Namespace, number: int) -> None:
        with suppress(KvloomError):
            self.run_async(self.running.pin(namespace, [key_of(number)], lease_seconds=3))

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


class CrowdedStore(StoreMachine):
    """Alice has a quota and floods, Bob has a guarantee and stays within it."""

    memory_bytes = 512 * 1024
    disk_bytes = 1024 * 1024
    quotas = Quotas(
        by_owner={
            NAMESPACES[0].owner: Quota(limit_bytes=300 * 1024),
            NAMESPACES[1].owner: Quota(guaranteed_bytes=160 * 1024),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[tuple[Namespace, LeaseId], tuple[int, tuple[int, ...]]] = {}

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.network_plan = RandomFaults(Random(seed), dict.fromkeys(Operation, 0.5), [CorruptBytes(0), Fail(), Lose()])
        self.run_async(self.start())

    @rule(namespace=namespaces, number=numbers, ack=st.sampled_from(Ack), ttl=lives)
    def put(self, namespace: Namespace, number: int, ack: Ack, ttl: float | None) -> None:
        payload = container_of(number, (DRAFT, ECONOMY))
        self.run_async(self.running.put(namespace, key_of(number), payload, ack=ack, ttl_seconds=ttl))
        self.note_put(namespace, number, (DRAFT, ECONOMY), ttl)

    @rule(numbers=st.lists(st.integers(100, 160), min_size=5, max_size=20))
    def flood(self, numbers: list[int]) -> None:
        async def put_all() -> None:
            for number in numbers:
                payload = container_of(3 + 6 * number, (DRAFT, ECONOMY))  # the largest kind
                await self.running.put(NAMESPACES[0], key_of(3 + 6 * number), payload, ack=Ack.MEMORY)

        self.run_async(put_all())

    @rule(namespace=namespaces, asked=st.sets(numbers), seconds=st.sampled_from([2.0, 20.0]))
    def pin(self, namespace: Namespace, asked: set[int], seconds: float) -> None:
        order = sorted(asked)
        with suppress(KvloomError):
            keys = [key_of(number) for number in order]
            pinned = self.run_async(self.running.pin(namespace, keys, lease_seconds=seconds))
            held = tuple(number for number, here in zip(order, pinned.pinned, strict=True) if here)
            assert all(self.live(namespace, number) for number in held)
            self.leases[namespace, pinned.lease] = (pinned.until_ms, held)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.leases:
            namespace, lease = data.draw(st.sampled_from(sorted(self.leases, key=lambda item: item[1])))
            until_ms, _ = self.leases.pop((namespace, lease))
            assert self.running.release(namespace, lease) == (until_ms > self.now_ms)

    @rule(namespace=namespaces, number=numbers)
    def delete(self, namespace: Namespace, number: int) -> None:
        self.network_plan.enabled = False
        self.run_async(self.running.delete(namespace, key_of(number)))
        self.network_plan.enabled = True
        self.model.pop((namespace, number), None)
        for lease, (until_ms, held) in self.leases.items():
            if lease[0] == namespace:
                self.leases[lease] = (until_ms, tuple(item for item in held if item != number))

    @rule()
    def restart(self) -> None:
        self.run_async(self.running.close())
        self.leases.clear()
        self.run_async(self.start())

    @rule(namespace=namespaces, number=numbers)
    def get(self, namespace: Namespace, number: int) -> None:
        outcome = self.run_async(self.running.get(namespace, key_of(number)))
        if isinstance(outcome, Hit):
            assert self.live(namespace, number) is not None
            self.check_right(outcome, number, None, None)

    @invariant()
    def what_is_pinned_or_guaranteed_is_there(self) -> None:
        if self.store is None:
            return
        alice, bob = NAMESPACES
        wanted = {(bob, number) for owner, number in self.model if owner == bob and self.live(bob, number)}
        for (namespace, _), (until_ms, held) in self.leases.items():
            if until_ms > self.now_ms:
                wanted |= {(namespace, number) for number in held if self.live(namespace, number)}
        self.network_plan.enabled = False
        for namespace, number in sorted(wanted, key=lambda item: (item[0].name, item[1])):
            stored = self.run_async(self.store.stored(namespace, key_of(number)))
            assert stored is not None
            assert set(stored.tiers) & {"memory", "ssd", "write-behind"}
        self.network_plan.enabled = True
        for usage in self.store.tenant_stats(alice).tiers:
            assert usage.holdings.used_bytes <= 300 * 1024
        for usage in self.store.tenant_stats(bob).tiers:
            assert usage.holdings.evictions == 0


SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestCleanStore = CleanStore.TestCase
TestCleanStore.settings = SETTINGS
TestSparingStore = SparingStore.TestCase
TestSparingStore.settings = settings(SETTINGS, max_examples=max(5, EXAMPLES // 5))
TestFaultyStore = FaultyStore.TestCase
TestFaultyStore.settings = SETTINGS
TestCrowdedStore = CrowdedStore.TestCase
TestCrowdedStore.settings = SETTINGS
