"""Batches, ranges, conditions, pins and hints over HTTP, as a stranger with an HTTP library meets them."""

import os

import pytest

from kvloom import limits
from kvloom.clients import batches, leases, wire
from kvloom.codec.container import verify
from kvloom.codec.level import EXACT


@pytest.fixture
def key():
    return os.urandom(32)


@pytest.fixture
def container(container_bytes, key):
    return container_bytes((EXACT,), content_key=key, layers=4, segment_bytes=3000)


@pytest.fixture
def path(daemon, key, container):
    assert daemon.ask("PUT", f"/chunks/{key.hex()}", container).status == 201
    return f"/chunks/{key.hex()}"


def batch(*entries, **more):
    return b"".join(batches.encode_head(batches.PutHead(key.hex(), len(data), **more)) + data for key, data in entries)


def entries(body):
    found, position = [], 0
    while position < len(body):
        size = batches.head_bytes(body[position : position + batches.LENGTH_BYTES])
        position += batches.LENGTH_BYTES
        head = batches.decode_head(batches.ChunkHead, body[position : position + size])
        position += size
        found.append((head, body[position : position + head.payload_bytes]))
        position += head.payload_bytes
    return found


def test_a_range_is_some_of_the_same_bytes(daemon, path, container):
    whole = daemon.ask("GET", path)
    for asked, wanted in (("bytes=0-99", container[:100]), ("bytes=-7", container[-7:]), ("bytes=50-", container[50:])):
        answer = daemon.ask("GET", path, Range=asked)
        assert (answer.status, answer.body) == (206, wanted)
        start = container.index(wanted)
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(wanted) - 1}/{len(container)}"
        assert answer.headers["etag"] == whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    assert daemon.ask("GET", path, Range="bytes=0-1,5-6").status == 200
    behind = daemon.ask("GET", path, Range=f"bytes={len(container)}-")
    assert (behind.status, behind.json()["error"]) == (416, "range_not_satisfiable")
    assert behind.headers["content-range"] == f"bytes */{len(container)}"


def test_a_range_of_a_level_is_of_the_container_of_that_level(daemon, path, key):
    part = daemon.ask("GET", f"{path}?level=exact&layers=1-2")
    assert verify(part.body, content_key=key).layers == range(1, 3)
    assert daemon.ask("GET", f"{path}?level=exact&layers=1-2", Range="bytes=10-19").body == part.body[10:20]
    assert part.headers["etag"] != daemon.ask("GET", path).headers["etag"]


def test_a_tag_saves_sending_what_is_known(daemon, path):
    tag = daemon.ask("GET", path).headers["etag"]
    for method in ("GET", "HEAD"):
        same = daemon.ask(method, path, If_None_Match=f'"x", {tag}')
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
        assert daemon.ask(method, path, If_None_Match='"x"').status == 200
        assert daemon.ask(method, path, If_Match='"x"').status == 412
        assert daemon.ask(method, path, If_Match=tag).status == 200
    assert daemon.ask("GET", path, Range="bytes=0-3", If_Range=tag).status == 206
    assert daemon.ask("GET", path, Range="bytes=0-3", If_Range='"x"').status == 200


def test_head_is_what_get_is(daemon, path):
    for query in ("", "?level=exact", "?layers=1-2"):
        got, told = daemon.ask("GET", path + query), daemon.ask("HEAD", path + query)
        names = ("content-length", "content-type", "etag", "kvloom-levels", "kvloom-tokens", "accept-ranges")
        assert {name: told.headers[name] for name in names} == {name: got.headers[name] for name in names}
    assert daemon.ask("HEAD", path + "?level=fine").status == 404
    assert daemon.ask("HEAD", path + "?layers=9").status == 400


def test_a_change_may_depend_on_what_is_stored(daemon, key, container):
    path = f"/chunks/{key.hex()}"
    assert daemon.ask("PUT", path, container, If_Match="*").status == 412
    assert daemon.ask("PUT", path, container, If_None_Match="*").status == 201
    again = daemon.ask("PUT", path, container, If_None_Match="*")
    assert (again.status, again.json()["error"]) == (412, "precondition_failed")
    assert daemon.ask("DELETE", path, If_Match='"x"').status == 412
    tag = daemon.ask("HEAD", path).headers["etag"]
    assert daemon.ask("DELETE", path, If_Match=tag).json() == {"deleted": True}


def test_a_profile_has_its_digest_for_a_tag(daemon):
    digest = daemon.client().put_profile(b"some profile").hex()
    answer = daemon.ask("GET", f"/profiles/{digest}", Range="bytes=5-")
    assert (answer.status, answer.body, answer.headers["etag"]) == (206, b"profile", f'"{digest}"')
    assert daemon.ask("GET", f"/profiles/{digest}", If_None_Match=f'"{digest}"').status == 304


def test_a_batch_is_put_and_got(daemon, container_bytes):
    keys = [os.urandom(32) for _ in range(12)]
    chunks = {key: container_bytes((EXACT,), content_key=key, layers=4, segment_bytes=90_000) for key in keys}
    put = daemon.ask("PUT", "/chunks?ack=disk", batch(*chunks.items(), ttl_seconds=600.0))
    assert put.status == 200
    assert {item["ack"] for item in put.json()["results"]} == {"disk"}
    absent = os.urandom(32)
    asked = [keys[3], absent, *keys]
    body = wire.encode(leases.BatchQuestion(tuple(key.hex() for key in asked), "exact"))
    answer = daemon.ask("POST", "/chunks/get", body)
    assert (answer.status, answer.headers["content-type"]) == (200, batches.BATCH_TYPE)
    found = entries(answer.body)
    assert [head.key for head, _ in found] == [key.hex() for key in asked]
    assert found[1][0].error == "not_found"
    assert [data for head, data in found if head.error is None] == [chunks[key] for key in asked if key != absent]
    gone = daemon.ask("POST", "/chunks/delete", wire.encode(wire.KeysQuestion((keys[0].hex(), absent.hex()))))
    assert gone.json() == {"deleted": [True, False]}


def test_a_bad_chunk_of_a_batch_is_its_own_result(daemon, key, container):
    other = os.urandom(32)
    results = daemon.ask("PUT", "/chunks", batch((other, container), (key, container))).json()["results"]
    assert (results[0]["error"], results[1]["ack"]) == ("key_mismatch", "memory")


def test_a_bad_batch_is_refused(daemon, key, container):
    good = batch((key, container))
    huge = batches.encode_head(batches.PutHead(key.hex(), limits.CONTAINER_BYTES_MAX + 1))
    for body, status in (
        (good[:-1], 400), (good[:2], 400), (good[:30], 400), (b"\xff" * 8, 413), (b"\x04\0\0\0nope", 400), (huge, 413),
        (batches.encode_head(batches.PutHead("zz", 0)), 400),
        (batches.encode_head(batches.PutHead(key.hex(), -1)), 400),
    ):  # fmt: skip
        assert daemon.ask("PUT", "/chunks", body).status == status
    assert daemon.ask("PUT", "/chunks", b"").json() == {"results": []}


def test_pins_hints_and_prefetch(daemon, path, key):
    absent = os.urandom(32).hex()
    pinned = daemon.ask("POST", "/pins", wire.encode(leases.PinQuestion((key.hex(), absent), 30.0)))
    reply = wire.decode(leases.PinReply, pinned.body)
    assert (pinned.status, reply.pinned) == (201, (True, False))
    assert daemon.ask("GET", "/tenant").json()["pinned_bytes"] > 0
    assert daemon.ask("DELETE", f"/pins/{reply.lease.hex()}").json() == {"released": True}
    assert daemon.ask("DELETE", f"/pins/{reply.lease.hex()}").json() == {"released": False}
    assert daemon.ask("DELETE", "/pins/xyz").status == 400
    hint = daemon.ask("POST", "/hints", wire.encode(leases.HintQuestion((key.hex(),), finished=True)))
    assert hint.json() == {"keys": 1}
    fetched = daemon.ask("POST", "/prefetch", wire.encode(wire.KeysQuestion((key.hex(),))))
    assert (fetched.status, fetched.json()) == (202, {"accepted": 1})


def test_namespaces_and_their_quotas_are_listed(daemon, path):
    listed = {item["namespace"]: item for item in daemon.ask("GET", "/namespaces").json()["namespaces"]}
    assert [tier["tier"] for tier in listed["default"]["tiers"]] == ["memory", "ssd"]


def test_a_namespace_can_be_emptied(start_daemon, key, container):
    daemon = start_daemon("--memory", "16MiB", "--ssd", "off")
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    assert daemon.ask("DELETE", "/chunks").json() == {"records": 1}
    assert daemon.ask("GET", "/chunks").json()["chunks"] == []
