"""The HTTP interface of a real daemon, as a stranger with an HTTP library meets it."""

import os

import pytest

import kvloom
from kvloom.clients import wire
from kvloom.codec.container import Container, parse_header, verify
from kvloom.codec.level import DRAFT, ECONOMY, EXACT

PROFILE = b"a profile of these tests"


@pytest.fixture
def key():
    return os.urandom(32)


@pytest.fixture
def profile(daemon):
    return daemon.client().put_profile(PROFILE)


@pytest.fixture
def container(container_bytes, key, profile):
    return container_bytes(content_key=key, layers=4, segment_bytes=3000, profile_digest=profile)


def test_a_put_is_answered_with_what_it_reached(daemon, key, container):
    for ack in ("memory", "disk"):
        answer = daemon.ask("PUT", f"/chunks/{key.hex()}?ack={ack}", container)
        assert (answer.status, answer.json()) == (201, {"ack": ack})
    assert daemon.ask("PUT", f"/chunks/{key.hex()}", container).json() == {"ack": "memory"}


def test_a_get_gives_back_the_bytes_that_were_put(daemon, key, container):
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    answer = daemon.ask("GET", f"/chunks/{key.hex()}")
    assert (answer.status, answer.body) == (200, container)
    assert answer.headers["content-type"] == wire.CONTAINER_TYPE
    assert answer.headers["content-length"] == str(len(container))
    assert answer.headers["kvloom-levels"] == "draft,economy,exact"
    assert answer.headers["kvloom-tokens"] == "5"
    assert answer.headers["kvloom-tier"] in ("memory", "write-behind", "ssd")


@pytest.mark.parametrize(("level", "held"), [("draft", (DRAFT,)), ("economy", (DRAFT, ECONOMY)), ("exact", (EXACT,))])
def test_a_level_is_a_container_of_what_it_needs(daemon, key, container, level, held):
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    answer = daemon.ask("GET", f"/chunks/{key.hex()}?level={level}")
    assert verify(answer.body, content_key=key).levels == held
    whole = Container.parse(container)
    part = Container.parse(answer.body)
    for segment in part.header.segments:
        assert part.segment(segment.level, segment.layer, segment.kind) == whole.segment(
            segment.level, segment.layer, segment.kind
        )


def test_layers_are_a_container_of_those_layers(daemon, key, container):
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    answer = daemon.ask("GET", f"/chunks/{key.hex()}?layers=1-2&level=economy")
    header = verify(answer.body, content_key=key)
    assert (header.layers, header.levels) == (range(1, 3), (DRAFT, ECONOMY))
    assert verify(daemon.ask("GET", f"/chunks/{key.hex()}?layers=3").body).layers == range(3, 4)


def test_head_says_what_a_get_would_and_sends_nothing(daemon, key, container):
    assert daemon.ask("HEAD", f"/chunks/{key.hex()}").status == 404
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    answer = daemon.ask("HEAD", f"/chunks/{key.hex()}")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(len(container))
    assert answer.headers["kvloom-levels"] == "draft,economy,exact"


def test_a_deleted_chunk_is_gone(daemon, key, container):
    daemon.ask("PUT", f"/chunks/{key.hex()}?ack=disk", container)
    assert daemon.ask("DELETE", f"/chunks/{key.hex()}").json() == {"deleted": True}
    assert daemon.ask("GET", f"/chunks/{key.hex()}").status == 404
    assert daemon.ask("DELETE", f"/chunks/{key.hex()}").json() == {"deleted": False}


def test_exists_answers_in_order(daemon, key, container):
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    absent = os.urandom(32).hex()
    body = wire.encode(wire.KeysQuestion((absent, key.hex(), absent)))
    assert daemon.ask("POST", "/chunks/exists", body).json() == {"exists": [False, True, False]}


def test_info_tells_levels_sizes_and_layout(daemon, key, container):
    daemon.ask("PUT", f"/chunks/{key.hex()}?ack=disk", container)
    header = parse_header(container)
    detail = wire.decode(wire.ChunkDetail, daemon.ask("GET", f"/chunks/{key.hex()}/info").body)
    assert (detail.chunk.key, detail.chunk.payload_bytes) == (key, len(container))
    assert detail.chunk.tiers == ("memory", "ssd")
    assert (detail.tokens, detail.layers, detail.dtype) == (5, 4, "float32")
    assert detail.raw_bytes == 5 * header.layout.bytes_per_token
    assert sum(item.payload_bytes for item in detail.levels) == len(container) - header.header_bytes
    assert detail.profile_digest == header.profile_digest
    assert detail.layout_digest == header.layout.digest()


def test_a_list_is_bounded_and_can_be_narrowed(daemon, key, container, container_bytes, profile):
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    other = os.urandom(32)
    daemon.ask("PUT", f"/chunks/{other.hex()}", container_bytes(content_key=other, profile_digest=profile))
    one = wire.decode(wire.ChunkList, daemon.ask("GET", "/chunks?limit=1").body)
    assert (len(one.chunks), one.truncated) == (1, True)
    mine = wire.decode(wire.ChunkList, daemon.ask("GET", f"/chunks?prefix={key.hex()[:20]}").body)
    assert ([item.key for item in mine.chunks], mine.truncated) == ([key], False)


def test_a_profile_is_kept_by_its_digest(daemon, profile):
    answer = daemon.ask("GET", f"/profiles/{profile.hex()}")
    assert (answer.status, answer.body) == (200, PROFILE)
    assert answer.headers["content-type"] == wire.PROFILE_TYPE
    again = daemon.ask("PUT", f"/profiles/{profile.hex()}", PROFILE)
    assert (again.status, again.json()) == (201, {"digest": profile.hex()})


def test_health_readiness_stats_and_metrics(daemon, key, container):
    daemon.ask("PUT", f"/chunks/{key.hex()}", container)
    daemon.ask("GET", f"/chunks/{key.hex()}")
    assert daemon.ask("GET", "/healthz").json()["phase"] == "ready"
    assert daemon.ask("GET", "/readyz").status == 200
    stats = wire.decode(wire.DaemonStats, daemon.ask("GET", "/stats").body)
    assert (stats.version, stats.namespace) == (kvloom.__version__, "default")
    assert [tier.name for tier in stats.tiers] == ["memory", "ssd"]
    assert stats.hits >= 1
    metrics = daemon.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    text = metrics.body.decode()
    assert 'kvloom_http_requests_total{method="PUT",route="/chunks/{key}",status="201"}' in text
    assert key.hex() not in text
    for name in ("kvloom_tier_used_bytes", "kvloom_tier_hits_total", "kvloom_dirty_bytes", "kvloom_build_info"):
        assert f"\n{name}{{" in text or f"\n{name} " in text


def test_a_request_id_is_repeated_or_made_up(daemon):
    assert daemon.ask("GET", "/healthz", X_Request_Id="abc-123").headers["x-request-id"] == "abc-123"
    for bad in ("a b", "x" * 65, "<script>"):
        made = daemon.ask("GET", "/healthz", X_Request_Id=bad).headers["x-request-id"]
        assert made != bad
        assert len(made) == 16
    assert len(daemon.ask("GET", "/nowhere").headers["x-request-id"]) == 16


def test_a_body_may_come_in_pieces_of_undeclared_length(daemon, key, container):
    def pieces():
        for start in range(0, len(container), 1000):
            yield container[start : start + 1000]

    answer = daemon.ask("PUT", f"/chunks/{key.hex()}", pieces())
    assert answer.status == 201
    assert daemon.ask("GET", f"/chunks/{key.hex()}").body == container


def test_a_chunk_can_be_put_for_a_time(daemon, key, container):
    assert daemon.ask("PUT", f"/chunks/{key.hex()}?ack=disk&ttl_seconds=3600", container).status == 201
    chunk = daemon.ask("GET", f"/chunks/{key.hex()}/info").json()["chunk"]
    assert 3_500_000 < chunk["expires_at_ms"] - chunk["stored_at_ms"] <= 3_600_000
    for wrong in ("0", "x", "-5", "999999999999"):
        answer = daemon.ask("PUT", f"/chunks/{key.hex()}?ttl_seconds={wrong}", container)
        assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
