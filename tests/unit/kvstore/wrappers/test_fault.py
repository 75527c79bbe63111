from random import Random

import pytest

from kvloom.codec.container import ByteRange
from kvloom.errors import StorageFull, StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.outcome import Hit, Miss, Unavailable
from kvloom.kvstore.wrappers.fault import (
    CorruptBytes,
    Delay,
    Fail,
    FaultTier,
    Full,
    Lose,
    NoFaults,
    Operation,
    RandomFaults,
    ScriptedFaults,
)

RECORD = make_record(1, 100)
KEY = RECORD.storage_key


def scripted(**script: object) -> FaultTier:
    plan = ScriptedFaults({Operation(name): faults for name, faults in script.items()})  # type: ignore[misc]
    return FaultTier(MemoryTier(1024 * 1024), plan)


async def test_failures_are_typed_and_end_with_the_script() -> None:
    tier = scripted(put=[Fail(), Full()], get=[Fail("down")], contains=[Fail()], delete=[Fail()])
    with pytest.raises(StorageUnavailable, match="memory tier cannot put: injected"):
        await tier.put(RECORD)
    with pytest.raises(StorageFull):
        await tier.put(RECORD)
    await tier.put(RECORD)
    assert await tier.get(KEY) == Unavailable("memory", "down")
    assert isinstance(await tier.get(KEY), Hit)
    with pytest.raises(StorageUnavailable, match="cannot contains"):
        await tier.contains_many([KEY])
    with pytest.raises(StorageUnavailable):
        await tier.delete(KEY)
    assert await tier.delete(KEY)


async def test_lost_operations_look_like_success() -> None:
    tier = scripted(put=[Lose()], get=[None, Lose()], contains=[Lose()], delete=[Lose()])
    await tier.put(RECORD)
    assert isinstance(await tier.get(KEY), Miss)
    await tier.put(RECORD)
    assert isinstance(await tier.get(KEY), Miss)
    assert isinstance(await tier.get(KEY), Hit)
    assert await tier.contains_many([KEY]) == [False]
    assert await tier.delete(KEY) is False
    assert await tier.contains_many([KEY]) == [True]


async def test_corrupted_read_flips_one_bit_and_leaves_the_record() -> None:
    tier = scripted(get=[CorruptBytes(8 * 60 + 3), CorruptBytes(8 * 1000)])
    await tier.put(RECORD)
    outcome = await tier.get(KEY, [ByteRange(0, 50), ByteRange(50, 100)])
    assert isinstance(outcome, Hit)
    first, second = (bytes(part) for part in outcome.value.parts)
    assert first == RECORD.payload[:50]
    assert bytes(a ^ b for a, b in zip(second, RECORD.payload[50:], strict=True)) == bytes(10) + b"\x08" + bytes(39)
    assert isinstance(await tier.get(KEY, [ByteRange(0, 0)]), Hit)
    whole = await tier.get(KEY)
    assert isinstance(whole, Hit)
    assert whole.value.parts[0] == RECORD.payload


async def test_corrupted_put_stays_corrupted() -> None:
    tier = scripted(put=[CorruptBytes(0)])
    await tier.put(RECORD)
    for _ in range(2):
        outcome = await tier.get(KEY)
        assert isinstance(outcome, Hit)
        assert outcome.value.parts[0] != RECORD.payload


async def test_delay_uses_the_sleep_it_was_given() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    tier = FaultTier(MemoryTier(1024 * 1024), ScriptedFaults({Operation.PUT: [Delay(3.5)]}), sleep=sleep)
    await tier.put(RECORD)
    assert slept == [3.5]
    assert isinstance(await tier.get(KEY), Hit)


async def test_random_plan_repeats_with_its_seed_and_can_be_switched_off() -> None:
    def drawn(seed: int) -> list[object]:
        plan = RandomFaults(Random(seed), {Operation.GET: 0.5}, [Fail(), CorruptBytes(0)])
        return [plan.next_fault(Operation.GET) for _ in range(100)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert 20 < drawn(1).count(None) < 80
    assert len({fault for fault in drawn(1) if isinstance(fault, CorruptBytes)}) > 5
    plan = RandomFaults(Random(1), {Operation.GET: 1.0}, [Fail()])
    assert plan.next_fault(Operation.PUT) is None
    plan.enabled = False
    assert plan.next_fault(Operation.GET) is None
    assert NoFaults().next_fault(Operation.GET) is None
