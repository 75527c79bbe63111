"""One suite against every edge of a real daemon: HTTP, gRPC and the Unix socket come to the same outcomes."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from kvloom import errors, limits
from kvloom.clients import AsyncKvloomClient, KvloomClient
from kvloom.clients.discovery import DATA_DIR_VARIABLE, DaemonNote
from kvloom.codec.container import Container
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, FINE
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import RunningDaemon, open_daemon
from kvloom.kvstore.key import ModelIdentity, chunk_refs, storage_key
from kvloom.kvstore.outcome import Hit, Miss, Throttled, Unavailable
from kvloom.kvstore.tier import Ack

LAYERS = 4
PROFILE = b"a profile of these tests"


@dataclass(frozen=True)
class Served:
    """A daemon, and a client that talks to it over one edge."""

    edge: str
    running: RunningDaemon
    data_dir: Path
    client: AsyncKvloomClient
    address: str

    def blocking(self) -> KvloomClient:
        return KvloomClient(self.address, local=self.edge == "local")


@pytest.fixture(params=["http", "grpc", "local", "local, sent"])
async def served(request, tmp_path: Path, monkeypatch) -> AsyncIterator[Served]:
    """``local, sent`` is the Unix socket where nothing may be mapped, so that chunks are sent through it."""
    edge = request.param
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "data"))
    if edge == "local, sent":
        monkeypatch.setattr(limits, "LOCAL_LEASES_MAX", 0)
    text = ConfigText(port="0", data_dir=str(tmp_path / "data"), memory="16MiB", ssd="64MiB", grpc_port="0")
    async with open_daemon(resolve_config(text, probe_machine(text.directory()))) as running:
        note = DaemonNote.read(text.directory())
        address = f"grpc://127.0.0.1:{note.grpc_port}" if edge == "grpc" else str(note.endpoint)
        async with AsyncKvloomClient(address, local=edge.startswith("local")) as client:
            yield Served(edge, running, text.directory(), client, address)


@pytest.fixture
def key() -> bytes:
    return os.urandom(32)


@pytest.fixture
async def container(served, container_bytes, key) -> bytes:
    profile = await served.client.put_profile(PROFILE)
    return container_bytes(content_key=key, layers=LAYERS, segment_bytes=3000, profile_digest=profile)


@pytest.fixture
async def large(container_bytes, key) -> bytes:
    """More than one frame, and lossless: no profile is needed."""
    return container_bytes((EXACT,), content_key=key, layers=LAYERS, segment_bytes=900_000, seed=7)


@pytest.mark.parametrize("ack", Ack)
async def test_what_was_put_comes_back(served, key, container, ack):
    assert (await served.client.put(key, container, ack=ack)).ack is ack
    found = await served.client.get(key)
    assert isinstance(found, Hit)
    assert bytes(found.value.data) == container
    assert found.tier in ("memory", "write-behind", "ssd")


async def test_a_chunk_of_many_frames_comes_back(served, key, large):
    assert len(large) > 2 * limits.STREAM_FRAME_BYTES
    await served.client.put(key, large)
    assert bytes((await served.client.get(key)).value.data) == large
    assert bytes((await asyncio.to_thread(served.blocking().get, key)).value.data) == large


@pytest.mark.parametrize(("level", "held"), [(DRAFT, (DRAFT,)), (ECONOMY, (DRAFT, ECONOMY)), (EXACT, (EXACT,))])
async def test_a_level_is_a_container_of_what_it_needs(served, key, container, level, held):
    await served.client.put(key, container)
    part = (await served.client.get(key, level=level)).value
    assert part.header.levels == held
    whole = Container.parse(container)
    for item in part.header.segments:
        wanted = whole.segment(item.level, item.layer, item.kind)
        assert part.segment(item.level, item.layer, item.kind) == wanted


@pytest.mark.parametrize("level", [None, ECONOMY, EXACT])
async def test_layers_are_a_container_of_those_layers(served, key, container, level):
    await served.client.put(key, container)
    assert (await served.client.get(key, level=level, layers=range(1, 3))).value.header.layers == range(1, 3)
    assert (await served.client.get(key, level=level, layers=range(3, 4))).value.header.layers == range(3, 4)


async def test_what_is_not_stored_is_a_miss(served, key, container):
    assert await served.client.get(key) == Miss()
    assert await served.client.exists([key]) == [False]
    assert await served.client.delete(key) is False
    with pytest.raises(errors.NotFound):
        await served.client.info(key)
    await served.client.put(key, container)
    assert await served.client.get(key, level=FINE) == Miss()


async def test_what_was_deleted_is_gone(served, key, container):
    await served.client.put(key, container, ack=Ack.DISK)
    assert await served.client.delete(key) is True
    assert await served.client.get(key) == Miss()
    assert await served.client.delete(key) is False


async def test_many_are_answered_in_their_order(served, key, container):
    await served.client.put(key, container)
    absent = os.urandom(32)
    assert await served.client.exists([absent, key, absent]) == [False, True, False]
    found = await served.client.get_many([absent, key, absent], level=DRAFT)
    assert [type(item) for item in found] == [Miss, Hit, Miss]
    assert found[1].value.header.levels == (DRAFT,)


async def test_the_longest_prefix_is_found(served, container_bytes):
    identity = ModelIdentity(bytes(32), os.urandom(32))
    tokens = np.arange(40)
    refs = chunk_refs(identity, tokens, chunk_tokens=8)
    for ref in (*refs[:3], refs[4]):
        await served.client.put(ref.key, container_bytes((EXACT,), content_key=ref.key), parent=ref.parent)
    reply = await served.client.longest_prefix(identity, tokens, chunk_tokens=8)
    assert (reply.chunks, reply.tokens) == (tuple(refs[:3]), 24)


async def test_a_time_to_live_is_kept(served, key, container):
    await served.client.put(key, container, ttl_seconds=3600)
    chunk = (await served.client.info(key)).chunk
    assert 3_500_000 < chunk.expires_at_ms - chunk.stored_at_ms <= 3_600_000
    for wrong in (0.0, -5.0, 1e12):
        with pytest.raises(errors.InvalidRequest):
            await served.client.put(key, container, ttl_seconds=wrong)


async def test_info_list_and_stats_say_the_same(served, key, container):
    await served.client.put(key, container)
    info = await served.client.info(key)
    assert (info.chunk.key, info.layers, info.chunk.payload_bytes) == (key, LAYERS, len(container))
    (listed,) = (await served.client.list_chunks(prefix=key.hex()[:20])).chunks
    assert listed == replace(info.chunk, tiers=listed.tiers)
    assert (await served.client.stats()).puts == 1
    assert (await served.client.health()).phase == "ready"


async def test_a_profile_is_kept_by_its_digest(served):
    digest = await served.client.put_profile(PROFILE)
    assert (await served.client.get_profile(digest)).value == PROFILE
    assert await served.client.get_profile(bytes(32)) == Miss()


async def test_what_is_wrong_with_a_put_is_said_alike(served, key, container, container_bytes):
    other, strange = os.urandom(32), container_bytes((DRAFT,), content_key=key, profile_digest=b"x" * 32)
    damaged = bytearray(container)
    damaged[-1] ^= 1
    for wrong, error in (
        ((other, container), errors.KeyMismatch),
        ((key, bytes(damaged)), errors.MalformedContainer),
        ((key, container[:-1]), errors.InvalidData),
        ((key, b"no container"), errors.InvalidData),
        ((key, b""), errors.InvalidData),
        ((key, strange), errors.ProfileMismatch),
        ((b"short", container), errors.InvalidKey),
    ):
        with pytest.raises(error):
            await served.client.put(*wrong)
    assert await served.client.get(key) == Miss()


async def test_what_is_wrong_with_a_get_is_said_alike(served, key, container):
    await served.client.put(key, container)
    for wrong in (range(LAYERS, LAYERS + 1), range(LAYERS + 1), range(limits.LAYERS_MAX, limits.LAYERS_MAX + 1)):
        with pytest.raises(errors.InvalidRequest):
            await served.client.get(key, layers=wrong)
    with pytest.raises(errors.InvalidKey):
        await served.client.get(b"short")
    with pytest.raises(errors.InvalidRequest):
        await served.client.list_chunks(limit=limits.LIST_CHUNKS_MAX + 1)


async def test_a_container_over_the_limit_is_refused(served, key, container, monkeypatch):
    monkeypatch.setattr(limits, "CONTAINER_BYTES_MAX", len(container) - 1)
    with pytest.raises(errors.BodyTooLarge):
        await served.client.put(key, container)


async def test_what_does_not_fit_in_flight_is_refused_and_said(served, key, container, large):
    await served.client.put(key, large)
    served.running.service.admission._bytes_max = 3 * limits.STREAM_FRAME_BYTES
    with pytest.raises(errors.Overloaded):
        await served.client.put(key, large)
    if served.edge != "local":  # mapped chunks take no memory of requests
        assert isinstance(await served.client.get(key), Throttled)


async def test_a_daemon_that_ends_takes_nothing_more(served, key, container):
    await served.client.put(key, container)
    served.running.service.admission.drain()
    assert await served.client.get(key) == Throttled("daemon", 1.0)
    assert await served.client.exists([key]) == [False]
    with pytest.raises(errors.Overloaded):
        await served.client.put(key, container)
    assert (await served.client.health()).phase == "draining"


async def test_damage_is_a_miss_and_counted(served, key, large):
    """What lies on the disk is changed behind the daemon's back, and only there is it stored."""
    await served.client.put(key, large, ack=Ack.DISK)
    place = storage_key(served.running.authenticator.local.namespace.secret, key)
    for tier in served.running.service._store._roles.volatile:
        await tier.delete(place)
    assert (await served.client.info(key)).chunk.tiers == ("ssd",)
    needle = large[-64:]
    changed = 0
    for path in (served.data_dir / "chunks").rglob("*"):
        if path.is_file() and (place := path.read_bytes().find(needle)) >= 0:
            with path.open("r+b") as file:
                file.seek(place)
                file.write(bytes(len(needle)))
            changed += 1
    assert changed == 1
    assert await served.client.get(key) == Miss()
    assert {tier.name: tier.corrupt for tier in (await served.client.stats()).tiers}["ssd"] >= 1
    assert await served.client.exists([key]) == [False]


async def test_a_daemon_that_is_gone_is_unavailable(served, key, tmp_path):
    gone = "grpc://127.0.0.1:9" if served.edge == "grpc" else "127.0.0.1:9"
    async with AsyncKvloomClient(gone, local=False) as client:
        assert isinstance(await client.get(key), Unavailable)
        assert await client.exists([key]) == [False]
        with pytest.raises(errors.DaemonUnavailable):
            await client.health()
    blocking = KvloomClient(gone, local=False)
    assert isinstance(await asyncio.to_thread(blocking.get, key), Unavailable)
