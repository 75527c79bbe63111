"""Containers from a daemon on this machine: what their word sum finds, and when it is not gone by."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.discovery import Endpoint
from kvloom.clients.http_message import HttpReply
from kvloom.clients.protocol import GetChunk
from kvloom.clients.summed import HEADER_WORD_SUM, Summing, format_sum, summed_container, word_sum_of
from kvloom.errors import InvalidData, KeyMismatch
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.outcome import Corrupt, Hit
from kvloom.kvstore.sharing import word_sum

KEY = ContentKey(blake3(b"key").digest())


@pytest.fixture(scope="module")
def container(container_bytes):
    return bytes(container_bytes(content_key=KEY, layers=2))


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=6))
def test_adding_up_while_bytes_come_is_the_sum_of_all(data, stops):
    summing = Summing(data)
    for stop in sorted(min(stop, len(data)) for stop in stops):
        summing.advance(stop)
    summing.advance(len(data))
    assert summing.total == word_sum(data)


def test_there_is_no_total_before_all_has_come():
    summing = Summing(bytes(32))
    summing.advance(31)
    assert summing.total is None


@given(st.integers(0, 2**64 - 1))
def test_a_header_says_what_was_meant(total):
    assert word_sum_of({HEADER_WORD_SUM.lower(): format_sum(total)}) == total


@pytest.mark.parametrize("text", ["", "0", "-000000000000001", "0" * 17, "g" * 16, "0X00000000000000", "1" * 5000])
def test_a_header_that_is_none_is_no_sum(text):
    assert word_sum_of({HEADER_WORD_SUM.lower(): text}) is None


def test_bytes_with_their_sum_are_the_chunk_and_no_other(container):
    total = word_sum(container)
    assert bytes(summed_container(container, total, KEY).data) == container
    with pytest.raises(KeyMismatch):
        summed_container(container, total, ContentKey(bytes(32)))
    with pytest.raises(InvalidData, match="word sum"):
        summed_container(container, total, KEY, summed=total ^ 1)


def test_every_flipped_bit_is_damage(container):
    asked, total = GetChunk(KEY), word_sum(container)
    assert isinstance(asked.parse(HttpReply(200, {}, container, word_sum=total)), Hit)
    for place in range(0, len(container), 97):
        damaged = bytearray(container)
        damaged[place] ^= 1 << place % 8
        assert isinstance(asked.parse(HttpReply(200, {}, damaged, word_sum=total)), Corrupt)


def test_a_header_that_does_not_hold_is_damage_whatever_the_sum(container):
    damaged = bytearray(container)
    damaged[90] ^= 1
    found = GetChunk(KEY).parse(HttpReply(200, {}, damaged, word_sum=word_sum(damaged)))
    assert isinstance(found, Corrupt)


@pytest.mark.parametrize(
    ("host", "near"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("10.0.0.1", False), ("kv", False)]
)
def test_only_this_machine_is_near(host, near):
    assert Endpoint(host, 1).is_near is near
