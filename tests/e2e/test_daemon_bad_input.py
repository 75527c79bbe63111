"""Everything wrong that can be sent: one typed error, one status, one line that names the value and the limit."""

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest

from kvloom import errors, limits
from kvloom.clients import wire
from kvloom.codec.container import parse_header
from kvloom.codec.header import write_header
from kvloom.codec.level import DRAFT, ECONOMY, EXACT

PROFILE = b"a profile of the bad inputs"


@dataclass
class Chunk:
    """A sound container, from which the bad ones are made."""

    key: bytes
    data: bytes
    make: Callable[..., bytes]
    profile: bytes

    def with_tokens(self, tokens: int) -> bytes:
        """The container with another token count and a header checksum that holds."""
        header = parse_header(self.data)
        return write_header(replace(header, tokens=tokens), header.segments) + self.data[header.header_bytes :]

    def flipped(self, index: int) -> bytes:
        """The container with one bit changed."""
        damaged = bytearray(self.data)
        damaged[index] ^= 1
        return bytes(damaged)


@dataclass
class Case:
    """A request that must be refused with ``error``, in a line that holds every one of ``says``."""

    name: str
    error: type[errors.KvloomError]
    says: tuple[str, ...]
    method: str = "PUT"
    target: Callable[[Chunk], str] | str = lambda chunk: f"/chunks/{chunk.key.hex()}"
    body: Callable[[Chunk], bytes] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def keys(count: int) -> bytes:
    return wire.encode(wire.KeysQuestion(("0" * 64,) * count))


def prefix(**fields: object) -> bytes:
    identity = {"fingerprint": "00" * 32, "layout_digest": "11" * 32}
    return json.dumps({"identity": identity, "tokens": [1, 2, 3], **fields}).encode()


def chunk_target(query: str) -> Callable[[Chunk], str]:
    return lambda chunk: f"/chunks/{chunk.key.hex()}{query}"


OTHER = os.urandom(32).hex()
CASES = [
    # malformed container
    Case("not a container", errors.MalformedContainer, ("b'xxxx'", "b'KVLC'"), body=b"x" * 200),
    Case("flipped header", errors.MalformedContainer, ("checksum",), body=lambda chunk: chunk.flipped(60)),
    Case("flipped byte", errors.MalformedContainer, ("segment", "checksum"), body=lambda chunk: chunk.flipped(-1)),
    Case("trailing bytes", errors.TruncatedBody, ("declares",), body=lambda chunk: chunk.data + b"!"),
    # wrong key
    Case(
        "another chunk's container",
        errors.KeyMismatch,
        ("is of chunk", "not of", OTHER[:16]),
        target=f"/chunks/{OTHER}",
        body=lambda chunk: chunk.data,
    ),
    Case("key in capitals", errors.InvalidKey, ("AB", "64"), target="/chunks/" + "AB" * 32, body=b"x"),
    Case("short key", errors.InvalidKey, ("'abc'", "64"), method="GET", target="/chunks/abc"),
    # truncated body
    Case("empty body", errors.TruncatedBody, ("0 bytes",), body=b""),
    Case("cut container", errors.TruncatedBody, ("declares",), body=lambda chunk: chunk.data[:-1]),
    Case("cut header", errors.TruncatedBody, ("50 bytes",), body=lambda chunk: chunk.data[:50]),
    # oversize body
    Case(
        "oversize container",
        errors.BodyTooLarge,
        (str(limits.CONTAINER_BYTES_MAX + 1), str(limits.CONTAINER_BYTES_MAX)),
        headers={"Content-Length": str(limits.CONTAINER_BYTES_MAX + 1)},
    ),
    Case(
        "oversize profile",
        errors.BodyTooLarge,
        (str(limits.PROFILE_BYTES_MAX + 1), str(limits.PROFILE_BYTES_MAX)),
        target=f"/profiles/{OTHER}",
        headers={"Content-Length": str(limits.PROFILE_BYTES_MAX + 1)},
    ),
    Case(
        "oversize question",
        errors.BodyTooLarge,
        (str(limits.KEYS_BODY_BYTES_MAX + 1), str(limits.KEYS_BODY_BYTES_MAX)),
        method="POST",
        target="/chunks/exists",
        headers={"Content-Length": str(limits.KEYS_BODY_BYTES_MAX + 1)},
    ),
    Case(
        "compressed body",
        errors.InvalidRequest,
        ("'gzip'", "identity"),
        body=b"\x1f\x8b" + bytes(100),
        headers={"Content-Encoding": "gzip"},
    ),
    # unknown level and layers
    Case("unknown level", errors.UnknownLevel, ("'best'", "economy, standard"), "GET", chunk_target("?level=best")),
    Case("level not stored", errors.LevelNotStored, ("draft", "stored: exact"), "GET", chunk_target("?level=draft")),
    Case("layers that are none", errors.InvalidRequest, ("'b-a'", "A-B"), "GET", chunk_target("?layers=b-a")),
    Case("layers outside", errors.InvalidRequest, ("2-9", "0-3"), "GET", chunk_target("?layers=2-9")),
    # layout, profile
    Case(
        "another layout under the same key",
        errors.LayoutMismatch,
        ("layout",),
        body=lambda chunk: chunk.make([DRAFT], content_key=chunk.key, layers=7, profile_digest=chunk.profile),
    ),
    Case(
        "unknown profile",
        errors.ProfileMismatch,
        (b"u".hex() * 8, "put it first"),
        body=lambda chunk: chunk.make([DRAFT, ECONOMY], content_key=chunk.key, profile_digest=b"u" * 32),
    ),
    Case("wrong profile digest", errors.KeyMismatch, ("digest", OTHER[:16]), target=f"/profiles/{OTHER}", body=b"data"),
    # chunk length
    Case("empty chunk", errors.EmptyChunk, ("0 tokens",), body=lambda chunk: chunk.with_tokens(0)),
    Case(
        "chunk too long",
        errors.ChunkTooLong,
        (str(limits.CHUNK_TOKENS_MAX + 1), str(limits.CHUNK_TOKENS_MAX)),
        body=lambda chunk: chunk.with_tokens(limits.CHUNK_TOKENS_MAX + 1),
    ),
    # parameters
    Case("unknown ack", errors.InvalidRequest, ("'tape'", "memory, disk"), target=chunk_target("?ack=tape"), body=b"x"),
    Case("unknown parameter", errors.InvalidRequest, ("'lvl'", "level, layers"), "GET", chunk_target("?lvl=exact")),
    Case("parameter twice", errors.InvalidRequest, ("'level'",), "GET", chunk_target("?level=draft&level=exact")),
    Case("limit that is no number", errors.InvalidRequest, ("'ten'",), "GET", "/chunks?limit=ten"),
    Case("limit too high", errors.InvalidRequest, ("10001", str(limits.LIST_CHUNKS_MAX)), "GET", "/chunks?limit=10001"),
    Case("prefix not hexadecimal", errors.InvalidRequest, ("'xyz'",), "GET", "/chunks?prefix=xyz"),
    # questions
    Case("not JSON", errors.InvalidRequest, ("not JSON",), "POST", "/chunks/exists", b"{"),
    Case("wrong field", errors.InvalidRequest, ("'key'", "keys"), "POST", "/chunks/exists", b'{"key": []}'),
    Case("wrong type", errors.InvalidRequest, ("body.keys[0]", "'1'"), "POST", "/chunks/exists", b'{"keys": [1]}'),
    Case("bad key in a list", errors.InvalidKey, ("'ab'", "64"), "POST", "/chunks/exists", b'{"keys": ["ab"]}'),
    Case(
        "too many keys",
        errors.TooManyItems,
        (str(limits.KEYS_PER_REQUEST_MAX + 1), str(limits.KEYS_PER_REQUEST_MAX)),
        "POST",
        "/chunks/exists",
        keys(limits.KEYS_PER_REQUEST_MAX + 1),
    ),
    Case("two questions", errors.InvalidRequest, ("either keys",), "POST", "/prefix", prefix(keys=["00" * 32])),
    Case("no question", errors.InvalidRequest, ("either keys",), "POST", "/prefix", b"{}"),
    Case("token below zero", errors.InvalidRequest, ("-1",), "POST", "/prefix", prefix(tokens=[1, -1])),
    Case("token past 64 bits", errors.InvalidRequest, ("token ids",), "POST", "/prefix", prefix(tokens=[2**70])),
    Case("chunks of nothing", errors.ChunkTooLong, ("0 tokens", "4096"), "POST", "/prefix", prefix(chunk_tokens=0)),
    Case(
        "too many tokens",
        errors.TooManyItems,
        (str(limits.PREFIX_TOKENS_MAX + 1), str(limits.PREFIX_TOKENS_MAX)),
        "POST",
        "/prefix",
        b'{"identity":{"fingerprint":"%b","layout_digest":"%b"},"tokens":[%b1]}'
        % (b"00" * 32, b"00" * 32, b"1," * limits.PREFIX_TOKENS_MAX),
    ),
    Case(
        "too many chunks",
        errors.TooManyItems,
        (str(limits.PREFIX_CHUNKS_MAX + 1), str(limits.PREFIX_CHUNKS_MAX)),
        "POST",
        "/prefix",
        prefix(tokens=[1] * (limits.PREFIX_CHUNKS_MAX + 1), chunk_tokens=1),
    ),
    Case("short fingerprint", errors.InvalidRequest, ("1 bytes", "32"), "POST", "/prefix", prefix(
        identity={"fingerprint": "00", "layout_digest": "11" * 32})),
    # what is not there
    Case("absent chunk", errors.NotFound, (OTHER[:16],), "GET", f"/chunks/{OTHER}"),
    Case("absent chunk's info", errors.NotFound, (OTHER[:16],), "GET", f"/chunks/{OTHER}/info"),
    Case("absent profile", errors.NotFound, (OTHER[:16],), "GET", f"/profiles/{OTHER}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def chunk(daemon, container_bytes):
    """A chunk of four layers, stored at ``exact`` only."""
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key, layers=4, segment_bytes=300)
    client = daemon.client()
    client.put(key, data)
    return Chunk(key, data, container_bytes, client.put_profile(PROFILE))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_with_its_error_in_one_line(daemon, chunk, case):
    target = case.target(chunk) if callable(case.target) else case.target
    body = case.body(chunk) if callable(case.body) else case.body
    answer = daemon.ask(case.method, target, body, **case.headers)
    assert (answer.status, answer.json()["error"]) == (case.error.http_status, case.error.code)
    assert set(answer.json()) == {"error", "message"}
    line = answer.json()["message"]
    assert "\n" not in line
    assert len(line) < 400
    for value in case.says:
        assert value in line
    assert daemon.client().get(chunk.key).value.data == chunk.data


def key_line(daemon):
    return f"Authorization: {daemon.key['Authorization']}"


def test_an_oversize_body_is_refused_before_it_is_sent(daemon):
    """The head alone is sent; the answer comes while the daemon has seen no byte of the body."""
    head = (
        f"PUT /chunks/{'0' * 64} HTTP/1.1\r\nHost: {daemon.endpoint}\r\n{key_line(daemon)}\r\n"
        f"Content-Length: {limits.CONTAINER_BYTES_MAX + 1}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((daemon.endpoint.host, daemon.endpoint.port), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_first_is_told_to_continue_only_where_its_head_is_fine(daemon, container_bytes):
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key)
    head = (
        f"PUT /chunks/{key.hex()} HTTP/1.1\r\nHost: {daemon.endpoint}\r\n{key_line(daemon)}\r\n"
        f"Content-Length: {len(data)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((daemon.endpoint.host, daemon.endpoint.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(data)
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", "/nowhere", 404), ("GET", "/", 404), ("PATCH", "/stats", 405), ("POST", f"/chunks/{OTHER}", 405)],
)
def test_what_is_no_route_is_said_so(daemon, method, target, status):
    answer = daemon.ask(method, target)
    assert (answer.status, answer.json()["error"]) == (status, "invalid_request")
    assert target in answer.json()["message"]


def test_a_body_cut_off_by_its_sender_leaves_nothing_behind(daemon, chunk):
    key = os.urandom(32)
    for sent in (b"", b"KVLC", chunk.data[: len(chunk.data) // 2]):
        with socket.create_connection((daemon.endpoint.host, daemon.endpoint.port), timeout=30) as connection:
            head = f"PUT /chunks/{key.hex()} HTTP/1.1\r\nHost: localhost\r\n{key_line(daemon)}\r\n"
            head += f"Content-Length: {len(chunk.data)}\r\n\r\n"
            connection.sendall(head.encode() + sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    with daemon.client() as client:  # the daemon learns of a closed connection a turn of its loop later
        assert any(
            (now.bytes_inflight, now.requests_inflight) == (0, 0) for now in (client.stats() for _ in range(100))
        )
    assert daemon.client().exists([key]) == [False]


def test_a_full_disk_is_said_so_and_the_rest_stays_readable(start_daemon, container_bytes):
    small = start_daemon("--memory", "64MiB", "--ssd", "2MiB")
    key, large = os.urandom(32), os.urandom(32)
    with small.client() as client:
        kept = container_bytes([EXACT], content_key=key)
        client.put(key, kept)
        data = container_bytes([EXACT], content_key=large, layers=64, segment_bytes=60_000)
        answer = small.ask("PUT", f"/chunks/{large.hex()}?ack=disk", data)
        assert (answer.status, answer.json()["error"]) == (507, "storage_full")
        assert "ssd" in answer.json()["message"]
        assert client.get(key).value.data == kept


def test_disk_cannot_be_promised_without_a_disk_tier(start_daemon, container_bytes):
    memory_only = start_daemon("--ssd", "off")
    key = os.urandom(32)
    answer = memory_only.ask("PUT", f"/chunks/{key.hex()}?ack=disk", container_bytes([EXACT], content_key=key))
    assert (answer.status, answer.json()["error"]) == (503, "storage_unavailable")
    assert "durable" in answer.json()["message"]
    assert answer.headers["retry-after"] == "1"
