"""The GPU tier's pool against a dictionary, with leases that come and go while it loads, moves, evicts, is cancelled.

What is read through a lease is what the codec decodes, whatever has happened to the chunk since; no page has two
chunks; and the limit holds.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pool_source import PAGE_TOKENS, PLAIN, Shelf, check_books, content, draw_kv, key_of

from kvloom.codec import EXACT, STANDARD
from kvloom.errors import StorageFull
from kvloom.kvstore.gpu.lease import PoolLease
from kvloom.kvstore.gpu.pool import DecodedPool, PoolRules
from kvloom.kvstore.gpu.source import ChunkWanted, Encoding
from kvloom.kvstore.outcome import Hit, Miss, Throttled
from kvloom.kvstore.quota import Quota, QuotaPolicy, Quotas
from kvloom.kvstore.tier import OwnerId

T = TypeVar("T")
PAGES = 12
PAGE_BYTES = PAGE_TOKENS * PLAIN.bytes_per_token
OWNERS = tuple(OwnerId(bytes([number]) * 16) for number in range(3))
LIMITED = Quota(6 * PAGE_BYTES, 3 * PAGE_BYTES)
SHELF = Shelf()
for number in range(12):
    SHELF.add(number, tokens=1 + 3 * (number % 5), first_position=number, level=EXACT if number % 3 else STANDARD)
ABSENT = 90
numbers = st.integers(0, 12).map(lambda number: ABSENT if number == 12 else number)
owners = st.sampled_from(OWNERS)
positions = st.sampled_from([None, None, 3, 50])


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.source = Shelf(containers=dict(SHELF.containers))
        quotas = Quotas(by_owner={OWNERS[0]: LIMITED})
        self.pool = self.run(self.make(quotas))
        self.leases: list[PoolLease] = []
        self.computed = 1000

    async def make(self, quotas: Quotas) -> DecodedPool:
        rules = PoolRules(page_tokens=PAGE_TOKENS, threads=2)
        policy = QuotaPolicy(quotas=quotas)
        return DecodedPool(PLAIN, self.source, limit_bytes=PAGES * PAGE_BYTES, policy=policy, rules=rules)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def wanted(self, number: int, position: int | None, owner: OwnerId) -> ChunkWanted:
        return ChunkWanted(key_of(number), EXACT if number % 3 else STANDARD, position, owner)

    def judge(self, number: int, outcome: Any) -> None:
        if isinstance(outcome, Hit):
            self.leases.append(outcome.value)
            self.look(outcome.value)
        elif number == ABSENT:
            assert isinstance(outcome, Miss)
        else:
            assert isinstance(outcome, Throttled)
            assert self.leases, "there is room for any chunk alone"

    def look(self, lease: PoolLease) -> None:
        found = content(self.pool, lease)
        expected = self.source.decoded(lease.content_key, lease.level, lease.first_position)
        for ours, its in zip((*found.keys, *found.values), (*expected.keys, *expected.values), strict=True):
            if lease.level == EXACT:
                assert ours.tobytes() == its.tobytes()
            else:  # moved from where it was decoded: turned once more
                assert abs(ours - its).max() < 1e-4

    @rule(number=numbers, position=positions, owner=owners)
    def get(self, number: int, position: int | None, owner: OwnerId) -> None:
        self.judge(number, self.run(self.pool.get(self.wanted(number, position, owner))))

    @rule(first=st.integers(0, 11), count=st.integers(1, 8), owner=owners)
    def get_many_twice_at_once(self, first: int, count: int, owner: OwnerId) -> None:
        chosen = [n % 12 for n in range(first, first + count)]

        async def both() -> list[list[Any]]:
            wanted = [self.wanted(number, None, owner) for number in chosen]
            return list(await asyncio.gather(self.pool.get_many(wanted), self.pool.get_many(wanted[::-1])))

        one, other = self.run(both())
        for number, outcome in (*zip(chosen, one, strict=True), *zip(chosen[::-1], other, strict=True)):
            if isinstance(outcome, Hit):
                self.look(outcome.value)
                outcome.value.release()
            else:
                assert isinstance(outcome, Throttled), number

    @rule(number=numbers, position=positions, owner=owners, steps=st.integers(0, 12))
    def get_and_cancel(self, number: int, position: int | None, owner: OwnerId, steps: int) -> None:
        async def cancelled() -> None:
            task = asyncio.create_task(self.pool.get(self.wanted(number, position, owner)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and isinstance(task.result(), Hit):
                task.result().value.release()

        self.run(cancelled())

    @rule(tokens=st.integers(1, 9), owner=owners, stored=st.booleans())
    def put(self, tokens: int, owner: OwnerId, stored: bool) -> None:
        self.computed += 3 if self.computed % 3 == 1 else 1  # numbers of level exact
        number = self.computed
        kv = draw_kv(PLAIN, tokens, number)

        async def put() -> bool:
            wanted = ChunkWanted(key_of(number), first_position=20, owner=owner)
            done = await self.pool.put(wanted, kv.keys, kv.values, encoding=Encoding() if stored else None)
            with self.pool.resident(wanted) as lease:
                assert content(self.pool, lease).same_as(kv)
            await self.pool.drained()
            return done

        try:
            assert self.run(put())
        except StorageFull:
            assert self.leases
            return
        assert (key_of(number) in self.source.containers) == stored
        if stored:
            assert self.source.decoded(key_of(number)).same_as(kv)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.look(lease)
        lease.release()

    @precondition(lambda self: self.leases)
    @rule()
    def drop(self) -> None:
        self.leases.pop()

    @rule(number=numbers, position=positions, owner=owners)
    def forget(self, number: int, position: int | None, owner: OwnerId) -> None:
        wanted = self.wanted(number, position, owner)
        self.pool.forget(wanted)
        assert self.pool.longest_prefix([wanted]) == 0

    @rule(owner=owners)
    def forget_owner(self, owner: OwnerId) -> None:
        self.pool.forget_owner(owner)
        assert not any(self.pool.longest_prefix([self.wanted(number, None, owner)]) for number in range(12))
        assert not self.pool.holdings(owner).records

    @invariant()
    def books_are_in_order(self) -> None:
        check_books(self.pool)
        assert self.pool.holdings(OWNERS[0]).used_bytes <= LIMITED.limit_bytes
        assert not self.pool._loading._claims

    @invariant()
    def what_is_held_does_not_change(self) -> None:
        for lease in self.leases[-3:]:
            self.look(lease)

    def teardown(self) -> None:
        for lease in self.leases:
            self.look(lease)
            lease.release()
        assert self.pool.stats().leased == 0
        self.run(self.pool.close())
        self.runner.close()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
