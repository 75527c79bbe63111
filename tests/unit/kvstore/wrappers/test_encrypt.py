from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.container import ByteRange
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.keyring import Keyring
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.outcome import Corrupt, Hit, Miss
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import OwnerId, Record
from kvloom.kvstore.wrappers.encrypt import BLOCK_BYTES, EncryptTier, plain_bytes, sealed_bytes

MIB = 1024 * 1024
SECRET = bytes(range(32))
ONE, OTHER = OwnerId(b"1" * 16), OwnerId(b"2" * 16)


def owned(number: int, size_bytes: int, owner: OwnerId = ONE) -> Record:
    return replace(make_record(number, size_bytes), owner=owner)


@pytest.fixture
def inner() -> MemoryTier:
    return MemoryTier(8 * MIB)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys", SECRET)


@pytest.fixture
def tier(inner: MemoryTier, keyring: Keyring) -> EncryptTier:
    return EncryptTier(inner, keyring)


async def stored(inner: MemoryTier, record: Record) -> Record:
    outcome = await inner.get(record.storage_key)
    assert isinstance(outcome, Hit)
    return replace(record, payload=bytes(outcome.value.parts[0]))


@given(payload_bytes=st.integers(0, 2**28))
def test_lengths_follow_from_each_other(payload_bytes: int) -> None:
    assert plain_bytes(sealed_bytes(payload_bytes)) == payload_bytes


@pytest.mark.parametrize("stored_bytes", [0, 1, 55])
def test_a_length_that_no_payload_leads_to_is_empty(stored_bytes: int) -> None:
    assert plain_bytes(stored_bytes) == 0


@pytest.mark.parametrize("size_bytes", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 77])
async def test_every_range_reads_what_was_put(tier: EncryptTier, size_bytes: int) -> None:
    record = owned(1, size_bytes)
    await tier.put(record)
    edges = sorted({0, 1, 17, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES, size_bytes, size_bytes + 9})
    ranges = [ByteRange(start, stop) for start in edges for stop in edges if start <= stop]
    outcome = await tier.get(record.storage_key, ranges)
    assert isinstance(outcome, Hit)
    assert outcome.value.info == record.info
    found = [bytes(part) for part in outcome.value.parts]
    assert found == [bytes(record.payload)[item.start : item.stop] for item in ranges]


async def test_every_flipped_bit_is_corrupt(tier: EncryptTier, inner: MemoryTier) -> None:
    record = owned(1, 150)
    await tier.put(record)
    sealed = await stored(inner, record)
    for bit in range(8 * len(sealed.payload)):
        damaged = bytearray(sealed.payload)
        damaged[bit // 8] ^= 1 << bit % 8
        await inner.put(replace(sealed, payload=bytes(damaged)))
        assert isinstance(await tier.get(record.storage_key), Corrupt), bit
    await inner.put(sealed)
    assert isinstance(await tier.get(record.storage_key), Hit)


async def test_a_flipped_bit_in_any_block_is_corrupt_where_it_is_read(tier: EncryptTier, inner: MemoryTier) -> None:
    record = owned(1, 3 * BLOCK_BYTES)
    await tier.put(record)
    sealed = await stored(inner, record)
    damaged = bytearray(sealed.payload)
    damaged[-1] ^= 128
    await inner.put(replace(sealed, payload=bytes(damaged)))
    assert isinstance(await tier.get(record.storage_key), Corrupt)
    assert isinstance(
        await tier.get(record.storage_key, [ByteRange(0, 10), ByteRange(2 * BLOCK_BYTES, 10**6)]), Corrupt
    )
    first = await tier.get(record.storage_key, [ByteRange(5, BLOCK_BYTES + 5)])
    assert isinstance(first, Hit)
    assert bytes(first.value.parts[0]) == record.payload[5 : BLOCK_BYTES + 5]


async def test_blocks_cannot_be_exchanged_cut_off_or_taken_from_another_put(
    tier: EncryptTier, inner: MemoryTier
) -> None:
    record = owned(1, 3 * BLOCK_BYTES)
    await tier.put(record)
    older = (await stored(inner, record)).payload
    await tier.put(record)
    sealed = await stored(inner, record)
    head, stride = 56, BLOCK_BYTES + 16
    blocks = [sealed.payload[head + n * stride : head + (n + 1) * stride] for n in range(3)]
    for forged in (
        sealed.payload[:head] + blocks[1] + blocks[0] + blocks[2],
        sealed.payload[:head] + blocks[0] + blocks[1],
        sealed.payload[:head] + blocks[0] + blocks[1] + blocks[2] + blocks[2],
        sealed.payload[:head] + older[head : head + stride] + blocks[1] + blocks[2],
        older[:head] + blocks[0] + blocks[1] + blocks[2],
    ):
        await inner.put(replace(sealed, payload=forged))
        assert isinstance(await tier.get(record.storage_key), Corrupt)


@pytest.mark.parametrize("field", ["storage_key", "content_key", "owner", "stored_at_ms", "expires_at_ms"])
async def test_a_record_does_not_open_as_another(
    tier: EncryptTier, inner: MemoryTier, keyring: Keyring, field: str
) -> None:
    record, other = owned(1, 1000), owned(2, 1000, OTHER)
    keyring.key_of_new(OTHER)
    await tier.put(record)
    sealed = await stored(inner, record)
    value = 77 if field.endswith("_ms") else getattr(other, field)
    await inner.put(replace(sealed, **{field: value}))
    assert isinstance(await tier.get(value if field == "storage_key" else record.storage_key), Corrupt)


async def test_another_owners_key_does_not_open_it(tmp_path: Path, inner: MemoryTier) -> None:
    record = owned(1, 1000)
    await EncryptTier(inner, Keyring(tmp_path / "a", SECRET)).put(record)
    stranger = Keyring(tmp_path / "b", SECRET)
    assert await EncryptTier(inner, stranger).get(record.storage_key) == Miss()
    stranger.key_of_new(ONE)
    assert isinstance(await EncryptTier(inner, stranger).get(record.storage_key), Corrupt)


async def test_nothing_of_the_payload_is_on_the_disk(tmp_path: Path, keyring: Keyring) -> None:
    tier = EncryptTier(SsdTier.open(tmp_path / "data", 4 * MIB), keyring)
    records = [owned(number, size) for number, size in enumerate((40, 5000, 200_000))]
    for record in records:
        await tier.put(record)
    await tier.close()
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for record in records:
        payload = bytes(record.payload)
        assert not any(payload[start : start + 16] in content for start in range(0, len(payload) - 15, 4099))
    secrets = [key.secret for owner in keyring.owners() if (key := keyring.key_of(owner)) is not None]
    assert len(secrets) == 1
    assert secrets[0] not in content
    tier = EncryptTier(SsdTier.open(tmp_path / "data", 4 * MIB), Keyring(tmp_path / "keys", SECRET))
    for record in records:
        outcome = await tier.get(record.storage_key)
        assert isinstance(outcome, Hit)
        assert bytes(outcome.value.parts[0]) == record.payload
    await tier.close()


async def test_no_nonce_is_used_twice_under_a_key(inner: MemoryTier, keyring: Keyring, monkeypatch) -> None:
    """The same record put again and again: every (key, nonce) that the cipher ever encrypted with is another one."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    seen: list[tuple[bytes, bytes]] = []

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._key, self._cipher = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes:
            seen.append((self._key, nonce))
            return self._cipher.encrypt(nonce, data, bound)

    tier = EncryptTier(inner, keyring)
    monkeypatch.setattr(tier, "_cipher", Watched)
    for number in range(50):
        await tier.put(owned(number % 2, 5 * BLOCK_BYTES + 1))
    assert len(seen) == 50 * 7
    assert len(set(seen)) == len(seen)


async def test_erasing_a_key_erases_its_owner_and_no_other(
    tmp_path: Path, tier: EncryptTier, inner: MemoryTier
) -> None:
    mine, theirs = [owned(n, 1000) for n in range(3)], [owned(n, 1000, OTHER) for n in range(3, 6)]
    for record in (*mine, *theirs):
        await tier.put(record)
    copies = [await stored(inner, record) for record in mine]
    assert await tier.erase(ONE) == 3
    assert await tier.erase(ONE) == 0
    assert sorted([info.storage_key async for info in tier.scan()]) == sorted(item.storage_key for item in theirs)
    for copy in copies:  # from a backup of the disk
        await inner.put(copy)
        assert await tier.get(copy.storage_key) == Miss()
    assert len([info async for info in tier.scan()]) == 3
    after = EncryptTier(inner, Keyring(tmp_path / "keys", SECRET))
    assert await after.get(mine[0].storage_key) == Miss()
    assert isinstance(await after.get(theirs[0].storage_key), Hit)
    await after.put(mine[0])  # a new key: the old records stay lost
    assert isinstance(await after.get(mine[0].storage_key), Hit)
    assert isinstance(await after.get(mine[1].storage_key), Corrupt)
