import json

import pytest
from blake3 import blake3

from kvloom import errors, limits
from kvloom.clients import protocol, reports, wire
from kvloom.clients.protocol import HttpReply
from kvloom.codec.container import Container, join_layers, parse_header, select
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.errors import DaemonUnavailable, KvloomError
from kvloom.kvstore.key import ChunkRef, ContentKey
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Throttled, Unavailable
from kvloom.kvstore.tier import Ack

KEY = ContentKey(blake3(b"key").digest())
PARENT = ContentKey(blake3(b"parent").digest())
GONE = DaemonUnavailable("nobody there")


def reply(status, record=None, **headers):
    body = b"" if record is None else wire.encode(record)
    return HttpReply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def refusal(error: KvloomError, **headers):
    return reply(error.http_status, wire.ErrorBody(error.code, str(error)), **headers)


def part_of(data, level=None, layers=None):
    selection = select(parse_header(data), level=level, layers=layers)
    return selection.header + b"".join(data[r.start : r.stop] for r in selection.ranges)


@pytest.fixture(scope="module")
def container(container_bytes):
    return container_bytes(content_key=KEY, layers=4)


def test_requests_say_what_was_asked(container):
    put = protocol.PutChunk(KEY, container, Ack.DISK).request()
    assert (put.method, put.target, put.body) == ("PUT", f"/chunks/{KEY.hex()}?ack=disk", container)
    brief = protocol.PutChunk(KEY, container, Ack.MEMORY, ttl_seconds=90.5).request()
    assert brief.target == f"/chunks/{KEY.hex()}?ack=memory&ttl_seconds=90.500"
    for ttl in (0, -1, 1e12, float("nan")):
        with pytest.raises(errors.InvalidRequest, match="time to live"):
            protocol.PutChunk(KEY, container, Ack.MEMORY, ttl_seconds=ttl).request()
    assert wire.HEADER_PARENT not in put.headers
    child = protocol.PutChunk(KEY, container, Ack.MEMORY, parent=PARENT).request()
    assert child.headers[wire.HEADER_PARENT] == PARENT.hex()
    get = protocol.GetChunk(KEY, ECONOMY, range(1, 3)).request()
    assert (get.method, get.target) == ("GET", f"/chunks/{KEY.hex()}?level=economy&layers=1-2")
    assert protocol.GetChunk(KEY).request().target == f"/chunks/{KEY.hex()}"
    exists = protocol.ChunksExist((KEY,)).request()
    assert (exists.method, exists.target, json.loads(exists.body)) == ("POST", "/chunks/exists", {"keys": [KEY.hex()]})


def test_the_prefix_question_sends_keys_and_no_tokens():
    assert json.loads(protocol.MatchPrefix((KEY,)).request().body)["tokens"] is None


def test_a_body_past_the_limit_is_not_sent():

    big = memoryview(bytearray(1)).cast("B")
    assert protocol.PutChunk(KEY, big, Ack.DISK).request().body == b"\x00"
    with pytest.raises(errors.BodyTooLarge, match=str(limits.CONTAINER_BYTES_MAX)):
        protocol.PutChunk(KEY, bytearray(limits.CONTAINER_BYTES_MAX + 1), Ack.DISK).request()


def test_a_verified_container_is_a_hit_of_the_tier_the_daemon_names(container):
    outcome = protocol.GetChunk(KEY).parse(HttpReply(200, {"kvloom-tier": "ssd"}, container))
    assert isinstance(outcome, Hit)
    assert outcome.tier == "ssd"
    assert isinstance(outcome.value, Container)
    assert outcome.value.data == container


def test_a_level_and_a_layer_range_are_hits_where_the_reply_holds_them(container):
    for level, layers in ((DRAFT, None), (ECONOMY, range(1, 3)), (EXACT, range(4)), (None, range(2, 3))):
        body = part_of(container, level, layers)
        assert isinstance(protocol.GetChunk(KEY, level, layers).parse(HttpReply(200, {}, body)), Hit)


def test_layers_of_lossy_levels_come_in_whole_blocks(container_bytes):
    whole = container_bytes(layers=5, block_layers=2, content_key=KEY)
    body = part_of(whole, ECONOMY, range(1, 2))
    for asked, held in ((range(1, 2), range(2)), (range(1), range(2)), (range(2), range(2)), (range(2, 3), None)):
        found = protocol.GetChunk(KEY, ECONOMY, asked).parse(HttpReply(200, {}, body))
        assert (found.value.header.layers if isinstance(found, Hit) else None) == held
    exact = part_of(whole, EXACT, range(1, 2))
    assert isinstance(protocol.GetChunk(KEY, EXACT, range(1, 2)).parse(HttpReply(200, {}, exact)), Hit)
    assert not isinstance(protocol.GetChunk(KEY, EXACT, range(2)).parse(HttpReply(200, {}, exact)), Hit)


def test_a_lying_daemon_costs_a_corrupt_outcome_and_never_a_wrong_byte(container, container_bytes):
    def outcome(body, **asked):
        return protocol.GetChunk(KEY, **asked).parse(HttpReply(200, {}, body))

    flipped = bytearray(container)
    flipped[-1] ^= 1
    lies = [
        outcome(bytes(flipped)),
        outcome(container[:-1]),
        outcome(b""),
        outcome(b"<html>"),
        outcome(container_bytes(content_key=bytes(32))),
        outcome(part_of(container, DRAFT), level=ECONOMY),
        outcome(part_of(container, layers=range(1, 2)), layers=range(2, 3)),
    ]
    assert all(isinstance(lie, Corrupt) and lie.tier == "daemon" for lie in lies)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (refusal(errors.NotFound("no")), Miss()),
        (refusal(errors.LevelNotStored("no")), Miss()),
        (refusal(errors.Overloaded("full"), retry_after="3"), Throttled("daemon", 3.0)),
        (refusal(errors.Overloaded("full")), Throttled("daemon", 1.0)),
        (refusal(errors.Overloaded("full"), retry_after="٣ days"), Throttled("daemon", 1.0)),
        (refusal(errors.StorageUnavailable("down")), Unavailable("daemon", "down")),
        (refusal(KvloomError("bug")), Unavailable("daemon", "bug")),
    ],
)
def test_the_state_of_the_cache_is_an_outcome(answer, outcome):
    assert protocol.GetChunk(KEY).parse(answer) == outcome
    assert protocol.GetProfile(bytes(32)).parse(answer) == outcome


@pytest.mark.parametrize("error", [errors.InvalidRequest("bad"), errors.UnknownLevel("bad"), errors.Forbidden("no")])
def test_a_caller_s_mistake_is_raised_as_the_daemon_named_it(error):
    with pytest.raises(type(error), match=str(error)):
        protocol.GetChunk(KEY).parse(refusal(error))


def test_what_is_no_kvloom_daemon_is_told_from_one():
    with pytest.raises(DaemonUnavailable, match="answered 404 and is not a kvloom daemon"):
        protocol.DescribeChunk(KEY).parse(HttpReply(404, {}, b"<html>nginx</html>"))
    assert isinstance(protocol.GetChunk(KEY).parse(HttpReply(502, {}, b"")), Unavailable)


def test_without_a_daemon_reads_and_lookups_come_to_nothing_and_the_rest_raises():
    assert protocol.GetChunk(KEY).without_daemon(GONE) == Unavailable("daemon", "nobody there")
    assert protocol.GetProfile(KEY).without_daemon(GONE) == Unavailable("daemon", "nobody there")
    assert protocol.ChunksExist((KEY, KEY)).without_daemon(GONE) == (False, False)
    assert protocol.MatchPrefix((KEY,)).without_daemon(GONE) == 0
    for operation in (
        protocol.PutChunk(KEY, b"", Ack.DISK),
        protocol.DeleteChunk(KEY),
        protocol.ListChunks(1),
        protocol.DescribeChunk(KEY),
        reports.GetStats(),
        reports.CheckHealth(),
        protocol.PutProfile(b""),
    ):
        with pytest.raises(DaemonUnavailable):
            operation.without_daemon(GONE)


def test_a_busy_daemon_has_no_chunks_for_now():
    busy = refusal(errors.Overloaded("draining"))
    assert protocol.ChunksExist((KEY, KEY)).parse(busy) == (False, False)
    assert protocol.MatchPrefix((KEY,)).parse(busy) == 0


def test_answers_that_do_not_fit_the_question_are_invalid_data():
    with pytest.raises(errors.InvalidData, match="answered for 1 keys, 2 were asked"):
        protocol.ChunksExist((KEY, KEY)).parse(reply(200, wire.ExistsReply((True,))))
    with pytest.raises(errors.InvalidData, match="matched 2 of 1"):
        protocol.MatchPrefix((KEY,)).parse(reply(200, wire.PrefixCount(2)))
    with pytest.raises(errors.InvalidData, match="not a DaemonStats"):
        reports.GetStats().parse(HttpReply(200, {}, b"{}"))


def test_questions_about_many_keys_are_cut_to_the_limit():
    keys = [ContentKey(index.to_bytes(32, "big")) for index in range(limits.KEYS_PER_REQUEST_MAX + 1)]
    assert [len(batch.keys) for batch in protocol.ChunksExist.batches(keys)] == [limits.KEYS_PER_REQUEST_MAX, 1]
    refs = [ChunkRef(key, index, index + 1) for index, key in enumerate(keys)]
    assert [batch.keys[0] for batch in protocol.MatchPrefix.batches(refs)] == [keys[0], keys[-1]]
    assert protocol.ChunksExist.batches([]) == []


def test_the_prefix_reply_counts_tokens():
    refs = [ChunkRef(KEY, 0, 256), ChunkRef(KEY, 256, 300)]
    assert protocol.prefix_reply(refs, 0) == protocol.PrefixReply((), 0)
    assert protocol.prefix_reply(refs, 2).tokens == 300


def test_a_profile_is_verified_against_its_digest():
    data = b"a profile"
    digest = blake3(data).digest()
    assert protocol.PutProfile(data).request().target == f"/profiles/{digest.hex()}"
    assert protocol.PutProfile(data).parse(reply(201, wire.ProfileReply(digest))) == digest
    assert protocol.GetProfile(digest).parse(HttpReply(200, {}, data)) == Hit(data, "daemon")
    assert isinstance(protocol.GetProfile(digest).parse(HttpReply(200, {}, data + b"!")), Corrupt)


def test_layer_parts_of_a_chunk_join_to_the_whole(container):
    parts = []
    for layers in (range(2), range(2, 4)):
        outcome = protocol.GetChunk(KEY, layers=layers).parse(HttpReply(200, {}, part_of(container, layers=layers)))
        assert isinstance(outcome, Hit)
        parts.append(outcome.value.data)
    assert join_layers(parts) == container
