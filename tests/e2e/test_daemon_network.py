"""Real daemons that share one network store: what one was given, the other has, even when the first is killed."""

import os
import time

import pytest
from network_servers import S3_BUCKET, wait_until

from kvloom.codec.level import EXACT
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.caller import Scope
from kvloom.daemon.credentials import new_key
from kvloom.daemon.credentials_file import CredentialsFile
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.tier import Ack


@pytest.fixture(params=["valkey", "s3", "mooncake"])
def network(request) -> str:
    """The line of configuration of a real server."""
    prefix = f"e2e{time.time_ns()}"
    if request.param == "valkey":
        return f"valkey://127.0.0.1:{request.getfixturevalue('valkey_server').port}/{prefix}"
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return f"s3://{S3_BUCKET}/{prefix}"
    return request.getfixturevalue("mooncake_servers").url(prefix)


@pytest.fixture
def secret(tmp_path):
    """A root secret for several daemons."""
    path = tmp_path / "shared.secret"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return path


@pytest.fixture
def chunks(container_bytes):
    keys = [os.urandom(32) for _ in range(6)]
    return {key: container_bytes([EXACT], content_key=key, layers=8, segment_bytes=60_000) for key in keys}


def test_two_daemons_share_chunks_and_one_may_be_killed(start_daemon, network, secret, chunks) -> None:
    flags = ("--network", network, "--root-secret", str(secret), "--memory", "16MiB", "--ssd", "0")
    one, two = (start_daemon(*flags, name=name) for name in ("one", "two"))
    with one.client() as writer, two.client() as reader:
        for key, data in chunks.items():
            writer.put(key, data, ack=Ack.MEMORY)
        wait_until(lambda: all(reader.exists(list(chunks))), "the chunks reach the network store")
        first, *others = chunks
        outcome = reader.get(first)
        assert isinstance(outcome, Hit)
        assert outcome.value.data == chunks[first]
        assert outcome.tier == network.partition(":")[0]
        one.kill()
        for key in others:
            some = reader.get(key, layers=range(2, 5))
            assert isinstance(some, Hit)
            assert len(some.value.data) < len(chunks[key])
            assert reader.get(key).value.data == chunks[key]
        assert {entry.key for entry in reader.list_chunks().chunks} == set(chunks)
        assert reader.delete(first)
        assert isinstance(reader.get(first), Miss)


def test_a_daemon_that_comes_back_finds_them_and_one_with_another_secret_does_not(
    start_daemon, valkey_server, secret, chunks
) -> None:
    network = ("--network", f"valkey://127.0.0.1:{valkey_server.port}/e2e-back", "--memory", "16MiB", "--ssd", "0")
    daemon = start_daemon(*network, "--root-secret", str(secret))
    with daemon.client() as client:
        for key, data in chunks.items():
            client.put(key, data, ack=Ack.MEMORY)
    assert daemon.stop() == 0
    with daemon.start().client() as client:
        for key, data in chunks.items():
            assert client.get(key).value.data == data
    stranger = start_daemon(*network, name="stranger")
    with stranger.client() as client:
        assert client.exists(list(chunks)) == [False] * 6
        assert client.list_chunks().chunks == ()
    assert any("root secret" in line["event"] for line in stranger.log)


def test_one_credentials_file_makes_tenants_the_same_on_every_daemon(
    start_daemon, valkey_server, tmp_path, chunks
) -> None:
    """A key that one daemon knows is its tenant's on the other, whose chunks nobody else sees on either."""
    file = CredentialsFile(tmp_path / "credentials.toml")
    acme, other = (new_key(os.urandom(38), tenant=name, scopes=[*Scope], now=utc_now()) for name in ("acme", "other"))
    file.add(acme)
    file.add(other)
    file.path.write_text(file.path.read_text() + "\n[tenants.acme]\nnetwork_bytes = '1GiB'\nttl = '12h'\n")
    network = f"valkey://127.0.0.1:{valkey_server.port}/e2e-keys"
    flags = ("--network", network, "--credentials", str(file.path), "--memory", "16MiB", "--ssd", "0")
    one, two = (start_daemon(*flags, name=name) for name in ("one", "two"))
    with one.client(acme.text) as writer, two.client(acme.text) as reader, two.client(other.text) as stranger:
        for key, data in chunks.items():
            writer.put(key, data, ack=Ack.MEMORY)
        wait_until(lambda: all(reader.exists(list(chunks))), "the chunks reach the network store")
        assert stranger.exists(list(chunks)) == [False] * len(chunks)
        for key, data in chunks.items():
            assert isinstance(stranger.get(key), Miss)
            assert not stranger.delete(key)
            assert reader.get(key).value.data == data
        assert reader.info(key).chunk.expires_at_ms is not None
        assert stranger.list_chunks().chunks == ()
    assert not any("root secret" in line["event"] for line in one.log)


def test_a_daemon_whose_network_is_away_serves_what_it_has(start_daemon, secret, chunks) -> None:
    daemon = start_daemon("--network", "valkey://127.0.0.1:9", "--root-secret", str(secret))
    with daemon.client() as client:
        for key, data in chunks.items():
            client.put(key, data, ack=Ack.DISK)
        assert client.exists(list(chunks)) == [True] * 6
        for key, data in chunks.items():
            assert client.get(key).value.data == data
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--network", "ftp://x"), "network scheme 'ftp' is not one of"),
        (("--root-secret", "/no/such/file"), "root secret /no/such/file"),
    ],
)
def test_a_line_that_is_wrong_is_refused_at_the_start(start_daemon, tmp_path, flags, says) -> None:
    import subprocess
    import sys

    command = [
        sys.executable,
        "-m",
        "kvloom.daemon.cli",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(tmp_path / "d"),
        *flags,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
