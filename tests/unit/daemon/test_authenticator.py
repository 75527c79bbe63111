"""Who a credential belongs to."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from kvloom import limits
from kvloom.daemon.authenticator import Authenticator
from kvloom.daemon.caller import ALL_SCOPES, Scope
from kvloom.daemon.credentials import Credentials, Tenant, new_key
from kvloom.daemon.tenants import DEFAULT_TENANT, TenantTable
from kvloom.errors import ConfigError, Unauthenticated
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.quota import Quota

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SECRET = bytes(range(32))
TOKEN = "kvl_local_" + "t" * 43


def made(tenant, *scopes, **options):
    return new_key(os.urandom(38), tenant=tenant, scopes=scopes or [Scope.READ], now=NOW, **options)


def table(*keys, **options):
    return TenantTable(SECRET, Credentials(keys={key.key.key_id: key.key for key in keys}, **options))


def test_a_key_names_its_tenant_and_nothing_else_does():
    acme, ops = made("acme", Scope.READ, Scope.WRITE), made("ops", Scope.ADMIN)
    known = Authenticator(table(acme, ops), token=TOKEN, now=lambda: NOW)
    caller = known.by_header([f"Bearer {acme.text}"])
    assert (caller.namespace, caller.scopes) == (derive_namespace(SECRET, "acme"), {Scope.READ, Scope.WRITE})
    assert known.by_header([f"bearer {ops.text}"]).tenant == "ops"
    local = known.by_header([f"Bearer {TOKEN}"])
    assert (local.tenant, local.scopes) == (DEFAULT_TENANT, ALL_SCOPES)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["Bearer "],
        ["Bearer kvl_local_wrong"],
        [f"Basic {TOKEN}"],
        [TOKEN],
        [f"Bearer {TOKEN}", f"Bearer {TOKEN}"],
        [f"Bearer {TOKEN} x"],
        ["Bearer ключ"],
        [f"Bearer {'a' * (limits.CREDENTIAL_CHARS_MAX + 1)}"],
        ["Bearer kvl_0123456789ab_" + "a" * 43],
    ],
)
def test_everything_else_is_refused_in_the_same_words(values):
    known = Authenticator(table(made("acme")), token=TOKEN)
    with pytest.raises(Unauthenticated, match=r"^a key that holds is needed: Authorization: Bearer kvl_…$"):
        known.by_header(values)


def test_expired_revoked_and_forged_keys_are_refused_in_the_same_words():
    expired, revoked, good = made("a", expires=NOW - timedelta(seconds=1)), made("a"), made("a")
    gone = type(revoked)(
        revoked.text,
        type(revoked.key)(revoked.key.key_id, "a", frozenset({Scope.READ}), revoked.key.digest, NOW, None, NOW),
    )
    known = Authenticator(table(expired, gone, good), now=lambda: NOW)
    forged = good.text[:-1] + ("a" if good.text[-1] != "a" else "b")
    said = set()
    for text in (expired.text, revoked.text, forged, made("a").text):
        with pytest.raises(Unauthenticated) as caught:
            known.by_key(text)
        said.add(str(caught.value))
    assert len(said) == 1
    assert known.by_key(good.text).tenant == "a"


def test_without_a_token_nobody_is_this_user_unless_it_is_open_to_all():
    with pytest.raises(Unauthenticated):
        Authenticator(table()).by_header([])
    open_one = Authenticator(table(), open_to_all=True)
    assert open_one.by_header([]).tenant == DEFAULT_TENANT
    with pytest.raises(Unauthenticated):
        open_one.by_header(["Bearer wrong"])  # who sends a key means to be its tenant


def test_an_unknown_key_costs_a_digest_and_a_comparison_too(monkeypatch):
    """What the clock could tell is what is computed: the same for a key there is and for one there is not."""
    good = made("a")
    known = Authenticator(table(good))
    calls = []
    from kvloom.daemon import credentials

    monkeypatch.setattr(credentials.hmac, "compare_digest", lambda a, b: calls.append((len(a), len(b))) or a == b)
    known.by_key(good.text)
    first = list(calls)
    calls.clear()
    with pytest.raises(Unauthenticated):
        known.by_key(made("a").text)
    assert calls == first == [(32, 32)]


def test_credentials_are_replaced_whole_or_not_at_all():
    one, two = made("a"), made("b")
    known = Authenticator(table(one))
    known.replace(Credentials(keys={two.key.key_id: two.key}, tenants={"b": Tenant(memory=Quota(5))}))
    with pytest.raises(Unauthenticated):
        known.by_key(one.text)
    assert known.by_key(two.text).tenant == "b"
    with pytest.raises(ConfigError, match="namespace_secret differs"):
        known.replace(Credentials(b"\x01" * 32, keys={one.key.key_id: one.key}))
    assert known.by_key(two.text).tenant == "b"


def test_daemons_with_one_file_derive_the_same_namespaces():
    key = made("acme")
    mine, theirs = (Authenticator(table(key, namespace_secret=SECRET)).by_key(key.text) for _ in range(2))
    assert mine.namespace.secret == theirs.namespace.secret


def test_quotas_are_by_owner_and_the_rest_is_everybodys():
    rules = {"a": Tenant(Quota(10), Quota(20, 5), 30), "b": Tenant()}
    tenants = TenantTable(SECRET, Credentials(tenants=rules), network_bytes=99)
    a, b, c = (tenants.namespace(name).owner for name in "abc")
    assert tenants.memory_quotas().of(a) == Quota(10)
    assert tenants.ssd_quotas().of(a) == Quota(20, 5)
    assert [tenants.network_quotas().of(owner).limit_bytes for owner in (a, b, c)] == [30, 99, 99]
    assert tenants.memory_quotas().of(c) == Quota()
    assert tenants.share("x").inflight_bytes == limits.INFLIGHT_BYTES_MAX // 2
    assert tenants.share(DEFAULT_TENANT).inflight_bytes == limits.INFLIGHT_BYTES_MAX


def test_a_key_that_was_proven_before_is_found_by_its_id_as_long_as_it_holds():
    hours = made("acme", expires=NOW + timedelta(hours=1))
    now = [NOW]
    known = Authenticator(table(hours), token=TOKEN, now=lambda: now[0])
    assert known.by_key_id(hours.key.key_id).tenant == "acme"
    assert known.by_key_id("local") is known.local
    now[0] = NOW + timedelta(hours=1)
    for unknown in (hours.key.key_id, "0" * 12, ""):
        with pytest.raises(Unauthenticated):
            known.by_key_id(unknown)
    with pytest.raises(Unauthenticated):
        Authenticator(table(hours)).by_key_id("local")
