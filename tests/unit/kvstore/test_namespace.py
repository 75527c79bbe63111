import multiprocessing
from pathlib import Path

import pytest
from blake3 import blake3

from kvloom.errors import ConfigError, InvalidRequest
from kvloom.kvstore.namespace import Namespace, derive_namespace, load_or_create_root_secret


def test_secret_is_keyed_blake3_of_the_name_under_the_root() -> None:
    root = bytes(range(32))
    assert derive_namespace(root, "alice").secret == blake3(b"alice", key=root).digest()
    assert len({derive_namespace(root, name).secret for name in ("alice", "bob")}) == 2
    assert derive_namespace(root, "alice").secret != derive_namespace(bytes(32), "alice").secret


def test_secret_is_not_shown() -> None:
    assert "secret" not in repr(derive_namespace(bytes(32), "alice"))


@pytest.mark.parametrize("name", ["", "a" * 65, "Alice", "a b", "a/b", "ä", "a\n"])
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not 1 to 64 of"):
        derive_namespace(bytes(32), name)


def test_secret_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="31 bytes, must have 32"):
        Namespace("alice", bytes(31))


def test_root_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "root.secret"
    secret = load_or_create_root_secret(path)
    assert len(secret) == 32
    assert secret != bytes(32)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_root_secret(path) == secret
    assert [item.name for item in path.parent.iterdir()] == ["root.secret"]


def test_processes_that_race_agree(tmp_path: Path) -> None:
    path = tmp_path / "root.secret"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        secrets = pool.map(load_or_create_root_secret, [path] * 16)
    assert len(set(secrets)) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["root.secret"]


def test_root_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root.secret"
    load_or_create_root_secret(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=f"mode 640, others may use it: chmod 600 {path}"):
        load_or_create_root_secret(path)


def test_root_secret_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root.secret"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="has 5 bytes, must have 32"):
        load_or_create_root_secret(path)


def test_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"root\.secret cannot be used"):
        load_or_create_root_secret(tmp_path / "file" / "root.secret")
