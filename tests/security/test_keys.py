"""Who may do what: generated from the table of routes, so that a route nobody thought of is refused too."""

import asyncio
import json
import os
import re
import socket

import pytest

from kvloom import limits
from kvloom.clients import AsyncKvloomClient, KvloomClient, wire
from kvloom.clients.local_wire import SOCKET_NAME, Frame, Kind, decode_error
from kvloom.codec.level import EXACT
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.call import KEY as KEY_NEEDED
from kvloom.daemon.call import SESSION
from kvloom.daemon.caller import Scope
from kvloom.daemon.http_api import HttpApi
from kvloom.daemon.http_guard import OPEN
from kvloom.daemon.metrics import Metrics
from kvloom.errors import ConfigError, Unauthenticated
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.tier import Ack

KEY = "0" * 64
NOBODY = "kvl_0123456789ab_" + "a" * 43


def routes(edge):
    running = edge.running
    metrics = Metrics(lambda: running.service.stats(running.authenticator.local))
    return HttpApi(running.service, metrics, running.authenticator).routes


def target(path):
    names = {"{key}": KEY, "{digest}": KEY, "{lease}": KEY[:32], "{file}": "style.css"}
    for name, value in names.items():
        path = path.replace(name, value)
    return path


def bearer(text):
    return f"Authorization: Bearer {text}"


def told(answer, key=KEY):
    """All that an answer tells, but which request and chunk it answers, and when."""
    head = re.sub(r"(?im)^(x-request-id|date):.*$", "", answer.head)
    return answer.status, head.replace(key, "K").replace(key[:16], "K"), answer.body.decode().replace(key[:16], "K")


def test_only_health_and_the_dashboards_empty_page_are_open(edge):
    by_need = {}
    for route in routes(edge):
        by_need.setdefault(route.needs, set()).add(f"{route.method} {route.path}")
    assert by_need[OPEN] == {"GET /healthz", "GET /readyz", "GET /dashboard", "GET /dashboard/static/{file}"}
    assert by_need[KEY_NEEDED] == {"POST /dashboard/session"}
    assert all(name.partition(" ")[2].startswith("/dashboard/") for name in by_need[SESSION])
    assert set(by_need) - {OPEN, KEY_NEEDED, SESSION} == set(Scope)


async def test_every_route_but_what_is_open_is_refused_without_a_key_that_holds(edge):
    table = routes(edge)
    assert len(table) >= 15
    for route in table:
        for key in (None, bearer(NOBODY), bearer("x"), "Authorization: Basic dTpw", f"Cookie: token={edge.key}"):
            answer = await edge.ask(route.method, target(route.path), key=key)
            if route.needs is OPEN:
                assert answer.status == 200, route
                continue
            assert answer.status == 401, (route, key)
            assert answer.closed
            assert "WWW-Authenticate: Bearer" in answer.head
            if route.method != "HEAD":
                assert answer.json()["error"] == "unauthenticated"


async def test_every_route_is_refused_to_a_key_with_every_scope_but_its_own(edge):
    for route in routes(edge):
        if not isinstance(route.needs, Scope):
            continue
        others = [scope for scope in Scope if scope is not route.needs]
        allowed, refused = await edge.grant("acme", route.needs), await edge.grant("acme", *others)
        answer = await edge.ask(route.method, target(route.path), key=bearer(refused.text))
        assert answer.status == 403, route
        if route.method != "HEAD":
            assert f"this needs scope {route.needs}" in answer.json()["message"]
        answer = await edge.ask(route.method, target(route.path), key=bearer(allowed.text))
        assert answer.status not in (401, 403), route


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("PATCH", "/stats"), ("GET", "/"), ("TRACE", "/x")])
async def test_what_is_no_route_is_not_said_to_strangers(edge, method, path):
    stranger = await edge.ask(method, path, key=None)
    assert (stranger.status, stranger.json()["error"]) == (401, "unauthenticated")
    assert (await edge.ask(method, path)).status in (404, 405)


async def test_a_key_is_not_taken_from_a_query_or_twice(edge):
    token = edge.key.split()[-1]
    for path in (f"/chunks?token={token}", f"/chunks?access_token={token}"):
        assert (await edge.ask("GET", path, key=None)).status == 401
    assert (await edge.ask("GET", "/chunks", edge.key)).status == 401


async def test_another_tenants_chunk_is_told_of_exactly_as_one_that_is_not_there(edge, container_bytes):
    mine, theirs = [await edge.grant(tenant) for tenant in ("mine", "theirs")]
    foreign, absent = os.urandom(32).hex(), os.urandom(32).hex()
    data = container_bytes([EXACT], content_key=bytes.fromhex(foreign), segment_bytes=3000)
    stored = await edge.ask("PUT", f"/chunks/{foreign}?ack=memory", body=data, key=bearer(theirs.text))
    assert stored.status == 201
    assert (await edge.ask("GET", f"/chunks/{foreign}", key=bearer(theirs.text))).status == 200
    for method, path, body in (
        ("GET", "/chunks/{}", ""),
        ("GET", "/chunks/{}?level=exact&layers=0-1", ""),
        ("HEAD", "/chunks/{}", ""),
        ("GET", "/chunks/{}/info", ""),
        ("DELETE", "/chunks/{}", ""),
        ("GET", "/chunks?prefix={}", ""),
        ("POST", "/chunks/exists", '{{"keys": ["{}"]}}'),
        ("POST", "/prefix", '{{"keys": ["{}"]}}'),
    ):
        answers = [
            await edge.ask(method, path.format(key), body=body.format(key).encode(), key=bearer(mine.text))
            for key in (foreign, absent)
        ]
        assert told(answers[0], foreign) == told(answers[1], absent), (method, path)
    assert (await edge.ask("GET", f"/chunks/{foreign}", key=bearer(theirs.text))).body == data
    assert (await edge.ask("GET", "/tenant", key=bearer(mine.text))).json()["puts"] == 0


async def test_metrics_do_not_tell_one_tenants_miss_from_anothers(edge, container_bytes):
    """Labels are routes and statuses; a scrape before and after a foreign and an absent key differs alike."""
    mine, theirs = [await edge.grant(tenant) for tenant in ("mine", "theirs")]
    foreign, absent = os.urandom(32).hex(), os.urandom(32).hex()
    data = container_bytes([EXACT], content_key=bytes.fromhex(foreign))
    await edge.ask("PUT", f"/chunks/{foreign}", body=data, key=bearer(theirs.text))

    async def grown(key):
        before = await counts()
        await edge.ask("GET", f"/chunks/{key}", key=bearer(mine.text))
        after = await counts()
        return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}

    async def counts():
        text = (await edge.ask("GET", "/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        moving = ("_seconds", "created", "_bucket", "sum", "process_")  # what the process takes moves by itself
        return {name: float(value) for name, _, value in lines if not any(item in name for item in moving)}

    await grown(absent)
    assert await grown(foreign) == await grown(absent)


async def test_a_key_that_is_revoked_is_refused_on_a_connection_it_came_over_before(edge):
    made = await edge.grant("acme")
    reader, writer = await edge.connect()
    request = f"GET /chunks HTTP/1.1\r\nHost: localhost\r\n{bearer(made.text)}\r\n\r\n".encode()
    try:
        writer.write(request)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"}")
        await asyncio.to_thread(edge.credentials.revoke, made.key.key_id, utc_now())
        await edge.reload()
        writer.write(request)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
    finally:
        writer.close()


async def test_a_key_that_has_expired_is_refused(edge):
    made = await edge.grant("acme", expires=utc_now())
    assert (await edge.ask("GET", "/chunks", key=bearer(made.text))).status == 401


async def test_a_changed_file_is_noticed_without_a_signal(edge, monkeypatch):
    made = await edge.grant("acme")
    monkeypatch.setattr(limits, "CREDENTIALS_POLL_SECONDS", 0.01)
    edge.running.reload.set()  # so that the time of the next look is the new one
    await asyncio.to_thread(edge.credentials.revoke, made.key.key_id, utc_now())
    async with asyncio.timeout(30):
        while (await edge.ask("GET", "/chunks", key=bearer(made.text))).status != 401:
            pass


@pytest.mark.parametrize("damage", ["nonsense", "[tenants.acme]\nmemory_guaranteed_bytes = '9TiB'\n", None])
async def test_a_file_that_does_not_hold_leaves_the_keys_before_in_force(edge, damage):
    made = await edge.grant("acme")
    path = edge.credentials.path
    if damage is None:
        path.unlink()
    else:
        path.write_text(path.read_text() + "\n" + damage)
    edge.running.reload.set()
    async with asyncio.timeout(30):
        while edge.running.reload.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert (await edge.ask("GET", "/chunks", key=bearer(made.text))).status == 200


async def test_quotas_change_with_the_file(edge, container_bytes):
    """The oldest chunks of a tenant past its new quota give way; another tenant's stay."""
    mine, theirs = [await edge.grant(tenant) for tenant in ("mine", "theirs")]
    chunks = {(made, os.urandom(32)): None for made in (mine.text, theirs.text) for _ in range(3)}
    for text, key in chunks:
        data = container_bytes([EXACT], content_key=key, segment_bytes=200_000, layers=4)
        await edge.ask("PUT", f"/chunks/{key.hex()}", body=data, key=bearer(text))

    async def held(text):
        keys = [key.hex() for made, key in chunks if made == text]
        answer = await edge.ask("POST", "/chunks/exists", body=json.dumps({"keys": keys}).encode(), key=bearer(text))
        return sum(answer.json()["exists"])

    assert (await held(mine.text), await held(theirs.text)) == (3, 3)
    path = edge.credentials.path
    path.write_text(path.read_text() + "\n[tenants.mine]\nmemory_bytes = '2MiB'\n")
    await edge.reload()
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key, segment_bytes=200_000, layers=4)
    assert (await edge.ask("PUT", f"/chunks/{key.hex()}", body=data, key=bearer(mine.text))).status == 201
    assert await held(mine.text) < 3
    assert await held(theirs.text) == 3
    tenant = (await edge.ask("GET", "/tenant", key=bearer(mine.text))).json()
    assert tenant["tiers"][0]["limit_bytes"] == 2 * 1024**2
    assert tenant["tiers"][0]["used_bytes"] <= 2 * 1024**2


async def test_a_tenant_that_floods_the_cache_does_not_take_what_is_guaranteed(edge, container_bytes):
    mine, theirs = [await edge.grant(tenant) for tenant in ("mine", "theirs")]
    path = edge.credentials.path
    path.write_text(path.read_text() + "\n[tenants.mine]\nmemory_guaranteed_bytes = '32MiB'\n")
    await edge.reload()
    keys = [os.urandom(32) for _ in range(4)]

    async def put(text, key):
        data = container_bytes([EXACT], content_key=key, segment_bytes=1_500_000, seed=key[0])
        assert (await edge.ask("PUT", f"/chunks/{key.hex()}", body=data, key=bearer(text))).status == 201
        return len(data)

    assert sum([await put(mine.text, key) for key in keys]) < 32 * 1024**2
    while edge.stats().tiers[0].evictions < 12:
        await put(theirs.text, os.urandom(32))
    body = json.dumps({"keys": [key.hex() for key in keys]}).encode()
    answer = await edge.ask("POST", "/chunks/exists", body=body, key=bearer(mine.text))
    assert answer.json()["exists"] == [True] * 4


async def test_a_tenant_has_its_share_of_connections_and_bytes_and_no_more(edge, monkeypatch):
    greedy, modest = [await edge.grant(tenant) for tenant in ("greedy", "modest")]
    path = edge.credentials.path
    path.write_text(path.read_text() + "\n[tenants.greedy]\nconnections = 2\ninflight_bytes = 1000\n")
    await edge.reload()
    large = f"PUT /chunks/{KEY} HTTP/1.1\r\nHost: localhost\r\n{bearer(greedy.text)}\r\nContent-Length: 1001\r\n\r\n"
    answer = await edge.send(large.encode())
    assert (answer.status, answer.json()["error"]) == (429, "tenant_overloaded")
    assert "Retry-After: 1" in answer.head
    kept = [await edge.connect() for _ in range(2)]
    for reader, writer in kept:
        writer.write(f"GET /tenant HTTP/1.1\r\nHost: localhost\r\n{bearer(greedy.text)}\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    refused = await edge.ask("GET", "/tenant", key=bearer(greedy.text))
    assert (refused.status, refused.json()["error"], refused.closed) == (429, "tenant_overloaded", True)
    assert "2 connections, its limit is 2" in refused.json()["message"]
    assert (await edge.ask("GET", "/tenant", key=bearer(modest.text))).status == 200
    for _, writer in kept:
        writer.close()
    async with asyncio.timeout(30):
        while (await edge.ask("GET", "/tenant", key=bearer(greedy.text))).status != 200:
            pass


async def test_strangers_cannot_take_all_places(edge, monkeypatch):
    monkeypatch.setattr(limits, "STRANGERS_MAX", 2)
    known = await edge.connect()
    known[1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /tenant HTTP/1.1\r\nHost: a\r\n\r\n")
    known[1].close()
    reader, writer = await edge.connect()
    writer.write(f"GET /tenant HTTP/1.1\r\nHost: localhost\r\n{edge.key}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(30):
        while edge.running.service.admission.connections > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
    strangers = [await edge.connect() for _ in range(2)]
    async with asyncio.timeout(30):
        while edge.running.service.admission.connections < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    refused = await edge.send(b"")
    assert (refused.status, refused.json()["error"]) == (503, "overloaded")
    assert "2 connections have sent no key" in refused.json()["message"]
    await reader.readuntil(b"}]}")
    writer.write(f"GET /tenant HTTP/1.1\r\nHost: localhost\r\n{edge.key}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    for _, other in [*strangers, (reader, writer)]:
        other.close()


async def test_the_token_is_this_users_and_new_at_every_start(edge):
    path = edge.data_dir / "http.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text()) == 53


def ask_local(path, *frames):
    """Send frames and give the kind and the body of the answer to each; blocking."""
    answers = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        for kind, body in frames:
            if callable(kind):
                kind()
                continue
            connection.sendall(Frame(kind, 1, len(body)).encode() + body)
            head = Frame.decode(connection.recv(16, socket.MSG_WAITALL), reply=True)
            answers.append(
                (head.kind, connection.recv(head.body_bytes, socket.MSG_WAITALL) if head.body_bytes else b"")
            )
    return answers


async def test_on_the_local_socket_a_key_names_another_tenant(edge, container_bytes):
    made = await edge.grant("acme")
    key = os.urandom(32)
    await edge.running.service.put(edge.me, key, container_bytes([EXACT], content_key=key), ack=Ack.MEMORY)
    path = edge.data_dir / SOCKET_NAME
    hello = (Kind.HELLO, made.text.encode())
    _, found = await asyncio.to_thread(ask_local, path, hello, (Kind.CONTAINS, key))
    assert found == (Kind.CONTAINS, b"\x00")
    (found,) = await asyncio.to_thread(ask_local, path, (Kind.CONTAINS, key))
    assert found == (Kind.CONTAINS, b"\x01")


async def test_on_the_local_socket_a_key_that_does_not_hold_is_refused(edge):
    made = await edge.grant("acme")
    path = edge.data_dir / SOCKET_NAME
    ((kind, body),) = await asyncio.to_thread(ask_local, path, (Kind.HELLO, NOBODY.encode()))
    assert kind is Kind.ERROR
    assert isinstance(decode_error(memoryview(body)), Unauthenticated)
    loop = asyncio.get_running_loop()

    def revoke():
        edge.credentials.revoke(made.key.key_id, utc_now())
        asyncio.run_coroutine_threadsafe(edge.reload(), loop).result(30)

    answers = await asyncio.to_thread(
        ask_local,
        path,
        (Kind.HELLO, made.text.encode()),
        (Kind.CONTAINS, KEY[:32].encode()),
        (revoke, b""),
        (Kind.CONTAINS, KEY[:32].encode()),
    )
    assert [kind for kind, _ in answers] == [Kind.HELLO, Kind.CONTAINS, Kind.ERROR]


@pytest.mark.parametrize("local", [False, True], ids=["http", "socket"])
async def test_clients_present_their_key(edge, container_bytes, local, monkeypatch):
    made, reader = await edge.grant("acme"), await edge.grant("acme", Scope.READ)
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key)
    options = {"data_dir": edge.data_dir, "local": local}

    def use():
        with KvloomClient(api_key=made.text, **options) as acme, KvloomClient(**options) as mine:
            acme.put(key, data)
            assert isinstance(mine.get(key), Miss)
            assert acme.get(key).value.data == data
            assert isinstance(acme.get_many([key])[0], Hit)
            assert (acme.tenant().namespace, acme.tenant().puts, mine.tenant().puts) == ("acme", 1, 0)
        monkeypatch.setenv("KVLOOM_API_KEY", reader.text)
        with KvloomClient(**options) as client:
            assert client.exists([key]) == [True]
        monkeypatch.setenv("KVLOOM_API_KEY", NOBODY)
        with KvloomClient(**options) as client, pytest.raises(Unauthenticated):
            client.get(key)
        monkeypatch.delenv("KVLOOM_API_KEY")

    await asyncio.to_thread(use)
    async with AsyncKvloomClient(api_key=made.text, **options) as client:
        assert (await client.get(key)).value.data == data
        assert (await client.tenant()).hits == 3


@pytest.mark.parametrize("text", ["a b", "ключ", "a\r\nX: y", "a" * 300])
def test_a_key_that_cannot_be_a_header_is_refused_here(text):
    with pytest.raises(ConfigError, match="is none"):
        KvloomClient("127.0.0.1:1", api_key=text)


def test_a_key_is_not_sent_over_a_network_in_the_clear():
    with pytest.raises(ConfigError, match=r"in the clear: use https://10\.0\.0\.1:7117"):
        KvloomClient("10.0.0.1", api_key=NOBODY)
    KvloomClient("https://10.0.0.1", api_key=NOBODY)
    assert NOBODY not in repr(vars(KvloomClient("127.0.0.1", api_key=NOBODY)))


async def test_json_bombs_are_refused_before_they_are_parsed(edge):
    for body in (b"[" + b"[]," * 2000 + b"[]]", b'{"keys": [' + b'"",' * 5_000 + b"{}" * 2000 + b"]}"):
        answer = await edge.ask("POST", "/chunks/exists", body=body)
        assert (answer.status, answer.json()["error"]) == (413, "too_many_items")
        assert "the limit is 1024" in answer.json()["message"]
    assert wire.decode(wire.KeysQuestion, b'{"keys": []}').keys == ()
    answer = await edge.ask("PUT", f"/chunks/{KEY}", "Content-Encoding: gzip", body=b"x")
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
