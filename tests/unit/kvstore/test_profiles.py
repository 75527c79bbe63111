import asyncio
from pathlib import Path

import pytest
from blake3 import blake3

from kvloom import limits
from kvloom.errors import BodyTooLarge, ConfigError, InvalidKey, KeyMismatch, StorageFull
from kvloom.kvstore.outcome import Corrupt, Hit, Miss
from kvloom.kvstore.profiles import ProfileShelf

DATA = b"means, bases, steps" * 1000
DIGEST = blake3(DATA).digest()


@pytest.fixture
def shelf(tmp_path: Path) -> ProfileShelf:
    return ProfileShelf(tmp_path / "profiles")


async def test_profile_is_kept_for_a_later_process(shelf: ProfileShelf, tmp_path: Path) -> None:
    await shelf.put(DIGEST, memoryview(DATA))
    await shelf.put(DIGEST, DATA)
    again = ProfileShelf(tmp_path / "profiles")
    assert await again.get(DIGEST) == Hit(DATA, "profiles")
    assert await again.list() == [DIGEST]
    assert (tmp_path / "profiles").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "profiles" / DIGEST.hex()).stat().st_mode & 0o777 == 0o600


async def test_absent_profile_is_a_miss(shelf: ProfileShelf) -> None:
    assert await shelf.get(DIGEST) == Miss()
    assert await shelf.list() == []


async def test_profile_under_another_digest_is_refused(shelf: ProfileShelf) -> None:
    with pytest.raises(KeyMismatch, match="it was put as 0000"):
        await shelf.put(bytes(32), DATA)
    assert await shelf.list() == []


async def test_damaged_profile_is_corrupt_and_a_put_heals_it(shelf: ProfileShelf, tmp_path: Path) -> None:
    await shelf.put(DIGEST, DATA)
    (tmp_path / "profiles" / DIGEST.hex()).write_bytes(DATA[:-1])
    assert isinstance(await shelf.get(DIGEST), Corrupt)
    await shelf.put(DIGEST, DATA)
    assert isinstance(await shelf.get(DIGEST), Hit)


async def test_digest_of_another_length_is_refused(shelf: ProfileShelf) -> None:
    for call in (shelf.get(b"short"), shelf.put(b"short", DATA)):
        with pytest.raises(InvalidKey, match="5 bytes, must have 32"):
            await call


async def test_limits_of_size_and_count(shelf: ProfileShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROFILES_MAX", 2)
    for data in (b"one", b"two"):
        await shelf.put(blake3(data).digest(), data)
    with pytest.raises(StorageFull, match="has 2 profiles"):
        await shelf.put(DIGEST, DATA)
    monkeypatch.setattr(limits, "PROFILE_BYTES_MAX", 2)
    with pytest.raises(BodyTooLarge, match=f"{len(DATA)} bytes, the limit is 2"):
        await shelf.put(DIGEST, DATA)
    assert isinstance(await shelf.get(blake3(b"one").digest()), Corrupt)


async def test_concurrent_puts_leave_one_whole_file(shelf: ProfileShelf, tmp_path: Path) -> None:
    await asyncio.gather(*(shelf.put(DIGEST, DATA) for _ in range(20)))
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == [DIGEST.hex()]
    assert isinstance(await shelf.get(DIGEST), Hit)


async def test_files_that_are_no_profiles_are_not_listed(shelf: ProfileShelf, tmp_path: Path) -> None:
    (tmp_path / "profiles" / "README").write_text("hello")
    (tmp_path / "profiles" / ("Z" * 64)).write_text("hello")
    assert await shelf.list() == []


def test_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="profiles cannot be used"):
        ProfileShelf(tmp_path / "file" / "profiles")
