"""One policy per owner: limits, guarantees, pins; checked against a plain account of what every owner holds."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import ConfigError
from kvloom.kvstore.eviction import LruPolicy
from kvloom.kvstore.key import OWNER_BYTES, OwnerId, StorageKey
from kvloom.kvstore.quota import Quota, QuotaPolicy, Quotas
from kvloom.kvstore.tier import UNOWNED, Holdings

A, B, C = (OwnerId(name * OWNER_BYTES) for name in (b"a", b"b", b"c"))


def key(owner: OwnerId, number: int) -> StorageKey:
    return StorageKey(owner + number.to_bytes(16, "big"))


def evict(policy: QuotaPolicy, incoming: OwnerId) -> StorageKey | None:
    victim = policy.victim(incoming)
    if victim is not None:
        policy.record_evict(victim)
    return victim


def test_a_single_owner_is_evicted_as_its_policy_says() -> None:
    policy = QuotaPolicy(LruPolicy)
    plain = LruPolicy()
    random = Random(1)
    for step in range(500):
        one = key(A, random.randrange(20))
        for each in (policy, plain):
            each.record_put(one, 10 + step % 7) if step % 3 else each.record_use(one)
        if step % 5 == 0 and len(plain):
            assert policy.victim(A) == policy.victim() == plain.victim()
            for each in (policy, plain):
                victim = each.victim()
                assert victim is not None
                each.record_evict(victim)
        assert (policy.total_bytes, len(policy)) == (plain.total_bytes, len(plain))


def test_who_is_furthest_above_its_guarantee_gives_way() -> None:
    policy = QuotaPolicy(quotas=Quotas(by_owner={A: Quota(guaranteed_bytes=100), B: Quota(guaranteed_bytes=0)}))
    for number in range(10):
        policy.record_put(key(A, number), 14)  # 40 above
        policy.record_put(key(B, number), 5)  # 50 above
    assert policy.victim(C) == key(B, 0)
    assert evict(policy, C) == key(B, 0)
    policy.record_delete(key(B, 1))
    policy.record_delete(key(B, 2))
    assert evict(policy, B) == key(A, 0)  # A is 40 above, B 35


def test_an_owner_within_its_guarantee_never_gives_way_to_another() -> None:
    policy = QuotaPolicy(quotas=Quotas(by_owner={A: Quota(guaranteed_bytes=100)}))
    for number in range(10):
        policy.record_put(key(A, number), 10)
    assert policy.victim(B) is None
    assert policy.victim() is None
    assert not policy.may_evict(key(A, 1), B)
    assert policy.victim(A) == key(A, 0)  # to itself it does
    assert policy.may_evict(key(A, 1), A)
    policy.record_put(key(A, 10), 1)
    assert policy.victim(B) == key(A, 0)
    assert policy.may_evict(key(A, 1), B)


def test_an_owner_past_its_limit_gives_up_its_own() -> None:
    policy = QuotaPolicy(quotas=Quotas(Quota(limit_bytes=100)))
    for number in range(9):
        policy.record_put(key(A, number), 10)
        policy.record_put(key(B, number), 10)
    assert policy.excess_bytes(A, 10) == 0
    assert policy.excess_bytes(A, 31) == 21
    assert policy.excess_bytes(C, 101) == 1
    assert policy.own_victim(A) == key(A, 0)
    assert policy.own_victim(C) is None


def test_a_pinned_record_is_never_a_victim_and_comes_back_when_it_is_free() -> None:
    policy = QuotaPolicy()
    pinned = {key(A, 0), key(A, 2)}
    policy.pinned = pinned.__contains__
    for number in range(4):
        policy.record_put(key(A, number), 10)
    assert [evict(policy, A), evict(policy, A), evict(policy, A)] == [key(A, 1), key(A, 3), None]
    assert (len(policy), policy.total_bytes, policy.size_of(key(A, 0))) == (2, 20, 10)
    assert key(A, 0) in policy
    assert not policy.may_evict(key(A, 0), A)
    pinned.discard(key(A, 0))
    policy.record_put(key(A, 2), 15)  # replaced while it was set aside
    assert policy.total_bytes == 25
    assert [evict(policy, A), evict(policy, A)] == [key(A, 0), None]
    pinned.clear()
    assert [evict(policy, A), evict(policy, A)] == [key(A, 2), None]
    assert (len(policy), policy.total_bytes) == (0, 0)


def test_a_pinned_record_that_was_set_aside_can_be_deleted() -> None:
    policy = QuotaPolicy()
    policy.pinned = lambda _: True
    policy.record_put(key(A, 0), 10)
    assert policy.victim(A) is None
    policy.record_delete(key(A, 0))
    policy.pinned = lambda _: False
    assert (len(policy), policy.total_bytes, policy.victim(A), key(A, 0) in policy) == (0, 0, None, False)


def test_another_owner_gives_way_where_the_first_is_pinned() -> None:
    policy = QuotaPolicy()
    policy.record_put(key(A, 0), 100)
    policy.record_put(key(B, 0), 10)
    policy.pinned = {key(A, 0)}.__contains__
    assert policy.victim(C) == key(B, 0)


def test_holdings_count_what_each_owner_has_and_lost() -> None:
    policy = QuotaPolicy(quotas=Quotas(by_owner={A: Quota(limit_bytes=70)}))
    for number in range(4):
        policy.record_put(key(A, number), 10)
    policy.record_put(key(B, 0), 5)
    evict(policy, A)
    policy.record_evict(key(A, 77))  # not resident: not counted
    assert policy.holdings(A) == Holdings(30, 3, 1, 70)
    assert policy.holdings(B) == Holdings(5, 1, 0, None)
    assert policy.holdings(C) == Holdings(0, 0, 0, None)


def test_one_policy_for_all_owners_cannot_tell_them_apart() -> None:
    inner = LruPolicy()
    policy = QuotaPolicy.around(inner)
    policy.record_put(key(A, 0), 10)
    policy.record_put(key(B, 0), 10)
    assert len(inner) == 2
    assert policy.holdings(A) is None
    assert policy.victim(B) == key(A, 0)
    assert QuotaPolicy.around(policy) is policy
    assert QuotaPolicy.around(None).holdings(UNOWNED) == Holdings(0, 0, 0, None)


def test_hints_reach_a_policy_that_takes_them_and_no_other() -> None:
    class Hinted(LruPolicy):
        def __init__(self) -> None:
            super().__init__()
            self.hints: list[tuple[StorageKey, bool]] = []

        def record_hint(self, key: StorageKey, *, discard: bool) -> None:
            self.hints.append((key, discard))

    inner = Hinted()
    policy = QuotaPolicy(lambda: inner)
    policy.record_put(key(A, 0), 10)
    policy.record_hint(key(A, 0), discard=True)
    policy.record_hint(key(B, 0), discard=True)  # nobody's: ignored
    assert inner.hints == [(key(A, 0), True)]
    plain = QuotaPolicy(LruPolicy)
    plain.record_put(key(A, 0), 10)
    plain.record_hint(key(A, 0), discard=True)
    assert plain.victim() == key(A, 0)


@pytest.mark.parametrize("quota", [(10, 11), (-1, 0), (None, -1)])
def test_quotas_that_cannot_be(quota: tuple[int | None, int]) -> None:
    with pytest.raises(ConfigError, match="guarantee"):
        Quota(*quota)


def test_guarantees_must_be_for_somebody_and_fit() -> None:
    with pytest.raises(ConfigError, match="default quota"):
        Quotas(Quota(guaranteed_bytes=1))
    quotas = Quotas(by_owner={A: Quota(guaranteed_bytes=60), B: Quota(guaranteed_bytes=50)})
    with pytest.raises(ConfigError, match="ssd tier guarantees 110 bytes in all and has 100"):
        quotas.check_fits("ssd", 100)
    quotas.check_fits("ssd", 110)


OWNERS = {A: Quota(200, 100), B: Quota(None, 150), C: Quota(300)}
CAPACITY = 400


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 15), st.integers(1, 60), st.booleans())))
def test_isolation_holds_whatever_is_put(steps: list[tuple[OwnerId, int, int, bool]]) -> None:
    """A tier of 400 bytes that does as the module says; sizes change, records are pinned and unpinned."""
    policy = QuotaPolicy(quotas=Quotas(by_owner=OWNERS))
    pinned: set[StorageKey] = set()
    policy.pinned = pinned.__contains__
    held: dict[StorageKey, int] = {}

    def used(owner: OwnerId) -> int:
        return sum(size for one, size in held.items() if one.startswith(owner))

    for owner, number, size, pin in steps:
        one = key(owner, number)
        pinned.add(one) if pin and sum(held.get(item, 60) for item in pinned) < 100 else pinned.discard(one)
        policy.record_delete(one)
        held.pop(one, None)
        while policy.excess_bytes(owner, size) > 0:
            victim = policy.own_victim(owner)
            if victim is None:
                break
            assert victim.startswith(owner)
            assert victim not in pinned
            policy.record_evict(victim)
            del held[victim]
        while policy.total_bytes + size > CAPACITY:
            victim = policy.victim(owner)
            if victim is None:
                break
            loser = OwnerId(victim[:OWNER_BYTES])
            assert victim not in pinned
            assert loser == owner or used(loser) > OWNERS[loser].guaranteed_bytes
            policy.record_evict(victim)
            del held[victim]
        if policy.excess_bytes(owner, size) <= 0 and policy.total_bytes + size <= CAPACITY:
            policy.record_put(one, size)
            held[one] = size
        assert policy.total_bytes == sum(held.values())
        assert len(policy) == len(held)
        for each in OWNERS:
            holdings = policy.holdings(each)
            assert holdings is not None
            assert holdings.used_bytes == used(each)
        assert all(item in policy and policy.size_of(item) == size for item, size in held.items())


def test_owners_that_have_nothing_any_more_are_not_asked_for_a_victim() -> None:
    asked: list[LruPolicy] = []

    class Asked(LruPolicy):
        def victim(self) -> StorageKey | None:
            asked.append(self)
            return super().victim()

        @property
        def total_bytes(self) -> int:
            asked.append(self)
            return super().total_bytes

    policy = QuotaPolicy(Asked)
    owners = [OwnerId(number.to_bytes(OWNER_BYTES, "little")) for number in range(100)]
    for owner in owners:
        policy.record_put(key(owner, 1), 10)
    for owner in owners[:97]:
        policy.record_evict(key(owner, 1))
    policy.record_put(key(owners[5], 2), 30)
    asked.clear()
    assert policy.victim() == key(owners[5], 2)
    assert len(set(map(id, asked))) == 4
    assert len(policy) == 4
