"""The latest chunks of each owner, and the last error of each tier."""

from kvloom import limits
from kvloom.daemon.journal.recent_chunks import RecentChunks
from kvloom.daemon.journal.tier_errors import TierErrors
from kvloom.kvstore.key import KEY_BYTES, OwnerId, StorageKey, owner_of
from kvloom.kvstore.tier import RecordInfo


def record(owner, number):
    return RecordInfo(
        StorageKey(bytes([owner]) * KEY_BYTES), number.to_bytes(KEY_BYTES, "big"), payload_bytes=number, stored_at_ms=0
    )


def owner(number):
    return owner_of(StorageKey(bytes([number]) * KEY_BYTES))


def test_the_latest_stand_first_and_one_in_several_tiers_stands_once():
    chunks = RecentChunks(chunks_max=3)
    for number in (1, 2, 3, 2, 4):
        chunks.note(record(7, number))
    assert [info.payload_bytes for info in chunks.of(owner(7))] == [4, 2, 3]


def test_each_owner_has_his_own_and_there_are_not_too_many():
    chunks = RecentChunks(owners_max=2)
    for number in (1, 2, 1, 3):
        chunks.note(record(number, number))
    assert [len(chunks.of(owner(number))) for number in (1, 2, 3)] == [1, 0, 1]
    assert chunks.of(OwnerId(b"nobody")) == ()


def test_the_last_error_of_a_tier_is_one_short_line_with_an_age():
    now = [5.0]
    errors = TierErrors(clock=lambda: now[0])
    assert errors.last("valkey") is None
    errors.note("valkey", "get", "first")
    errors.note("valkey", "put", "line one\nline two " + "x" * 1000)
    now[0] = 8.0
    last = errors.last("valkey")
    assert (last.operation, errors.age_seconds(last)) == ("put", 3.0)
    assert last.detail.startswith("line one line two x")
    assert len(last.detail) == limits.TIER_ERROR_CHARACTERS_MAX
    assert errors.last("ssd") is None
