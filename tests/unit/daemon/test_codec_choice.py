"""A namespace keeps the lossy levels of one codec: which one is configured, told to clients, and enforced."""

import os

import pytest
from blake3 import blake3

from kvloom import errors
from kvloom.clients import wire
from kvloom.codec.container import ContainerWriter, generic_digest, parse_header
from kvloom.codec.layout import Kind, Layout
from kvloom.codec.level import DRAFT, EXACT, FINE, STANDARD, LossyCodec
from kvloom.daemon.admission import Admission
from kvloom.daemon.caller import ALL_SCOPES, Caller
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.machine import Machine
from kvloom.daemon.service import Service
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.profiles import ProfileShelves
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore

MIB = 1024**2
LAYOUT = Layout.uniform(layers=2, kv_heads=1, head_dim=4)
PROFILE = b"a profile of either codec: the daemon reads none"
MACHINE = Machine(
    memory_available_bytes=2**33, memory_total_bytes=2**34, disk_free_bytes=2**38, own_disk_bytes=0, open_files_max=4096
)


def container(key: bytes, mode: LossyCodec, *levels) -> bytes:
    lossy = [level for level in levels if level != EXACT]
    blocks = bool(lossy) and mode is LossyCodec.KVLOOM
    writer = ContainerWriter(
        LAYOUT,
        tokens=3,
        first_position=0,
        block_layers=2 if blocks else 0,
        content_key=key,
        profile_digest=blake3(PROFILE).digest(),
        codec=mode,
    )
    for level in levels:
        places = [(0, None)] if blocks and level != EXACT else [(layer, kind) for layer in range(2) for kind in Kind]
        for layer, kind in places:
            writer.put(level, layer, kind, b"bytes")
    return writer.commit()


@pytest.fixture
def key():
    return os.urandom(32)


@pytest.fixture
async def opened(tmp_path):
    store = TieredStore([MemoryTier(8 * MIB)], clock_ms=lambda: 1000)
    await store.start()

    async def open_service(mode: LossyCodec) -> tuple[Service, Caller]:
        """The same chunks, served as a daemon configured for ``mode`` would, and who asks for them."""
        me = Caller(derive_namespace(bytes(32), "default", codec=mode), ALL_SCOPES)
        shelves = ProfileShelves(tmp_path / "profiles", me.namespace.owner)
        service = Service(store, shelves, Admission(inflight_bytes_max=MIB), dirty_bytes_max=MIB)
        service.open()
        await service.put_profile(me, blake3(PROFILE).digest(), PROFILE)
        return service, me

    yield open_service
    await store.close()


@pytest.mark.parametrize("mode", list(LossyCodec))
async def test_lossy_levels_of_the_other_codec_are_refused(opened, key, mode):
    other = next(item for item in LossyCodec if item is not mode)
    service, me = await opened(mode)
    with pytest.raises(errors.CodecMismatch, match=f"codec {other}, namespace default keeps those of {mode}") as caught:
        await service.put(me, key, container(key, other, DRAFT, EXACT), ack=Ack.MEMORY)
    assert caught.value.http_status == 409
    assert not (await service.exists(me, [key]))[0]
    await service.put(me, key, container(key, mode, DRAFT), ack=Ack.MEMORY)
    await service.put(me, key, container(key, LossyCodec.KVLOOM, EXACT), ack=Ack.MEMORY)
    detail = await service.describe(me, key)
    assert detail.codec is mode
    assert [item.level for item in detail.levels] == [DRAFT, EXACT]


async def test_exact_alone_has_no_codec(opened, key):
    service, me = await opened(LossyCodec.CACHEGEN)
    await service.put(me, key, container(key, LossyCodec.KVLOOM, EXACT), ack=Ack.MEMORY)
    assert (await service.describe(me, key)).codec is None


async def test_a_level_is_read_alone_and_others_are_added(opened, key):
    service, me = await opened(LossyCodec.CACHEGEN)
    for level in (FINE, DRAFT):
        await service.put(me, key, container(key, LossyCodec.CACHEGEN, level), ack=Ack.MEMORY)
    async with service.reading(me, key, level=FINE, layers=range(1, 2)) as chunk:
        header = parse_header(b"".join(chunk.parts))
    assert header.levels == (FINE,)
    assert header.layers == range(1, 2)
    assert header.codec is LossyCodec.CACHEGEN
    with pytest.raises(errors.LevelNotStored, match="stored: draft, fine"):
        async with service.reading(me, key, level=STANDARD):
            pass


async def test_what_is_stored_stays_readable_under_another_configuration(opened, key):
    data = container(key, LossyCodec.CACHEGEN, FINE)
    service, me = await opened(LossyCodec.CACHEGEN)
    await service.put(me, key, data, ack=Ack.MEMORY)
    later, me = await opened(LossyCodec.KVLOOM)
    async with later.reading(me, key) as chunk:
        assert b"".join(chunk.parts) == data


async def test_clients_are_told(opened):
    for mode in LossyCodec:
        service, me = await opened(mode)
        stats = service.stats(me)
        assert stats.codec is mode
        assert wire.decode(wire.DaemonStats, wire.encode(stats)) == stats


def test_the_codec_is_configured_and_kvloom_unless_said():
    assert resolve_config(ConfigText(), MACHINE).codec is LossyCodec.KVLOOM
    assert resolve_config(ConfigText(codec="cachegen"), MACHINE).codec is LossyCodec.CACHEGEN
    said = ConfigText.from_environ({"KVLOOM_CODEC": "cachegen"})
    assert resolve_config(said, MACHINE).codec is LossyCodec.CACHEGEN
    assert resolve_config(ConfigText(codec="kvloom").over(said), MACHINE).codec is LossyCodec.KVLOOM
    with pytest.raises(errors.ConfigError, match="codec 'zip' is not one of kvloom, cachegen"):
        resolve_config(ConfigText(codec="zip"), MACHINE)


def test_the_codec_does_not_change_whose_chunks_they_are():
    ours, theirs = (derive_namespace(bytes(32), "default", codec=mode) for mode in LossyCodec)
    assert ours.secret == theirs.secret
    assert Namespace("default", ours.secret).codec is LossyCodec.KVLOOM


async def test_the_generic_profile_needs_no_shelf(opened, key):
    service, me = await opened(LossyCodec.KVLOOM)
    for digest, taken in ((generic_digest(LAYOUT), True), (os.urandom(32), False)):
        writer = ContainerWriter(
            LAYOUT, tokens=3, first_position=0, block_layers=1, content_key=key, profile_digest=digest
        )
        for layer in range(2):
            writer.put(DRAFT, layer, None, b"bytes")
        if taken:
            assert await service.put(me, key, writer.commit(), ack=Ack.MEMORY) is Ack.MEMORY
        else:
            with pytest.raises(errors.ProfileMismatch, match="put it first"):
                await service.put(me, key, writer.commit(), ack=Ack.MEMORY)
