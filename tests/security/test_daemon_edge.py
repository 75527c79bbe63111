"""Who may ask, and how much: web pages, rebound names, oversize heads and bodies, slow and lying peers."""

import asyncio
import os
import socket

import psutil
import pytest

from kvloom import limits
from kvloom.codec.level import EXACT
from kvloom.daemon.http_api import HttpApi
from kvloom.daemon.metrics import Metrics
from kvloom.errors import InvalidData
from kvloom.kvstore.tier import Ack

KEY = "0" * 64


def routes(edge):
    running = edge.running
    metrics = Metrics(lambda: running.service.stats(running.authenticator.local))
    return HttpApi(running.service, metrics, running.authenticator).routes


def target(path):
    return path.replace("{key}", KEY).replace("{digest}", KEY).replace("{file}", "style.css")


def established():
    """The connections of this process; the daemon's ends have its port."""
    return [item for item in psutil.Process().net_connections("inet") if item.status == psutil.CONN_ESTABLISHED]


def listening():
    return {item.laddr for item in psutil.Process().net_connections("inet") if item.status == psutil.CONN_LISTEN}


@pytest.fixture
def others():
    """What libraries that this process has loaded listen on before the daemon does: the Mooncake client's engine."""
    return listening()


def test_nothing_listens_beyond_loopback(others, edge):
    of_daemon = listening() - others
    assert edge.running.endpoint.port in {address.port for address in of_daemon}
    assert all(address.ip == "::1" or address.ip.startswith("127.") for address in of_daemon)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:7117", "LOCALHOST", "127.0.0.1", "127.0.0.1:80", "127.9.9.9", "[::1]", "[::1]:7117"],
)
async def test_names_of_this_machine_are_served(edge, host):
    assert (await edge.ask("GET", "/healthz", host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7117",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "2130706433",
        "[::]",
        "[::1",
        "127.0.0.1:80:80",
        "",
    ],
)
async def test_a_rebound_name_is_refused(edge, host):
    answer = await edge.ask("GET", "/healthz", host=host)
    assert answer.status in (400, 403)
    assert answer.json()["error"] in ("forbidden", "invalid_request")


async def test_every_route_refuses_web_pages(edge):
    table = routes(edge)
    assert len(table) >= 14
    for route in table:
        for header in (
            "Origin: https://evil.example",
            "Origin: null",
            "Origin: http://localhost",
            "Sec-Fetch-Site: cross-site",
        ):
            answer = await edge.ask(route.method, target(route.path), header)
            if header.endswith("localhost") and route.path.startswith("/dashboard/"):
                assert answer.status != 403, route  # the dashboard's own page, which this daemon serves
                continue
            assert answer.status == 403, (route, header)
            assert "access-control" not in answer.head.lower()
            if route.method != "HEAD":
                assert answer.json()["error"] == "forbidden"


async def test_every_route_refuses_a_rebound_name(edge):
    for route in routes(edge):
        assert (await edge.ask(route.method, target(route.path), host="evil.example")).status == 403, route


async def test_a_preflight_is_not_answered(edge):
    for header in ((), ("Origin: https://evil.example",)):
        answer = await edge.ask("OPTIONS", "/stats", "Access-Control-Request-Method: GET", *header)
        assert answer.status in (403, 405)
        assert "access-control-allow" not in answer.head.lower()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
    ],
)
async def test_exactly_one_host_is_needed(edge, request_head):
    answer = await edge.send(request_head)
    assert answer.status in (400, 403)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([f"X-{n}: {'v' * 1000}" for n in range(17)], str(limits.REQUEST_HEADER_BYTES_MAX)),
        ([f"X-Long: {'v' * (limits.REQUEST_HEADER_BYTES_MAX + 1)}"], str(limits.REQUEST_HEADER_BYTES_MAX)),
        ([f"X-{n}: v" for n in range(limits.REQUEST_HEADERS_MAX + 1)], ""),
    ],
)
async def test_heads_are_bounded(edge, headers, says):
    answer = await edge.ask("GET", "/healthz", *headers)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    assert says in answer.json()["message"]


async def test_the_request_line_is_bounded(edge):
    answer = await edge.ask("GET", "/chunks?prefix=" + "0" * limits.REQUEST_LINE_BYTES_MAX)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"PUT /chunks/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n" % KEY.encode(),
        b"PUT /chunks/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"
        % KEY.encode(),
        b"PUT /chunks/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0"
        % KEY.encode(),
        b"PUT /chunks/%b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab" % KEY.encode(),
    ],
)
async def test_what_is_not_http_is_refused_in_the_same_words_and_the_connection_closed(edge, data):
    answer = await edge.send(data)
    assert answer is not None
    assert 400 <= answer.status < 500
    assert answer.json()["error"] in ("invalid_request", "truncated_body", "forbidden")
    assert "\n" not in answer.json()["message"]
    assert answer.closed
    assert (await edge.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "path", ["/profiles/..%2f..%2fetc%2fpasswd", "/profiles/../../etc/passwd", "/chunks/%00", "//etc"]
)
async def test_a_path_is_a_key_or_nothing(edge, path):
    answer = await edge.ask("GET", path)
    assert answer.status in (400, 404)
    assert answer.json()["error"] in ("invalid_key", "invalid_request")


async def test_a_body_of_undeclared_length_is_bounded(edge, monkeypatch):
    monkeypatch.setattr(limits, "CONTAINER_BYTES_MAX", 1000)
    head = f"PUT /chunks/{KEY} HTTP/1.1\r\nHost: localhost\r\n{edge.key}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = await edge.send(head + (b"200\r\n" + b"x" * 512 + b"\r\n") * 4)
    assert (answer.status, answer.json()["error"]) == (413, "body_too_large")
    assert "1000" in answer.json()["message"]
    assert answer.closed


async def test_a_body_that_stops_coming_is_given_up(edge, monkeypatch):
    monkeypatch.setattr(limits, "PROGRESS_SECONDS_MAX", 0.05)
    head = f"PUT /chunks/{KEY} HTTP/1.1\r\nHost: localhost\r\n{edge.key}\r\nContent-Length: 100\r\n\r\n".encode()
    answer = await edge.send(head + b"x" * 40)
    assert (answer.status, answer.json()["error"]) == (400, "truncated_body")
    assert answer.json()["message"] == "container stopped after 40 of 100 bytes"
    assert answer.closed
    assert edge.stats().bytes_inflight == 0


async def test_a_client_that_does_not_read_loses_its_connection_and_its_share(edge, monkeypatch, container_bytes):
    monkeypatch.setattr(limits, "PROGRESS_SECONDS_MAX", 0.2)
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key, layers=64, segment_bytes=600_000)
    assert len(data) > 32 * 1024**2
    await edge.running.service.put(edge.me, key, data, ack=Ack.MEMORY)
    with socket.create_connection((edge.running.endpoint.host, edge.running.endpoint.port)) as lazy:
        lazy.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(
            lazy, f"GET /chunks/{key.hex()} HTTP/1.1\r\nHost: localhost\r\n{edge.key}\r\n".encode()
        )
        await asyncio.get_running_loop().sock_sendall(lazy, b"\r\n")
        async with asyncio.timeout(60):
            while not edge.stats().bytes_inflight:
                await edge.ask("GET", "/healthz")
            await edge.running.service.admission.empty()
            while any(item.laddr.port == edge.running.endpoint.port for item in established()):  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert edge.stats().bytes_inflight == 0
    assert (await edge.ask("GET", "/healthz")).status == 200


async def test_past_the_budget_a_body_is_refused_before_it_is_read(edge):
    admission = edge.running.service.admission
    with admission.reserve(admission.inflight_bytes_max - 10, "default"):
        head = f"PUT /chunks/{KEY} HTTP/1.1\r\nHost: localhost\r\n{edge.key}\r\nContent-Length: 11\r\n\r\n".encode()
        answer = await edge.send(head)
        assert (answer.status, answer.json()["error"]) == (503, "overloaded")
        assert str(admission.inflight_bytes_max) in answer.json()["message"]
        assert "Retry-After: 1" in answer.head


async def test_connections_are_bounded(edge, monkeypatch):
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 2)
    kept = [await edge.connect() for _ in range(2)]
    for reader, writer in kept:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    refused = await edge.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (refused.status, refused.json()["error"], refused.closed) == (503, "overloaded", True)
    assert "2 connections, the limit is 2" in refused.json()["message"]
    assert "Retry-After: 1" in refused.head
    for _, writer in kept:
        writer.close()


async def test_a_bug_is_answered_without_its_words(edge, monkeypatch):
    async def broken(*_, **__):
        raise RuntimeError("the secret is under /root/secret")

    monkeypatch.setattr(edge.running.service, "delete", broken)
    answer = await edge.ask("DELETE", f"/chunks/{KEY}")
    assert (answer.status, answer.json()["error"]) == (500, "kvloom_error")
    assert "secret" not in answer.head + answer.body.decode()


async def test_a_request_id_cannot_forge_a_header_or_a_log_line(edge):
    answer = await edge.ask("GET", "/healthz", "X-Request-Id: a b\x0b{}")
    assert "{}" not in answer.head


async def test_a_store_that_finds_damage_answers_a_miss(edge, monkeypatch, container_bytes):
    key = os.urandom(32)
    await edge.running.service.put(edge.me, key, container_bytes([EXACT], content_key=key), ack=Ack.MEMORY)

    def damaged(*_, **__):
        raise InvalidData("a bit flipped")

    monkeypatch.setattr("kvloom.kvstore.tiered.chunk_reader.check_segment", damaged)
    monkeypatch.setattr("kvloom.kvstore.tiered.chunk_reader.word_sum", damaged)
    monkeypatch.setattr("kvloom.kvstore.tiered.chunk_reader.verify", damaged)
    answer = await edge.ask("GET", f"/chunks/{key.hex()}")
    assert (answer.status, answer.json()["error"]) == (404, "not_found")
    assert edge.stats().tiers[0].corrupt == 1
