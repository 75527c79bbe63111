"""Keys from the command to a daemon that runs, and the command itself over TLS."""

import json
import os
import signal

import pytest
from certificates import Authority
from network_servers import wait_until

from kvloom.codec.level import EXACT


@pytest.fixture
def chunk(container_bytes):
    key = os.urandom(32)
    return key, container_bytes([EXACT], content_key=key)


def create(daemon, *arguments):
    made = daemon.run("keys", "create", *arguments)
    assert made.returncode == 0, made.stderr
    return made.stdout.decode().strip()


def test_a_key_works_from_when_it_is_made_until_it_is_revoked(start_daemon, chunk):
    daemon = start_daemon()
    key, data = chunk
    with daemon.client() as mine:
        mine.put(key, data)
    text = create(daemon, "--tenant", "acme", "--scope", "read", "--expires", "1d", "--note", "a test")
    assert text.startswith("kvl_")

    def status():
        return daemon.ask("GET", f"/chunks/{key.hex()}", Authorization=f"Bearer {text}").status

    wait_until(lambda: status() == 404, "the daemon knows the key")
    assert daemon.ask("PUT", f"/chunks/{key.hex()}", data, Authorization=f"Bearer {text}").status == 403
    (shown,) = json.loads(daemon.run("keys", "list", "--json").stdout)
    assert (shown["tenant"], shown["scopes"], shown["state"], shown["note"]) == ("acme", ["read"], "valid", "a test")
    listed = daemon.run("keys", "list").stdout.decode()
    assert "acme" in listed
    assert text.split("_", 2)[2] not in listed
    revoked = daemon.run("keys", "revoke", shown["id"])
    assert revoked.returncode == 0
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: status() == 401, "the daemon refuses the key")
    with daemon.client() as mine:
        assert mine.get(key).value.data == data  # the secret of its namespaces is the one it had before
    assert daemon.stop() == 0
    with daemon.start().client() as mine:
        assert mine.get(key).value.data == data
    assert text.split("_", 2)[2] not in json.dumps(daemon.log)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("create", "--tenant", "A"), 2, "tenant 'A' is not 1 to 64 of a-z 0-9 . _ -"),
        (("create", "--tenant", "a", "--expires", "soon"), 2, "expires 'soon' is not never or a time"),
        (("create", "--tenant", "a", "--scope", "root"), 2, "'root' is not one of 'read', 'write', 'admin'"),
        (("create",), 2, "Missing option '--tenant'"),
        (("revoke", "0" * 12), 3, "no key 000000000000 in"),
    ],
)
def test_what_is_wrong_is_said(daemon, tmp_path, arguments, status, says):
    result = daemon.run("keys", *arguments, "--credentials", str(tmp_path / "c.toml"))
    assert result.returncode == status
    assert says in result.stderr.decode()
    assert result.stdout == b""


def test_a_credentials_file_that_was_named_must_be_there(daemon, tmp_path):
    result = daemon.run("serve", "--port", "0", "--data-dir", str(tmp_path), "--credentials", str(tmp_path / "none"))
    assert result.returncode == 2
    assert b"none is not there: kvloom keys create --credentials makes one" in result.stderr


def test_the_command_and_other_machines_use_tls(start_daemon, tmp_path, chunk):
    """A daemon that listens on every address, and the command as it is used from elsewhere."""
    authority = Authority(tmp_path)
    server = authority.sign("server", "127.0.0.1")
    (tmp_path / "data").mkdir(mode=0o700)
    file = tmp_path / "shared.toml"
    from kvloom.daemon.authenticator import utc_now
    from kvloom.daemon.caller import Scope
    from kvloom.daemon.credentials import new_key
    from kvloom.daemon.credentials_file import CredentialsFile

    made = new_key(os.urandom(38), tenant="acme", scopes=[*Scope], now=utc_now())
    CredentialsFile(file).add(made)
    tls = ("--tls-certificate", str(server.certificate), "--tls-key", str(server.key))
    daemon = start_daemon("--host", "0.0.0.0", "--credentials", str(file), *tls)
    url = f"https://127.0.0.1:{daemon.endpoint.port}"
    elsewhere = {"KVLOOM_DATA_DIR": str(tmp_path / "elsewhere"), "KVLOOM_URL": url, "KVLOOM_CA": str(authority.ca)}
    (tmp_path / "chunk").write_bytes(chunk[1])
    known = elsewhere | {"KVLOOM_API_KEY": made.text}
    assert daemon.run("put", str(tmp_path / "chunk"), **known).returncode == 0
    assert daemon.run("ls", "--full", **known).stdout.decode().split() == [chunk[0].hex()]
    status = daemon.run("status", **known)
    assert b"namespace: acme" in status.stdout, status.stderr
    refused = daemon.run("ls", **elsewhere)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"a key that holds is needed" in refused.stderr
    unverified = daemon.run("ls", **known | {"KVLOOM_CA": ""})
    assert unverified.returncode == 4
    assert b"does not hold: self-signed certificate in certificate chain" in unverified.stderr or (
        b"does not hold: unable to get local issuer certificate" in unverified.stderr
    )
