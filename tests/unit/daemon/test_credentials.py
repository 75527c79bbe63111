"""The credentials file: what it may say, how keys are added and revoked in it, and that a key is kept as a digest."""

import contextlib
import os
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.codec.level import LossyCodec
from kvloom.daemon.admission import TenantShare
from kvloom.daemon.caller import Scope
from kvloom.daemon.credentials import (
    key_digest,
    key_id_of,
    new_key,
    parse_credentials,
    with_key,
    with_revocation,
)
from kvloom.daemon.credentials_file import CredentialsFile
from kvloom.errors import ConfigError, NotFound
from kvloom.kvstore.quota import Quota

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
MIB = 1024**2


def made(tenant="acme", scopes=(Scope.READ,), **options):
    return new_key(os.urandom(38), tenant=tenant, scopes=scopes, now=NOW, **options)


def test_a_key_is_kept_as_a_digest_only():
    key = made()
    text = with_key("", key.key)
    secret = key.text.split("_", 2)[2]
    assert len(secret) == 43
    assert secret not in text
    assert secret not in repr(key)
    assert key.key.digest.hex() not in repr(key)
    assert parse_credentials(text).keys[key.key.key_id] == key.key


def test_keys_are_told_apart_by_every_character():
    key = made()
    assert key_id_of(key.text) == key.key.key_id
    assert key.key.is_of(key.text, NOW)
    for position in range(len(key.text)):
        wrong = key.text[:position] + ("a" if key.text[position] != "a" else "b") + key.text[position + 1 :]
        assert not key.key.is_of(wrong, NOW)
    assert key_digest(key.text) != key_digest(key.text + " ")


@pytest.mark.parametrize("text", ["", "kvl_", "kvl_local_" + "a" * 43, "kvl_0123456789ab_" + "a" * 42, "x" * 500])
def test_what_cannot_be_a_key_has_no_id(text):
    assert key_id_of(text) is None


def test_a_key_expires_and_can_be_revoked():
    key = made(expires=NOW + timedelta(days=1)).key
    assert key.state(NOW) == "valid"
    assert key.state(NOW + timedelta(days=1)) == "expired"
    other = made()
    text = with_key(with_key("# mine\n", key), other.key)
    revoked = parse_credentials(with_revocation(text, key.key_id, NOW)).keys
    assert revoked[key.key_id].state(NOW - timedelta(days=9)) == "revoked"
    assert revoked[other.key.key_id] == other.key
    assert not revoked[key.key_id].is_of("anything", NOW)
    assert with_revocation(text, key.key_id, NOW).startswith("# mine\n")


@given(note=st.text(max_size=90), scopes=st.sets(st.sampled_from(list(Scope)), min_size=1))
def test_any_note_is_written_as_it_is_or_refused(note, scopes):
    with contextlib.suppress(ConfigError):
        key = made(note=note, scopes=scopes).key
        (read,) = parse_credentials(with_key("", key)).keys.values()
        assert read == key


FULL = """
namespace_secret = "{secret}"
[tenants.acme]
memory_bytes = "64MiB"
memory_guaranteed_bytes = 1048576
ssd_bytes = "1GiB"
network_bytes = "2GiB"
inflight_bytes = "32MiB"
connections = 7
ttl = "30d"
codec = "cachegen"
[tenants."a.b"]
ttl = "never"
"""


def test_a_tenant_has_quotas_on_every_tier_and_a_share():
    read = parse_credentials(FULL.format(secret="ab" * 32))
    assert read.namespace_secret == b"\xab" * 32
    acme = read.tenants["acme"]
    assert acme.memory == Quota(64 * MIB, MIB)
    assert (acme.ssd, acme.network_bytes) == (Quota(1024 * MIB), 2048 * MIB)
    assert acme.share == TenantShare(32 * MIB, limits.REQUESTS_INFLIGHT_MAX, 7)
    assert (acme.keeps_ttl, acme.ttl_seconds, acme.codec) == (True, 30 * 86_400, LossyCodec.CACHEGEN)
    assert (read.tenants["a.b"].keeps_ttl, read.tenants["a.b"].ttl_seconds) == (True, None)
    assert "ab" * 32 not in repr(read)


KEY_TABLE = (
    '[keys.0123456789ab]\ntenant = "a"\nscopes = ["read"]\ndigest = "{digest}"\ncreated = 2026-01-01T00:00:00Z\n'
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = ", "are not TOML"),
        ("namespace_secrets = 1", "did you mean namespace_secret?"),
        ('namespace_secret = "abc"', "namespace_secret is not 64 lower-case hexadecimal digits"),
        ("tenants = 1", "tenants is not made of tables"),
        ("[tenants.a]\nmemory = 1", "[tenants.a] has 'memory'"),
        ('[tenants.a]\nmemory_bytes = "lots"', "[tenants.a] memory_bytes 'lots' is not a size"),
        ("[tenants.a]\nmemory_bytes = true", "[tenants.a] memory_bytes is True"),
        ("[tenants.a]\nmemory_bytes = 5\nmemory_guaranteed_bytes = 6", "guarantees 6 bytes and allows 5"),
        ("[tenants.a]\nconnections = 0", "[tenants.a] connections is 0, must be 1 to"),
        ('[tenants.a]\ncodec = "zip"', "[tenants.a] codec is 'zip', not one of kvloom, cachegen"),
        ('[tenants.a]\nttl = "soon"', "[tenants.a] ttl 'soon'"),
        ("[tenants.BIG]", "tenant 'BIG' is not 1 to 64"),
        ("[keys.mine]", "[keys.mine] is not named by 12 hexadecimal digits"),
        ("[keys.0123456789ab]", "lacks tenant"),
        (KEY_TABLE.format(digest="ab"), "digest is not 64"),
        (KEY_TABLE.format(digest="ab" * 32).replace("read", "root"), "scopes are ['root'], must be some of read"),
        (KEY_TABLE.format(digest="ab" * 32).replace("2026-01-01T00:00:00Z", "7"), "created is 7, not a time"),
    ],
)
def test_what_cannot_be_used_is_named(text, says):
    with pytest.raises(ConfigError) as caught:
        parse_credentials(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(("limit", "name"), [("TENANTS_MAX", "tenants"), ("API_KEYS_MAX", "keys")])
def test_tenants_and_keys_are_bounded(monkeypatch, limit, name):
    monkeypatch.setattr(limits, limit, 1)
    with pytest.raises(ConfigError, match=f"there are 2 {name}, the limit is 1"):
        parse_credentials(f"[{name}.a]\n[{name}.b]\n")


def test_a_key_needs_a_tenant_and_a_scope():
    with pytest.raises(ConfigError, match="tenant 'A B'"):
        made("A B")
    with pytest.raises(ConfigError, match="a key needs a scope: read, write, admin"):
        made(scopes=())
    with pytest.raises(ConfigError, match="printable"):
        made(note="a\nb")


def test_a_file_is_made_for_its_owner_only_and_keeps_what_people_write(tmp_path):
    file = CredentialsFile(tmp_path / "deep" / "credentials.toml")
    assert file.read().keys == {}
    one, two = made(), made("other")
    file.add(one, b"\x07" * 32)
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.path.write_text(file.path.read_text() + "\n# quotas\n[tenants.acme]\nmemory_bytes = 5\n")
    file.add(two)
    assert file.revoke(one.key.key_id, NOW)
    assert not file.revoke(one.key.key_id, NOW)
    read = file.read()
    assert read.namespace_secret == b"\x07" * 32
    assert [read.keys[key.key.key_id].state(NOW) for key in (one, two)] == ["revoked", "valid"]
    assert "# quotas" in file.path.read_text()
    with pytest.raises(NotFound, match="no key 000000000000"):
        file.revoke("0" * 12, NOW)
    file.path.chmod(0o640)
    with pytest.raises(ConfigError, match="has mode 640, others may use it: chmod 600"):
        file.read()


def test_a_file_that_is_too_long_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "CREDENTIALS_BYTES_MAX", 10)
    file = CredentialsFile(tmp_path / "c.toml")
    file.path.write_text("#" * 11)
    file.path.chmod(0o600)
    with pytest.raises(ConfigError, match="longer than 10 bytes"):
        file.read()
