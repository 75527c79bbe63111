from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvloom import limits
from kvloom.errors import Overloaded, StorageFull
from kvloom.kvstore.key import OWNER_BYTES, OwnerId, StorageKey
from kvloom.kvstore.tiered.pins import LeaseId, Pins

A, B = (OwnerId(name * OWNER_BYTES) for name in (b"a", b"b"))


class Clock:
    now_ms = 1000

    def __call__(self) -> int:
        return self.now_ms


def key(number: int) -> StorageKey:
    return StorageKey(number.to_bytes(32, "big"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pins(clock: Clock) -> Pins:
    return Pins(clock, bytes_max=150, owner_bytes_max=lambda _: 100)


def test_a_lease_ends_by_itself_at_the_moment_it_says(pins: Pins, clock: Clock) -> None:
    lease = pins.add(A, {key(1): 10, key(2): 20}, 1500)
    assert pins.is_pinned(key(1))
    assert not pins.is_pinned(key(3))
    assert (pins.owner_bytes(A), pins.pinned_bytes, pins.leases, len(pins)) == (30, 30, 1, 2)
    clock.now_ms = 1499
    assert pins.is_pinned(key(2))
    clock.now_ms = 1500
    assert not pins.is_pinned(key(2))  # before anybody has noticed
    assert pins.end_due() == 1
    assert (pins.owner_bytes(A), pins.pinned_bytes, pins.leases, len(pins)) == (0, 0, 0, 0)
    assert not pins.release(A, lease)


def test_a_chunk_is_pinned_until_the_last_of_its_leases_ends(pins: Pins, clock: Clock) -> None:
    long = pins.add(A, {key(1): 60}, 3000)
    pins.add(A, {key(1): 60, key(2): 20}, 2000)
    assert pins.owner_bytes(A) == 80  # each chunk once
    clock.now_ms = 2000
    pins.end_due()
    assert pins.is_pinned(key(1))
    assert not pins.is_pinned(key(2))
    assert pins.owner_bytes(A) == 60
    assert pins.release(A, long)
    assert not pins.is_pinned(key(1))


def test_releasing_the_longer_lease_leaves_the_shorter_one(pins: Pins, clock: Clock) -> None:
    long = pins.add(A, {key(1): 60}, 3000)
    pins.add(A, {key(1): 60}, 2000)
    pins.release(A, long)
    assert pins.is_pinned(key(1))
    clock.now_ms = 2000
    assert not pins.is_pinned(key(1))


def test_somebody_elses_lease_is_like_none(pins: Pins) -> None:
    lease = pins.add(A, {key(1): 10}, 2000)
    assert pins.release(B, lease) is pins.release(B, LeaseId(b"nonsense")) is False
    assert pins.is_pinned(key(1))


def test_bytes_are_bounded_per_owner_and_in_all_and_a_refusal_pins_nothing(pins: Pins) -> None:
    pins.add(A, {key(1): 90}, 2000)
    with pytest.raises(StorageFull, match="20 bytes to pin beside 90 that its owner pinned, the limit is 100"):
        pins.add(A, {key(2): 20}, 2000)
    with pytest.raises(StorageFull, match="70 bytes to pin beside 90 that all owners pinned, the limit is 150"):
        pins.add(B, {key(3): 70}, 2000)
    assert not pins.is_pinned(key(2))
    assert not pins.is_pinned(key(3))
    pins.add(A, {key(1): 90}, 2000)  # pinned already: no more bytes
    pins.add(B, {key(3): 60}, 2000)
    assert (pins.pinned_bytes, pins.leases) == (150, 3)


def test_room_comes_back_when_a_lease_has_ended(pins: Pins, clock: Clock) -> None:
    pins.add(A, {key(1): 90}, 2000)
    clock.now_ms = 2000
    pins.add(A, {key(2): 90}, 3000)
    assert pins.pinned_bytes == 90


def test_leases_of_an_owner_are_bounded(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASES_MAX", 3)
    for _ in range(3):
        pins.add(A, {key(1): 1}, 2000)
    with pytest.raises(Overloaded, match="3 leases"):
        pins.add(A, {key(1): 1}, 2000)
    pins.add(B, {key(2): 1}, 2000)


def test_a_chunk_that_is_forgotten_leaves_every_lease(pins: Pins) -> None:
    one = pins.add(A, {key(1): 10, key(2): 10}, 2000)
    two = pins.add(A, {key(1): 10}, 2000)
    pins.forget(key(1))
    pins.forget(key(9))
    assert (pins.is_pinned(key(1)), pins.is_pinned(key(2)), pins.owner_bytes(A)) == (False, True, 10)
    assert (pins.holds(one, key(1)), pins.holds(one, key(2)), pins.holds(two, key(1))) == (False, True, False)
    assert pins.release(A, one)
    assert pins.release(A, two)
    assert pins.pinned_bytes == 0


class PinsMachine(RuleBasedStateMachine):
    """Against a list of leases."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        ids = count()
        self.pins = Pins(
            self.clock,
            bytes_max=10_000,
            owner_bytes_max=lambda _: 10_000,
            make_id=lambda: next(ids).to_bytes(16, "big"),
        )
        self.model: dict[LeaseId, tuple[OwnerId, dict[StorageKey, int], int]] = {}

    @rule(owner=st.sampled_from([A, B]), numbers=st.sets(st.integers(0, 5)), lasting=st.integers(1, 50))
    def add(self, owner: OwnerId, numbers: set[int], lasting: int) -> None:
        base = 0 if owner == A else 100
        sizes = {key(base + number): 10 + number for number in numbers}
        until_ms = self.clock.now_ms + lasting
        self.model[self.pins.add(owner, sizes, until_ms)] = (owner, sizes, until_ms)

    @rule(data=st.data(), owner=st.sampled_from([A, B]))
    def release(self, data: st.DataObject, owner: OwnerId) -> None:
        if not self.model:
            return
        lease = data.draw(st.sampled_from(sorted(self.model)))
        held, _, until_ms = self.model[lease]
        ours = held == owner and until_ms > self.clock.now_ms
        assert self.pins.release(owner, lease) is ours
        if ours:
            del self.model[lease]

    @rule(number=st.integers(0, 5))
    def forget(self, number: int) -> None:
        self.pins.forget(key(number))
        for _, sizes, _ in self.model.values():
            sizes.pop(key(number), None)

    @rule(step=st.integers(1, 30))
    def pass_time(self, step: int) -> None:
        self.clock.now_ms += step

    @invariant()
    def agrees(self) -> None:
        running = [item for item in self.model.values() if item[2] > self.clock.now_ms]
        pinned = {one for _, sizes, _ in running for one in sizes}
        for number in (*range(6), *range(100, 106)):
            assert self.pins.is_pinned(key(number)) == (key(number) in pinned)
        self.pins.end_due()
        for owner in (A, B):
            held = {one: size for lessee, sizes, _ in running if lessee == owner for one, size in sizes.items()}
            assert self.pins.owner_bytes(owner) == sum(held.values())
        assert len(self.pins) == len(pinned)


TestPinsMachine = PinsMachine.TestCase
TestPinsMachine.settings = settings(max_examples=50, stateful_step_count=40)
