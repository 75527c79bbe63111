"""Both clients against a real daemon: the same calls come to the same answers."""

import asyncio
import inspect
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvloom import errors, limits
from kvloom.clients import AsyncKvloomClient, KvloomClient
from kvloom.clients.discovery import DaemonNote
from kvloom.codec.container import NO_PROFILE, Container
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.kvstore.key import ModelIdentity, chunk_refs
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.tier import Ack

PROFILE = os.urandom(5000)


class Blocking:
    """The async client with the face of the sync one, so that one test asks both."""

    def __init__(self, address: str, **options) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncKvloomClient(address, **options)

    def __getattr__(self, name: str):
        method = getattr(self._client, name)
        if not inspect.iscoroutinefunction(method):
            return method
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def client(request, daemon):
    made = (KvloomClient if request.param == "sync" else Blocking)(
        str(daemon.endpoint), data_dir=daemon.data_dir, local=False
    )
    yield made
    made.close()


@pytest.fixture
def key():
    return os.urandom(32)


def test_the_two_clients_have_the_same_methods_and_parameters():
    def face(kind):
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(item).parameters) for name, item in methods if not name.startswith("_")}

    assert face(KvloomClient) == face(AsyncKvloomClient)


def test_put_get_levels_and_layers(client, key, container_bytes):
    digest = client.put_profile(PROFILE)
    data = container_bytes(content_key=key, layers=5, segment_bytes=2000, profile_digest=digest)
    assert client.get(key) == Miss()
    assert client.put(key, data, ack=Ack.DISK).ack is Ack.DISK
    hit = client.get(key)
    assert isinstance(hit, Hit)
    assert isinstance(hit.value, Container)
    assert hit.value.data == data
    assert hit.tier == "memory"
    assert client.get(key, level=DRAFT).value.header.levels == (DRAFT,)
    part = client.get(key, level=ECONOMY, layers=range(1, 4)).value
    assert (part.header.layers, part.header.levels) == (range(1, 4), (DRAFT, ECONOMY))
    assert client.info(key).tokens == 5
    assert client.delete(key) is True
    assert client.delete(key) is False
    assert client.get(key) == Miss()
    with pytest.raises(errors.NotFound):
        client.info(key)


def test_a_level_that_is_not_stored_is_a_miss(client, key, container_bytes):
    client.put(key, container_bytes([EXACT], content_key=key))
    assert client.get(key, level=ECONOMY) == Miss()
    assert [type(outcome) for outcome in client.get_many([key, key], level=ECONOMY)] == [Miss, Miss]


def test_buffers_of_every_kind_can_be_put(client, key, container_bytes):
    data = container_bytes([EXACT], content_key=key)
    for buffer in (data, bytearray(data), memoryview(data)):
        client.put(key, buffer)
        assert client.get(key).value.data == data


def test_large_containers_travel_whole(client, key, container_bytes):
    data = container_bytes([EXACT], content_key=key, layers=32, segment_bytes=400_000)
    assert len(data) > 8 * limits.STREAM_FRAME_BYTES
    client.put(key, data, ack=Ack.DISK)
    assert client.get(key).value.data == data
    for layers in (range(1), range(10, 20)):
        assert client.get(key, layers=layers).value.header.layers == layers


def test_get_many_keeps_the_order(client, container_bytes):
    keys = [os.urandom(32) for _ in range(30)]
    for index, name in enumerate(keys):
        if index % 3:
            client.put(name, container_bytes([EXACT], content_key=name, seed=index))
    outcomes = client.get_many(keys)
    assert [isinstance(outcome, Hit) for outcome in outcomes] == [bool(index % 3) for index in range(30)]
    assert all(o.value.header.content_key == k for o, k in zip(outcomes, keys, strict=True) if isinstance(o, Hit))
    assert client.get_many([]) == []


def test_exists_takes_more_keys_than_one_request_may_hold(client, key, container_bytes):
    client.put(key, container_bytes([EXACT], content_key=key))
    absent = [os.urandom(32) for _ in range(limits.KEYS_PER_REQUEST_MAX)]
    assert client.exists([*absent, key]) == [False] * len(absent) + [True]
    assert client.exists([]) == []


def test_the_longest_prefix_is_what_the_daemon_finds_for_tokens_too(client, daemon, container_bytes):
    identity = ModelIdentity(os.urandom(32), os.urandom(32), "lora", b"salt")
    tokens = np.random.default_rng(0).integers(0, 50_000, 1000)
    refs = chunk_refs(identity, tokens, chunk_tokens=256)
    assert client.longest_prefix(identity, tokens).tokens == 0
    for ref in [*refs[:2], refs[3]]:
        client.put(ref.key, container_bytes([EXACT], content_key=ref.key))
    reply = client.longest_prefix(identity, tokens, chunk_tokens=256)
    assert (reply.tokens, reply.chunks) == (512, tuple(refs[:2]))
    client.put(refs[2].key, container_bytes([EXACT], content_key=refs[2].key))
    assert client.longest_prefix(identity, tokens).tokens == 1000
    asked = {
        "identity": {
            "fingerprint": identity.fingerprint.hex(),
            "layout_digest": identity.layout_digest.hex(),
            "adapter": "lora",
            "salt": b"salt".hex(),
        },
        "tokens": tokens.tolist(),
    }
    answer = daemon.ask("POST", "/prefix", json.dumps(asked).encode()).json()
    assert answer == {"chunks": 4, "tokens": 1000, "keys": [ref.key.hex() for ref in refs]}


def test_profiles_health_stats_and_lists(client, daemon, key, container_bytes):
    digest = client.put_profile(PROFILE)
    assert client.get_profile(digest) == Hit(PROFILE, "daemon")
    assert client.get_profile(os.urandom(32)) == Miss()
    assert client.health().pid == DaemonNote.read(daemon.data_dir).pid
    client.put(key, container_bytes([EXACT], content_key=key))
    assert key in [item.key for item in client.list_chunks(limit=10_000).chunks]
    assert [item.key for item in client.list_chunks(prefix=key.hex()).chunks] == [key]
    stats = client.stats()
    assert stats.phase == "ready"
    assert stats.profiles >= 1
    assert {tier.name for tier in stats.tiers} == {"memory", "ssd"}


def test_a_refusal_is_raised_as_the_error_it_is(client, key, container_bytes):
    data = container_bytes([EXACT], content_key=key)
    with pytest.raises(errors.KeyMismatch):
        client.put(os.urandom(32), data)
    with pytest.raises(errors.MalformedContainer):
        client.put(key, b"x" * 200)
    with pytest.raises(errors.ProfileMismatch):
        client.put(key, container_bytes(content_key=key, profile_digest=b"u" * 32))
    client.put(key, data)
    with pytest.raises(errors.InvalidRequest, match="layers"):
        client.get(key, layers=range(50, 60))
    with pytest.raises(errors.BodyTooLarge):
        client.put(key, bytearray(limits.CONTAINER_BYTES_MAX + 1))
    assert client.put(key, data).ack is Ack.MEMORY  # the client is as good as before


def test_many_threads_share_one_client(daemon, container_bytes):
    keys = [os.urandom(32) for _ in range(64)]
    chunks = {name: container_bytes([EXACT], content_key=name, seed=index) for index, name in enumerate(keys)}

    with (
        KvloomClient(str(daemon.endpoint), data_dir=daemon.data_dir, local=False, connections_max=3) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda item: client.put(*item), chunks.items()))
        outcomes = list(pool.map(client.get, chunks))
    assert [outcome.value.data for outcome in outcomes] == list(chunks.values())


def test_many_tasks_share_one_async_client(daemon, container_bytes):
    keys = [os.urandom(32) for _ in range(64)]
    chunks = {name: container_bytes([EXACT], content_key=name, seed=index) for index, name in enumerate(keys)}

    async def main():
        async with AsyncKvloomClient(str(daemon.endpoint), data_dir=daemon.data_dir, local=False) as client:
            await asyncio.gather(*(client.put(name, data) for name, data in chunks.items()))
            return await asyncio.gather(*(client.get(name) for name in chunks))

    assert [outcome.value.data for outcome in asyncio.run(main())] == list(chunks.values())


def test_a_client_finds_the_daemon_by_the_note_it_left(daemon, monkeypatch):
    monkeypatch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
    with KvloomClient() as client:
        assert client.endpoint == daemon.endpoint
        assert client.health().phase == "ready"


def test_containers_without_a_profile_need_none(client, key, container_bytes):
    data = container_bytes([EXACT], content_key=key, profile_digest=NO_PROFILE)
    assert client.put(key, data).ack is Ack.MEMORY
