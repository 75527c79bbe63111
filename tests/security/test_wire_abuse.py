"""Shapes of HTTP that fool parsers, text that is none, ranges and numbers past all bounds, peers that leave midway.

Whatever is sent, the answer is one typed error or what was asked for, never a 500, never the answer to a request that
was hidden in another, and nothing of it stays in flight.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest

from kvloom import limits
from kvloom.codec.level import EXACT
from kvloom.daemon.http_api import HttpApi
from kvloom.daemon.metrics import Metrics
from kvloom.kvstore.tier import Ack

KEY = "0" * 64
WAIT_SECONDS = 60
HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)


async def exchange(edge, data, *, half_close=False):
    """All that comes back to ``data`` until the daemon closes."""
    reader, writer = await edge.connect()
    said = b""
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(WAIT_SECONDS):
            while part := await reader.read(65536):
                said += part
    writer.close()
    return said


async def settled(edge):
    """Wait until nothing is inside."""
    async with asyncio.timeout(WAIT_SECONDS):
        while edge.stats().bytes_inflight or edge.stats().requests_inflight:  # noqa: ASYNC110
            await asyncio.sleep(0)


def head(edge, first, *lines):
    return b"\r\n".join((first.encode(), b"Host: localhost", edge.key.encode(), *lines, b"", b""))


SHAPES = {
    "length and chunked": ([b"Content-Length: 4", b"Transfer-Encoding: chunked"], CHUNKED),
    "chunked and length": ([b"Transfer-Encoding: chunked", b"Content-Length: 4"], CHUNKED),
    "two lengths": ([b"Content-Length: 4", b"Content-Length: 60"], b"xxxx" + HIDDEN),
    "two lengths in one": ([b"Content-Length: 4, 60"], b"xxxx" + HIDDEN),
    "length with a sign": ([b"Content-Length: +4"], b"xxxx" + HIDDEN),
    "length in hexadecimal": ([b"Content-Length: 0x4"], b"xxxx" + HIDDEN),
    "length with an underscore": ([b"Content-Length: 1_0"], b"x" * 10 + HIDDEN),
    "length below zero": ([b"Content-Length: -1"], HIDDEN),
    "length past all bounds": ([b"Content-Length: " + b"9" * 5000], HIDDEN),
    "coding that is none": ([b"Transfer-Encoding: xchunked"], CHUNKED),
    "coding twice": ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"], CHUNKED),
    "coding not last": ([b"Transfer-Encoding: chunked, gzip"], CHUNKED),
    "coding behind a tab": ([b"Transfer-Encoding:\x0bchunked"], CHUNKED),
    "space before the colon": ([b"Transfer-Encoding : chunked"], CHUNKED),
    "space in a name": ([b"Content Length: 4"], b"xxxx" + HIDDEN),
    "no name": ([b": 4"], HIDDEN),
    "folded line": ([b"X-Folded: a", b" Content-Length: 4"], HIDDEN),
    "bare line feed": ([b"X-A: b\nContent-Length: 4"], b"xxxx" + HIDDEN),
    "bare carriage return": ([b"X-A: b\rContent-Length: 4"], b"xxxx" + HIDDEN),
    "zero byte": ([b"X-A: b\0c", b"Content-Length: 4"], b"xxxx" + HIDDEN),
    "size of a piece below zero": ([b"Transfer-Encoding: chunked"], b"-1\r\n" + HIDDEN),
    "size of a piece past all bounds": ([b"Transfer-Encoding: chunked"], b"f" * 40 + b"\r\n" + HIDDEN),
    "size of a piece with a prefix": ([b"Transfer-Encoding: chunked"], b"0x4\r\nxxxx\r\n0\r\n\r\n" + HIDDEN),
    "piece with more than its size": ([b"Transfer-Encoding: chunked"], b"4\r\nxxxxyy\r\n0\r\n\r\n" + HIDDEN),
    "piece ended by a line feed": ([b"Transfer-Encoding: chunked"], b"4\nxxxx\n0\n\n" + HIDDEN),
    "endless extension of a piece": (
        [b"Transfer-Encoding: chunked"],
        b"4;" + b"x" * 100_000 + b"\r\nxxxx\r\n" + HIDDEN,
    ),
    "no request at all": ([b"Upgrade: h2c", b"Connection: Upgrade", b"Content-Length: 4"], b"xxxx"),
}


async def test_two_requests_one_after_the_other_are_two(edge):
    """The test's own control: what is hidden below would be answered if it were found."""
    said = await exchange(edge, HIDDEN + HIDDEN[:-2] + b"Connection: close\r\n\r\n")
    assert said.count(b'"phase"') == 2


@pytest.mark.parametrize("shape", SHAPES)
async def test_no_shape_of_a_request_hides_another_in_it(edge, shape):
    lines, body = SHAPES[shape]
    said = await exchange(edge, head(edge, "POST /chunks/exists HTTP/1.1", *lines) + body, half_close=True)
    assert b'"phase"' not in said
    assert said == b"" or said.startswith(b"HTTP/1.1 4")
    assert said.count(b"HTTP/1.1 ") <= 2  # what stands behind a body of a length that held is refused for itself
    await settled(edge)
    assert (await edge.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        b"GET /healthz\r\n\r\n",
        b"GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"get /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"TRACE /healthz HTTP/1.1\r\nHost: localhost\r\nX-Secret: 1\r\n\r\n",
        b"GET /healthz HTTP/1.1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"G\xc3\x89T /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n" * 5000 + b"NONSENSE",
        b"\0" * 5000,
    ],
)
async def test_what_is_no_request_for_this_daemon_is_refused(edge, data):
    said = await exchange(edge, data, half_close=True)
    assert said == b"" or said.startswith(b"HTTP/1.1 4")
    assert b"X-Secret" not in said
    assert (await edge.ask("GET", "/healthz")).status == 200


async def test_a_hundred_thousand_headers_are_not_read_to_the_end(edge):
    said = await exchange(edge, head(edge, "GET /tenant HTTP/1.1", *(b"X-%d: x" % n for n in range(100_000))))
    assert said == b"" or said.split(b" ", 2)[1] == b"400"


def records(kind, value):
    """A JSON object for a record of ``kind``: every text in it is ``value``."""
    made = {}
    for item in fields(kind):
        hint = get_type_hints(kind)[item.name]
        options = [hint, *get_args(hint), *(part for option in get_args(hint) for part in get_args(option))]
        nested = next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)
        if nested is not None:
            made[item.name] = records(nested, value)
        elif str in options or bytes in options:
            made[item.name] = [value] if "tuple" in str(hint) else value
        elif bool in options:
            made[item.name] = True
        elif int in options or float in options:
            made[item.name] = [1] if "tuple" in str(hint) else 1
    return made


def routes(edge):
    running = edge.running
    metrics = Metrics(lambda: running.service.stats(running.authenticator.local))
    return HttpApi(running.service, metrics, running.authenticator).routes


BAD_TEXTS = ["\ud800", "\0", "\uffff", "a" * 100_000, "\u202e\u2066", "%s%n{0}", "../../etc/passwd", "\r\nX-Evil: 1"]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=range(len(BAD_TEXTS)))
async def test_no_text_of_a_question_is_more_than_refused(edge, text):
    asked = 0
    for route in routes(edge):
        if route.body is None or route.body.record is None:
            continue
        body = json.dumps(records(route.body.record, text)).encode()
        answer = await edge.ask(route.method, route.path.replace("{key}", KEY), body=body)
        assert 400 <= answer.status < 500, (route.path, answer)
        assert "\n" not in answer.json()["message"]
        assert len(answer.json()["message"]) < 500
        asked += 1
    assert asked >= 6
    await settled(edge)


@pytest.mark.parametrize(
    "body",
    [
        b'{"keys": ["\xff\xfe"]}',
        b'{"k\xffys": []}',
        b"\xff\xfe{\0}\0",
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
        b'{"keys":' * 50_000,
        b'{"keys":[' + b"[" * 900 + b"]" * 900 + b"]}",
        b'{"keys": [1e999999]}',
        b'{"keys": [' + b"9" * 100_000 + b"]}",
        b'{"keys": NaN}',
        b'{"keys": [], "keys": []}x',
        b"null",
        b'"text"',
        b"",
    ],
)
async def test_no_body_of_a_question_is_more_than_refused(edge, body):
    for route in routes(edge):
        if route.body is not None and route.body.record is not None:
            answer = await edge.ask(route.method, route.path, body=body)
            assert 400 <= answer.status < 500, (route.path, answer)
            assert answer.json()["error"] in ("invalid_request", "too_many_items", "body_too_large", "truncated_body")
    await settled(edge)


QUERIES = ["%ff%fe", "%00", "%ed%a0%80", "9" * 1000, "-1", "1e999", "nan", "inf", "1_0", "%e2%80%ae", "+5", "0x10"]


@pytest.mark.parametrize("value", QUERIES)
async def test_no_value_of_a_parameter_is_more_than_refused(edge, value):
    asked = 0
    for route in routes(edge):
        path = route.path.replace("{key}", KEY).replace("{digest}", KEY).replace("{lease}", "0" * 32)
        for parameter in route.query:
            answer = await edge.ask(route.method, f"{path}?{parameter.name}={value}", body=b"")
            assert 200 <= answer.status < 500, (route.path, parameter.name)
            asked += 1
        for piece in ("{key}", "{digest}", "{lease}"):
            if piece in route.path:
                answer = await edge.ask(route.method, route.path.replace(piece, value))
                assert 400 <= answer.status < 500, route.path
                asked += 1
    assert asked >= 15
    await settled(edge)


@pytest.mark.parametrize("value", [b"\xff\xfe", b"\xc3\x28", b"", b"x" * 5000, b'"' * 3000, b"," * 3000, b"\t \t"])
async def test_no_value_of_a_header_is_more_than_refused(edge, value):
    names = {item.name for route in routes(edge) for item in route.headers}
    names |= {
        "X-Request-Id",
        "Content-Type",
        "Content-Encoding",
        "Accept",
        "Traceparent",
        "Expect",
        "Connection",
        "Cookie",
    }
    for route in (route for route in routes(edge) if route.path in ("/chunks/{key}", "/tenant", "/metrics")):
        path = route.path.replace("{key}", KEY)
        for name in names:
            lines = [b"Content-Length: 0", b"%b: %b" % (name.encode(), value), b"Connection: close"]
            said = await exchange(edge, head(edge, f"{route.method} {path} HTTP/1.1", *lines), half_close=False)
            said = said.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert said == b"" or said.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (route.path, name, said[:200])
    await settled(edge)


@pytest.fixture
async def stored(edge, container_bytes):
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key, layers=16, segment_bytes=3000)
    await edge.running.service.put(edge.me, key, data, ack=Ack.MEMORY)
    return f"/chunks/{key.hex()}", data


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(1500)), 200),
        ("bytes=" + "0-," * 3000, 200),
        ("bytes=0-" + "9" * 4000, 200),
        ("bytes=" + "9" * 4000 + "-", 200),
        ("bytes=-" + "9" * 4000, 200),
        ("bytes=0-" + "9" * 18, 206),
        ("bytes=" + "9" * 18 + "-", 416),
        ("bytes=-" + "9" * 18, 206),
        ("bytes=-0", 416),
        ("bytes=5-2", 200),
        ("bytes=a-b", 200),
        ("bytes=\u0661-\u0662", 200),
        ("bytes=1-2-3", 200),
        ("octets=0-1", 200),
        ("bytes=" + "0" * 3000 + "1-2", 200),
    ],
)
async def test_ranges_past_all_bounds_are_whole_cut_or_refused(edge, stored, wanted, status):
    path, data = stored
    answer = await edge.ask("GET", path, f"Range: {wanted}".encode().decode("latin-1"))
    assert answer.status == status
    if status == 200:
        assert answer.body == data
    elif status == 206:
        assert answer.body in (data, data[1:3])
    await settled(edge)


@pytest.mark.parametrize("name", ["If-None-Match", "If-Match", "If-Range"])
async def test_thousands_of_tags_are_judged_or_refused(edge, stored, name):
    answer = await edge.ask("GET", stored[0], f"{name}: " + ",".join(f'"{n:x}"' for n in range(2000)))
    assert answer.status in (200, 400, 412)
    await settled(edge)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"/chunks/{KEY}"),
        ("PUT", "/chunks"),
        ("PUT", f"/profiles/{KEY}"),
        ("POST", "/prefix"),
        ("POST", "/pins"),
    ],
)
@pytest.mark.parametrize("how", ["reset", "half closed", "closed"])
async def test_who_leaves_in_mid_body_leaves_nothing_behind(edge, method, path, how):
    for sent in (0, 1, 5000):
        reader, writer = await edge.connect()
        writer.write(head(edge, f"{method} {path} HTTP/1.1", b"Content-Length: 100000") + b"x" * sent)
        await writer.drain()
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if how == "half closed":
            writer.write_eof()
            async with asyncio.timeout(WAIT_SECONDS):
                said = await reader.read()
            assert said == b"" or said.startswith(b"HTTP/1.1 4")
        writer.close()
    await settled(edge)
    assert (await edge.ask("GET", "/healthz")).status == 200


async def test_a_half_closed_connection_gets_its_answer_or_none_and_is_closed(edge, stored):
    path, data = stored
    said = await exchange(edge, head(edge, f"GET {path} HTTP/1.1"), half_close=True)
    assert said == b"" or (said.startswith(b"HTTP/1.1 200 ") and said.endswith(data))
    said = await exchange(edge, head(edge, "GET /events HTTP/1.1"), half_close=True)
    assert said == b"" or said.startswith(b"HTTP/1.1 200 ")
    async with asyncio.timeout(WAIT_SECONDS):
        while edge.running.service.admission.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("declared", [0, 10, limits.JSON_BODY_BYTES_MAX])
async def test_a_body_of_another_length_than_declared_is_no_question(edge, declared):
    """Too short: what is left is no request. Too long: the rest never comes."""
    body = json.dumps({"keys": [KEY]}).encode()
    assert len(body) > 10
    lines = [b"Content-Length: %d" % declared, b"Connection: close"]
    said = await exchange(edge, head(edge, "POST /chunks/exists HTTP/1.1", *lines) + body, half_close=True)
    assert said == b"" or said.startswith(b"HTTP/1.1 4")
    assert b"exists" not in said.rpartition(b"\r\n\r\n")[2]
    await settled(edge)
