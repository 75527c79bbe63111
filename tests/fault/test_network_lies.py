"""Backends that lie about sizes and kinds: refused before anything of that size is allocated, and never believed."""

import asyncio
import tracemalloc
from contextlib import asynccontextmanager

import pytest

from kvloom.errors import StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.network import parse_network
from kvloom.kvstore.outcome import Corrupt, Miss, Unavailable

KEY = make_record(1, 0).storage_key
MEMORY_BYTES_MAX = 16 * 1024 * 1024


@asynccontextmanager
async def peer(answer: bytes, *, first: bytes = b""):
    """A server that says ``first`` to the first thing it hears on each connection and ``answer`` to all others."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = 0
        while await reader.read(65536):
            writer.write(first if first and not heard else answer)
            heard += 1
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


STANDALONE = b"-ERR This instance has cluster support disabled\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"$99999999999\r\n",
        b"$1200000\r\n",
        b"$-7\r\n",
        b"*999999999\r\n",
        b"*1\r\n" * 5000 + b"$1\r\nx\r\n",
        b":12\r\n",
        b"+OK\r\n",
        b"$-1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"-MOVED 1 127.0.0.1:1\r\n",
        b"-MOVED\r\n",
        b"-ASK x y\r\n",
        b"-LOADING the dataset\r\n",
        b"$5\r\nabcdefgh\r\n",
        b"\r\n",
        b"\x00" * 100_000,
        b"$abc\r\n",
    ],
)
async def test_valkey_that_lies(answer):
    from kvloom.kvstore.network.valkey import ValkeyTier

    async with peer(answer, first=STANDALONE) as port:
        tier = ValkeyTier(parse_network(f"valkey://127.0.0.1:{port}"))
        tracemalloc.start()
        try:
            async with asyncio.timeout(10):
                outcome = await tier.get(KEY)
            assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
        finally:
            tracemalloc.stop()
        assert isinstance(outcome, Unavailable | Corrupt), outcome
        with pytest.raises(StorageUnavailable):
            await tier.put(make_record(1, 200_000))
        with pytest.raises(StorageUnavailable):
            [info async for info in tier.scan()]
        await tier.close()


@pytest.mark.parametrize(
    "slots",
    [
        b"*1\r\n*3\r\n:0\r\n:99999\r\n*2\r\n$1\r\na\r\n:1\r\n",
        b"*1\r\n*3\r\n:5\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n",
        b"*1\r\n*1\r\n:5\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"*0\r\n",
        b"+OK\r\n",
        b":5\r\n",
    ],
)
async def test_a_map_of_slots_that_does_not_hold(slots):
    from kvloom.kvstore.network.valkey import ValkeyTier

    async with peer(slots) as port:
        tier = ValkeyTier(parse_network(f"valkey://127.0.0.1:{port}"))
        assert isinstance(await tier.get(KEY), Unavailable)
        with pytest.raises(StorageUnavailable):
            await tier.ping()
        await tier.close()


def http(status: str, length: int, body: bytes, *headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {length}",
        "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "answer",
    [
        http("200 OK", 10 * 1024**4, b"x" * 1000, 'ETag: "a"'),
        http("200 OK", 100, b"x" * 100, 'ETag: "a"'),
        http("200 OK", 1000, b"x" * 1000, 'ETag: "a"'),
        http("206 Partial Content", 1000, b"x" * 1000, 'ETag: "a"', "Content-Range: bytes 0-999/99999999999999"),
        http("206 Partial Content", 10, b"x" * 10, 'ETag: "a"', "Content-Range: bytes 5-14/1000"),
        http("206 Partial Content", 10, b"x" * 10, 'ETag: "a"'),
        http("204 No Content", 0, b""),
        http("302 Found", 0, b"", "Location: http://127.0.0.1:1/elsewhere"),
        http("500 Internal Server Error", 5, b"oh no"),
        http("403 Forbidden", 5, b"oh no"),
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
@pytest.mark.parametrize("ranged", [False, True])
async def test_s3_that_lies(answer, ranged, monkeypatch):
    pytest.importorskip("obstore")
    from kvloom.codec.container import ByteRange
    from kvloom.kvstore.network.s3 import S3Tier

    async with peer(answer) as port:
        options = {
            "endpoint": f"http://127.0.0.1:{port}",
            "access_key_id": "x",
            "secret_access_key": "y",
            "region": "z",
        }
        tier = S3Tier(parse_network("s3://bucket"), options=options, request_seconds_max=2.0)
        async with asyncio.timeout(20):
            outcome = await tier.get(KEY, [ByteRange(0, 500)] if ranged else None)
        assert isinstance(outcome, Unavailable | Corrupt | Miss), outcome
        await tier.close()
