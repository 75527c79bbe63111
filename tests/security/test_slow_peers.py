"""Slow and silent peers of the real server, with the real limits: each is gone within ten seconds."""

import asyncio
import contextlib
import time

from kvloom import limits

SECONDS = 10
KEY = "0" * 64


async def drip(writer, data):
    """A byte of ``data`` every 0.2 s, for as long as the other side takes them: being slow is what is tested."""
    with contextlib.suppress(ConnectionError):
        for position in range(len(data)):
            writer.write(data[position : position + 1])
            await writer.drain()
            await asyncio.sleep(0.2)


async def gone(reader):
    """Wait until the other side has closed; what it said before."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            said += part
    return said


async def peer(edge, first, slowly=b""):
    """Send ``first``, then ``slowly``, and give what was said before the connection was closed."""
    reader, writer = await edge.connect()
    dripping = asyncio.create_task(drip(writer, slowly))
    try:
        writer.write(first)
        async with asyncio.timeout(SECONDS):
            return await gone(reader)
    finally:
        dripping.cancel()
        writer.close()


async def test_strangers_slow_heads_and_slow_bodies_are_closed_and_idle_callers_are_not(edge):
    known = f"Host: localhost\r\n{edge.key}\r\n"
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = f"PUT /chunks/{KEY} HTTP/1.1\r\n{known}Content-Length: 1000000\r\n\r\n".encode()
    undeclared = f"PUT /chunks/{KEY} HTTP/1.1\r\n{known}Transfer-Encoding: chunked\r\n\r\n".encode()
    again = f"GET /tenant HTTP/1.1\r\n{known}\r\n".encode()
    idle_reader, idle_writer = await edge.connect()
    idle_writer.write(again)
    silent, slow_head, unknown, late_head, slow_body, still_body, chunked = await asyncio.gather(
        peer(edge, b""),
        peer(edge, b"GET /healthz HT", b"TP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 200),
        peer(edge, health * 2),
        peer(edge, again, b"GET /tenant HTTP/1.1\r\nX-Slow: " + b"x" * 200),
        peer(edge, body, b"x" * 200),
        peer(edge, body + b"x" * 500_000),
        peer(edge, undeclared, b"1\r\nx\r\n" * 50),
    )
    assert silent == slow_head == b""
    assert unknown.count(b"HTTP/1.1 200 ") == 2
    assert late_head.count(b"HTTP/1.1 200 ") == 1
    for said in (slow_body, still_body, chunked):
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"truncated_body" in said
    assert (await idle_reader.read(65536)).startswith(b"HTTP/1.1 200 ")
    idle_writer.write(again)
    assert (await idle_reader.read(65536)).startswith(b"HTTP/1.1 200 ")
    idle_writer.close()
    assert edge.stats().bytes_inflight == 0
    assert limits.KEEPALIVE_SECONDS_MAX == 75


async def test_a_request_that_lay_there_while_the_process_stood_still_is_answered(edge, monkeypatch):
    """The time of a stranger is up in the same turn of the loop in which its request is read."""
    monkeypatch.setattr(limits, "STRANGER_SECONDS_MAX", 0.1)
    reader, writer = await edge.connect()
    while not edge.running.service.admission.connections:  # noqa: ASYNC110
        await asyncio.sleep(0)
    writer.write(b"GET /tenant HTTP/1.1\r\nHost: localhost\r\n" + edge.key.encode() + b"\r\n\r\n")
    time.sleep(0.3)  # noqa: ASYNC251 - standing still is what is tested
    async with asyncio.timeout(SECONDS):
        assert (await reader.read(65536)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_a_slow_body_costs_no_memory_of_its_declared_length_to_strangers(edge):
    """Nothing is reserved or read for whoever has no key."""
    answer = await edge.send(
        f"PUT /chunks/{KEY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n".encode()
    )
    assert answer.status == 401
    assert answer.closed
    assert edge.stats().bytes_inflight == 0
