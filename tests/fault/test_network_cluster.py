"""A cluster of three Valkey nodes, one of which is killed in the middle of reading and writing."""

import asyncio

import pytest
from network_servers import ValkeyCluster, wait_until, whole

from kvloom.errors import StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import OWNER_BYTES, OwnerId
from kvloom.kvstore.network import guarded, parse_network
from kvloom.kvstore.network.valkey import ValkeyTier
from kvloom.kvstore.outcome import Hit, Miss, Unavailable
from kvloom.kvstore.tier import Usage
from kvloom.kvstore.wrappers.breaker import BreakerPolicy
from kvloom.kvstore.wrappers.retry import RetryPolicy
from kvloom.kvstore.wrappers.throttle import InflightBytes

OWNER = OwnerId(b"c" * OWNER_BYTES)
RECORDS = [make_record(number, 40_000 + number, owner=OWNER) for number in range(60)]
KEYS = [record.storage_key for record in RECORDS]


def tier_of(cluster: ValkeyCluster):
    bare = ValkeyTier(parse_network(f"valkey://{cluster.hosts}/killed"))
    return bare, guarded(bare, InflightBytes(), RetryPolicy(5.0), BreakerPolicy(stall_seconds=10.0, ping_seconds=10.0))


async def outcomes_of(tier) -> list:
    """The outcome of reading each record; a hit is checked here."""
    outcomes = await asyncio.gather(*(tier.get(key) for key in KEYS))
    for record, outcome in zip(RECORDS, outcomes, strict=True):
        if isinstance(outcome, Hit):
            assert (bytes(outcome.value.parts[0]), outcome.value.info) == (record.payload, record.info)
    return outcomes


async def test_one_node_killed_in_mid_run_costs_its_own_keys_only(valkey_cluster: ValkeyCluster) -> None:
    bare, tier = tier_of(valkey_cluster)
    other = tier_of(valkey_cluster)[1]
    await asyncio.gather(*(tier.put(record) for record in RECORDS))
    assert all(isinstance(outcome, Hit) for outcome in await outcomes_of(other))
    assert await other.usage(OWNER) == Usage(60, sum(len(record.payload) for record in RECORDS))
    victim = valkey_cluster.nodes[1]
    on_victim = []
    for record in RECORDS:
        place = bare._keys.head(record.storage_key)
        on_victim.append((await bare._nodes._node_of(_slot(place))).place.port == victim.port)
    assert 0 < sum(on_victim) < 60

    async def killed() -> None:
        victim.kill()

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(outcomes_of(tier)) for _ in range(3)]
        group.create_task(killed())
    for _ in range(5):
        for outcome, lost in zip(await outcomes_of(tier), on_victim, strict=True):
            assert isinstance(outcome, Unavailable if lost else Hit)
        assert await tier.contains_many(KEYS) == [not lost for lost in on_victim]
    assert all(isinstance(outcome, Hit | Unavailable) for reader in readers for outcome in reader.result())
    assert not tier.is_open
    with pytest.raises(StorageUnavailable):
        await tier.put(RECORDS[on_victim.index(True)])
    await tier.put(RECORDS[on_victim.index(False)])

    await asyncio.to_thread(victim.start)
    await asyncio.to_thread(wait_until, lambda: all(whole(node) for node in valkey_cluster.nodes), "the node is back")
    for outcome, lost in zip(await outcomes_of(tier), on_victim, strict=True):
        assert isinstance(outcome, Miss if lost else Hit)
    await asyncio.gather(*(tier.put(record) for record, lost in zip(RECORDS, on_victim, strict=True) if lost))
    assert all(isinstance(outcome, Hit) for outcome in await outcomes_of(other))
    assert await other.delete_owner(OWNER) == 60
    assert all(isinstance(outcome, Miss) for outcome in await outcomes_of(tier))
    await tier.close()
    await other.close()


async def test_slots_that_move_are_followed(valkey_cluster: ValkeyCluster) -> None:
    bare, tier = tier_of(valkey_cluster)
    record = make_record(1000, 100_000)
    await tier.put(record)
    slot = _slot(bare._keys.head(record.storage_key))
    source = next(n for n in valkey_cluster.nodes if n.port == bare._nodes._slots[slot].port)
    target = next(n for n in valkey_cluster.nodes if n is not source)
    source_id, target_id = (node_id(node) for node in (source, target))
    keys = [bare._keys.head(record.storage_key)]
    head = bare._heads[record.storage_key]
    keys += bare._keys.parts(record.storage_key, head, range(head.parts))
    target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source_id)
    source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target_id)
    for key in keys:
        source.ask("MIGRATE", "127.0.0.1", str(target.port), key.decode(), "0", "5000")
    found = await tier.get(record.storage_key)
    assert isinstance(found, Hit), found
    for node in valkey_cluster.nodes:
        node.ask("CLUSTER", "SETSLOT", str(slot), "NODE", target_id)
    found = await tier.get(record.storage_key)
    assert isinstance(found, Hit), found
    assert found.value.parts[0] == record.payload
    assert bare._nodes._slots[slot].port == target.port
    assert await tier.delete(record.storage_key)
    for node in valkey_cluster.nodes:
        node.ask("CLUSTER", "SETSLOT", str(slot), "NODE", source_id)
    await tier.close()


def _slot(place: bytes) -> int:
    from valkey.crc import key_slot

    return key_slot(place)


def node_id(node) -> str:
    import socket

    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
        connection.sendall(b"CLUSTER MYID\r\nQUIT\r\n")
        return connection.makefile("rb").read().decode().split("\r\n")[1]
