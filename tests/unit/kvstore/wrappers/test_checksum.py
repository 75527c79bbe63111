import pytest

from kvloom.codec.container import ByteRange
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.outcome import Corrupt, Hit
from kvloom.kvstore.tier import Record
from kvloom.kvstore.wrappers.checksum import ChecksumTier
from kvloom.kvstore.wrappers.fault import CorruptBytes, FaultTier, Operation, ScriptedFaults

MIB = 1024 * 1024


@pytest.mark.parametrize("operation", [Operation.GET, Operation.PUT])
@pytest.mark.parametrize("bit", [0, 1, 700, 8 * 100 - 1, 8 * 100, 8 * 107 + 7])
async def test_any_flipped_bit_of_payload_or_checksum_is_found(operation: Operation, bit: int) -> None:
    tier = ChecksumTier(FaultTier(MemoryTier(MIB), ScriptedFaults({operation: [CorruptBytes(bit)]})))
    record = make_record(1, 100)
    await tier.put(record)
    assert await tier.get(record.storage_key) == Corrupt("memory", "payload does not match its checksum")


async def test_payload_of_another_record_is_found() -> None:
    inner = MemoryTier(MIB)
    tier = ChecksumTier(inner)
    one, other = make_record(1, 100), make_record(2, 100)
    await tier.put(other)
    sealed = await inner.get(other.storage_key)
    assert isinstance(sealed, Hit)
    await inner.put(Record(one.storage_key, one.content_key, sealed.value.parts[0], 1))
    assert isinstance(await tier.get(one.storage_key), Corrupt)


async def test_record_shorter_than_a_checksum_is_found() -> None:
    inner = MemoryTier(MIB)
    record = make_record(1, 7)
    await inner.put(record)
    for ranges in (None, [ByteRange(0, 7)]):
        assert isinstance(await ChecksumTier(inner).get(record.storage_key, ranges), Corrupt)


async def test_range_never_shows_the_checksum() -> None:
    tier = ChecksumTier(MemoryTier(MIB))
    record = make_record(1, 100)
    await tier.put(record)
    outcome = await tier.get(record.storage_key, [ByteRange(90, 108), ByteRange(100, 108), ByteRange(104, 106)])
    assert isinstance(outcome, Hit)
    assert [bytes(part) for part in outcome.value.parts] == [record.payload[90:], b"", b""]
