"""Heads of HTTP messages: what is sent is one request and no more, what comes is understood or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients.http_head import host_header, parse_head, request_head
from kvloom.errors import InvalidData, InvalidRequest


def reply(*lines, status="HTTP/1.1 200 OK"):
    return "\r\n".join((status, *lines)).encode("latin-1")


def test_a_request_is_one_head_with_what_was_given():
    head = request_head("PUT", "/chunks/00?ack=disk", "localhost:7117", {"Kvloom-Parent": "ff"}, 12)
    first, *lines, end, nothing = head.decode().split("\r\n")
    assert first == "PUT /chunks/00?ack=disk HTTP/1.1"
    assert set(lines) == {
        "Host: localhost:7117",
        "Accept-Encoding: identity",
        "Content-Length: 12",
        "Kvloom-Parent: ff",
    }
    assert end == nothing == ""


@pytest.mark.parametrize(
    ("method", "body_bytes", "said"), [("GET", 0, False), ("DELETE", 0, False), ("POST", 0, True), ("GET", 3, True)]
)
def test_a_length_is_said_where_a_body_may_be_expected(method, body_bytes, said):
    assert (b"Content-Length: %d\r\n" % body_bytes in request_head(method, "/", "h:1", {}, body_bytes)) is said


@given(st.text())
def test_no_value_can_end_a_header_and_begin_another(value):
    try:
        head = request_head("GET", "/", "h:1", {"Authorization": value}, 0)
    except InvalidRequest:
        return
    assert head.count(b"\r") == head.count(b"\n") == 5
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("target", ["", "chunks", "/a b", "/a\r\nX: y", "/ü", "/a\x00"])
def test_what_is_no_target_is_not_sent(target):
    with pytest.raises(InvalidRequest, match="target"):
        request_head("GET", target, "h:1", {}, 0)


@pytest.mark.parametrize(
    ("host", "named"), [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7"), ("kv.example", "kv.example:7")]
)
def test_a_host_is_named_as_http_has_it(host, named):
    assert host_header(host, 7) == named


def test_a_reply_is_read():
    head = parse_head(reply("Content-Length: 5", "KVLOOM-Tier:  memory ", "A: 1", "a: 2"))
    assert (head.status, head.length, head.closes, head.is_interim) == (200, 5, False, False)
    assert head.headers == {"content-length": "5", "kvloom-tier": "memory", "a": "1, 2"}


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ((), None),
        (("Transfer-Encoding: chunked",), None),
        (("Content-Length: 5", "Transfer-Encoding: chunked"), None),
        (("Content-Length: -1",), None),
        (("Content-Length: 0x10",), None),
        (("Content-Length: " + "9" * 16,), None),
        (("Content-Length: 7", "Content-Length: 7"), 7),
    ],
)
def test_a_length_is_known_or_it_is_not(lines, length):
    assert parse_head(reply(*lines)).length == length


@pytest.mark.parametrize(("status", "length"), [(204, 0), (304, 0), (200, None)])
def test_some_replies_have_no_body(status, length):
    assert parse_head(reply(status=f"HTTP/1.1 {status} X")).length == length


@pytest.mark.parametrize(
    ("status", "line", "closes"),
    [
        ("HTTP/1.1 200 OK", "Connection: close", True),
        ("HTTP/1.1 200 OK", "Connection: Upgrade, Close", True),
        ("HTTP/1.1 200 OK", "Connection: keep-alive", False),
        ("HTTP/1.0 200 OK", "X: y", True),
        ("HTTP/1.0 200 OK", "Connection: keep-alive", False),
    ],
)
def test_whether_the_connection_stays(status, line, closes):
    assert parse_head(reply(line, status=status)).closes is closes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SSH-2.0-OpenSSH",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 600 X",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\n folded: line",
        b"HTTP/1.1 200 OK\r\nspace : before",
        b"HTTP/1.1 200 OK\r\na: b\nc: d",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK" + b"\r\na: b" * (limits.REQUEST_HEADERS_MAX + 1),
    ],
)
def test_what_is_no_head_is_refused(data):
    with pytest.raises(InvalidData):
        parse_head(data)


@given(st.binary(max_size=200))
def test_nothing_but_a_head_or_a_refusal_comes_of_any_bytes(data):
    try:
        head = parse_head(b"HTTP/1.1 200 OK\r\n" + data)
    except InvalidData:
        return
    assert head.length is None or head.length >= 0
