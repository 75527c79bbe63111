from pathlib import Path

import pytest

from kvloom.errors import ConfigError
from kvloom.kvstore.keyring import Keyring
from kvloom.kvstore.tier import OwnerId

SECRET = bytes(range(32))
ONE, OTHER = OwnerId(b"1" * 16), OwnerId(b"2" * 16)


def test_keys_are_kept_and_differ(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path, SECRET)
    assert keyring.key_of(ONE) is None
    one, other = keyring.key_of_new(ONE), keyring.key_of_new(OTHER)
    assert keyring.key_of_new(ONE) is one
    assert one.secret != other.secret
    again = Keyring(tmp_path, SECRET)
    assert again.key_of(ONE) == one
    assert sorted(again.owners()) == [ONE, OTHER]
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert one.secret not in path.read_bytes()


def test_two_that_make_the_same_key_agree(tmp_path: Path) -> None:
    first, second = Keyring(tmp_path, SECRET), Keyring(tmp_path, SECRET)
    assert first.key_of_new(ONE) == second.key_of_new(ONE)


def test_another_secret_opens_nothing(tmp_path: Path) -> None:
    Keyring(tmp_path, SECRET).key_of_new(ONE)
    with pytest.raises(ConfigError, match=f"{ONE.hex()}.key is damaged, or wrapped under another encryption secret"):
        Keyring(tmp_path, bytes(32))


@pytest.mark.parametrize("bit", range(0, 480, 7))
def test_a_damaged_key_file_is_named(tmp_path: Path, bit: int) -> None:
    Keyring(tmp_path, SECRET).key_of_new(ONE)
    path = tmp_path / f"{ONE.hex()}.key"
    damaged = bytearray(path.read_bytes())
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match="is damaged"):
        Keyring(tmp_path, SECRET)


def test_key_files_cannot_be_exchanged(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path, SECRET)
    keyring.key_of_new(ONE)
    (tmp_path / f"{ONE.hex()}.key").rename(tmp_path / f"{OTHER.hex()}.key")
    with pytest.raises(ConfigError, match="is damaged"):
        Keyring(tmp_path, SECRET)


@pytest.mark.parametrize("name", ["x.key", "abcd.key"])
def test_a_file_that_names_no_owner_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(60))
    with pytest.raises(ConfigError, match="not named after an owner"):
        Keyring(tmp_path, SECRET)


def test_a_secret_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 31 bytes, must have 32"):
        Keyring(tmp_path, bytes(31))


def test_erased_is_erased_also_when_a_crash_cut_it_short(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path, SECRET)
    key = keyring.key_of_new(ONE)
    assert keyring.erase(ONE)
    assert not keyring.erase(ONE)
    assert keyring.key_of(ONE) is None
    assert list(tmp_path.iterdir()) == []
    assert keyring.key_of_new(ONE) != key
    (tmp_path / f"{ONE.hex()}.key").write_bytes(bytes(60))  # overwritten and not yet removed
    assert Keyring(tmp_path, SECRET).key_of(ONE) is None
    assert list(tmp_path.iterdir()) == []
