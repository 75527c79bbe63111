"""Which chunk stands before which, from a client to the daemon's disk, by HTTP and by the Unix socket."""

import os

import pytest

from kvloom.clients import KvloomClient
from kvloom.codec.level import EXACT
from kvloom.kvstore.attributes import ChunkAttributes
from kvloom.kvstore.key import storage_key
from kvloom.kvstore.namespace import derive_namespace, load_root_secret
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack


@pytest.mark.parametrize("local", [False, True])
async def test_the_parent_reaches_the_disk(start_daemon, container_bytes, monkeypatch, local):
    daemon = start_daemon("--memory", "64MiB", "--ssd", "256MiB")
    monkeypatch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
    parent, small, large = (os.urandom(32) for _ in range(3))
    with KvloomClient(str(daemon.endpoint), local=local) as client:
        for key, size in ((small, 100), (large, 200_000)):
            data = container_bytes([EXACT], content_key=key, tokens=7, first_position=256, segment_bytes=size)
            client.put(key, data, ack=Ack.DISK, parent=parent)
        client.put(parent, container_bytes([EXACT], content_key=parent, tokens=256), ack=Ack.DISK)
    assert daemon.stop() == 0
    secret = derive_namespace(load_root_secret(daemon.data_dir / "root.secret"), "default").secret
    tier = SsdTier.open(daemon.data_dir / "chunks", 256 * 1024**2)
    found = {info.content_key: info.attributes async for info in tier.scan()}
    await tier.close()
    below = ChunkAttributes(storage_key(secret, parent), 256, 7)
    assert found == {small: below, large: below, parent: ChunkAttributes(None, 0, 256)}


@pytest.mark.parametrize("parent", ["", "x" * 64, "ab" * 31, "AB" * 32, "ab" * 33])
def test_a_parent_that_is_no_key_is_refused(daemon, container_bytes, parent):
    key = os.urandom(32)
    answer = daemon.ask("PUT", f"/chunks/{key.hex()}", container_bytes([EXACT], content_key=key), Kvloom_Parent=parent)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_key")


def test_each_tier_has_the_policy_that_was_chosen(start_daemon):
    daemon = start_daemon("--memory", "64MiB", "--ssd", "256MiB", "--eviction", "memory=lru,ssd=gdsf")
    with daemon.client() as client:
        assert [(tier.name, tier.eviction) for tier in client.stats().tiers] == [("memory", "lru"), ("ssd", "gdsf")]
