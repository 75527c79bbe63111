import asyncio
import os

import pytest

from kvloom import limits
from kvloom.clients.kv_events import BlockRemoved, BlockStored, EventsLost
from kvloom.daemon.events import EventHub, Subscription
from kvloom.errors import Overloaded, TenantOverloaded
from kvloom.kvstore.attributes import ChunkAttributes
from kvloom.kvstore.key import owner_of
from kvloom.kvstore.tier import RecordInfo

OWNER, OTHER = b"o" * 16, b"x" * 16


def info(owner=OWNER, parent=None, tokens=256, start=0):
    key = owner + os.urandom(16)
    return RecordInfo(key, os.urandom(32), 1000, 1, owner_of(key), attributes=ChunkAttributes(parent, start, tokens))


async def test_a_subscriber_gets_its_own_tenants_events_only():
    hub = EventHub()
    one, foreign = info(), info(OTHER)
    two = info(parent=one.storage_key, tokens=100, start=256)
    with hub.subscribing(OWNER) as events:
        hub.note_stored("memory", one)
        hub.note_stored("memory", foreign)
        hub.note_stored("ssd", two)
        hub.note_removed("memory", foreign.storage_key)
        hub.note_removed("memory", one.storage_key)
        hub.note_stored("valkey", one)
        hub.close()
        seen = [event async for event in events]
    assert seen == [
        BlockStored((one.content_key,), "cpu", "memory", None, 256, 0, 1000),
        BlockStored((two.content_key,), "disk", "ssd", one.content_key, 100, 256, 1000),
        BlockRemoved((one.content_key,), "cpu", "memory"),
        BlockStored((one.content_key,), "network", "valkey", None, 256, 0, 1000),
    ]


async def test_what_a_pool_of_decoded_chunks_holds_is_told_by_hash(monkeypatch):
    monkeypatch.setattr(limits, "POOL_REPORT_KEYS_MAX", 2)
    keys = [os.urandom(32) for _ in range(3)]
    hub = EventHub()
    with hub.subscribing(OWNER) as events, hub.subscribing(OTHER) as foreign:
        hub.note_pool(OWNER, "cuda:0", keys, [])
        hub.note_pool(OWNER, "host", [], keys[:1])
        hub.close()
        assert [event async for event in events] == [
            BlockStored(tuple(keys[:2]), "gpu", "cuda:0"),
            BlockStored(tuple(keys[2:]), "gpu", "cuda:0"),
            BlockRemoved(tuple(keys[:1]), "cpu", "host"),
        ]
        assert [event async for event in foreign] == []


async def test_a_full_queue_loses_events_and_says_how_many_before_the_rest():
    events = Subscription(queued_max=3)
    stored = [BlockRemoved((os.urandom(32),), "cpu", "memory") for _ in range(10)]
    for event in stored:
        events.offer(event)
    assert await events.next() == EventsLost(7)
    assert [await events.next() for _ in range(3)] == stored[:3]
    assert await events.next(seconds_max=0.001) is None
    events.offer(stored[4])
    assert await events.next() == stored[4]


async def test_a_hash_that_was_forgotten_is_a_lost_event():
    hub = EventHub(names_max=2)
    records = [info() for _ in range(3)]
    for record in records:
        hub.note_stored("memory", record)
    with hub.subscribing(OWNER) as events:
        hub.note_removed("memory", records[0].storage_key)
        hub.note_removed("memory", records[2].storage_key)
        assert await events.next() == EventsLost(1)
        assert await events.next() == BlockRemoved((records[2].content_key,), "cpu", "memory")


async def test_a_parent_that_was_named_is_told_though_it_was_never_stored_here():
    hub = EventHub()
    parent = info()
    child = info(parent=parent.storage_key)
    hub.note_name(parent.storage_key, parent.content_key)
    with hub.subscribing(OWNER) as events:
        hub.note_stored("memory", child)
        assert (await events.next()).parent_block_hash == parent.content_key


async def test_a_resumed_subscription_begins_with_a_loss_nobody_can_count():
    hub = EventHub()
    with hub.subscribing(OWNER, resumed=True) as events:
        hub.note_stored("memory", record := info())
        assert await events.next() == EventsLost(None)
        assert (await events.next()).block_hashes == (record.content_key,)


async def test_whoever_waits_is_woken_by_an_event_and_by_the_end():
    hub = EventHub()
    with hub.subscribing(OWNER) as events:
        waiting = asyncio.create_task(events.next())
        await asyncio.sleep(0)
        hub.note_stored("memory", record := info())
        assert (await waiting).block_hashes == (record.content_key,)
        waiting = asyncio.create_task(anext(events, "ended"))
        await asyncio.sleep(0)
        hub.close()
        assert await waiting == "ended"
    with pytest.raises(Overloaded, match="draining"), hub.subscribing(OWNER):
        pass


async def test_the_number_of_subscribers_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "EVENT_SUBSCRIBERS_MAX", 3)
    monkeypatch.setattr(limits, "EVENT_SUBSCRIBERS_PER_TENANT_MAX", 2)
    hub = EventHub()
    with hub.subscribing(OWNER), hub.subscribing(OWNER):
        with (
            pytest.raises(TenantOverloaded, match="this tenant has 2 subscribers, its limit is 2"),
            hub.subscribing(OWNER),
        ):
            pass
        with hub.subscribing(OTHER):
            assert hub.subscribers == 3
            with pytest.raises(Overloaded, match="there are 3 subscribers"), hub.subscribing(b"y" * 16):
                pass
    assert hub.subscribers == 0
    with hub.subscribing(OWNER):
        assert hub.subscribers == 1
