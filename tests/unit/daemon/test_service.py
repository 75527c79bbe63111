"""The application core over real tiers, without any edge."""

import asyncio
import inspect
import os
from contextlib import aclosing

import pytest
from blake3 import blake3

from kvloom import errors, limits
from kvloom.clients import wire
from kvloom.clients.kv_events import EventsLost
from kvloom.clients.pool_wire import Held, PoolCounts, PoolIntroduction
from kvloom.codec.container import parse_header
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.daemon.admission import Admission
from kvloom.daemon.caller import ALL_SCOPES, Caller, Scope
from kvloom.daemon.events import EventHub
from kvloom.daemon.pools import RegisteredPool
from kvloom.daemon.service import Service
from kvloom.kvstore.key import ModelIdentity, chunk_refs, storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Throttled, Unavailable
from kvloom.kvstore.profiles import ProfileShelves
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack, RecordInfo
from kvloom.kvstore.tiered.lending import LentUses
from kvloom.kvstore.tiered.store import TieredStore

MIB = 1024**2
IDENTITY = ModelIdentity(b"f" * 32, b"l" * 32)
ME = Caller(derive_namespace(bytes(32), "default"), ALL_SCOPES)
OTHER = Caller(derive_namespace(bytes(32), "other"), ALL_SCOPES)


@pytest.fixture
async def store(tmp_path):
    store = TieredStore([MemoryTier(8 * MIB), SsdTier.open(tmp_path / "chunks", 16 * MIB)], clock_ms=lambda: 1000)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
async def service(store, tmp_path):
    shelves = ProfileShelves(tmp_path / "profiles", ME.namespace.owner)
    service = Service(store, shelves, Admission(inflight_bytes_max=MIB), dirty_bytes_max=MIB)
    service.open()
    return service


@pytest.fixture
def key():
    return os.urandom(32)


async def read(service, key, caller=ME, **asked):
    async with service.reading(caller, key, **asked) as chunk:
        return b"".join(chunk.parts)


async def test_what_is_put_can_be_read_and_forgotten(service, key, container_bytes):
    data = container_bytes([EXACT], content_key=key, layers=3)
    assert await service.put(ME, key, data, ack=Ack.DISK) is Ack.DISK
    assert await read(service, key) == data
    assert parse_header(await read(service, key, layers=range(1, 2))).layers == range(1, 2)
    assert await service.exists(ME, [key, os.urandom(32)]) == [True, False]
    assert await service.delete(ME, key)
    assert not await service.delete(ME, key)
    with pytest.raises(errors.NotFound):
        await read(service, key)


async def test_a_lossy_container_needs_its_profile_on_the_shelf(service, key, container_bytes):
    profile = b"a profile"
    digest = blake3(profile).digest()
    data = container_bytes(content_key=key, profile_digest=digest)
    with pytest.raises(errors.ProfileMismatch, match=digest.hex()[:16]):
        await service.put(ME, key, data, ack=Ack.MEMORY)
    await service.put_profile(ME, digest, profile)
    await service.put(ME, key, data, ack=Ack.MEMORY)
    assert parse_header(await read(service, key, level=ECONOMY)).levels == (DRAFT, ECONOMY)
    async with service.reading_profile(ME, digest) as found:
        assert found == profile
    assert service.stats(ME).profiles == 1


async def test_a_profile_known_before_a_restart_is_known_after_it(service, store, tmp_path, key, container_bytes):
    digest = blake3(b"p").digest()
    await service.put_profile(ME, digest, b"p")
    shelves = ProfileShelves(tmp_path / "profiles", ME.namespace.owner)
    again = Service(store, shelves, Admission(), dirty_bytes_max=1)
    again.open()
    await again.put(ME, key, container_bytes(content_key=key, profile_digest=digest), ack=Ack.MEMORY)


async def test_an_exact_container_needs_no_profile(service, key, container_bytes):
    await service.put(ME, key, container_bytes([EXACT], content_key=key, profile_digest=b"u" * 32), ack=Ack.MEMORY)


async def test_a_read_holds_its_bytes_against_the_budget_while_it_is_sent(service, key, container_bytes):
    data = container_bytes([EXACT], content_key=key, segment_bytes=2000)
    await service.put(ME, key, data, ack=Ack.MEMORY)
    async with service.reading(ME, key):
        assert service.stats(ME).bytes_inflight == len(data)
    assert service.stats(ME).bytes_inflight == 0
    with service.admission.reserve(MIB, "default"), pytest.raises(errors.Overloaded, match=str(MIB)):
        await read(service, key)


async def test_the_longest_prefix_of_tokens_and_of_keys_is_the_same(service, container_bytes):
    tokens = list(range(1000))
    refs = chunk_refs(IDENTITY, tokens, chunk_tokens=300)
    for ref in [refs[0], refs[1], refs[3]]:
        await service.put(ME, ref.key, container_bytes([EXACT], content_key=ref.key), ack=Ack.MEMORY)
    by_tokens = await service.longest_prefix(
        ME, wire.PrefixQuestion(identity=IDENTITY, tokens=tuple(tokens), chunk_tokens=300)
    )
    assert by_tokens == wire.PrefixCount(2, 600, tuple(ref.key.hex() for ref in refs[:2]))
    by_keys = await service.longest_prefix(ME, wire.PrefixQuestion(keys=tuple(ref.key.hex() for ref in refs)))
    assert by_keys == wire.PrefixCount(2)
    nothing = await service.longest_prefix(ME, wire.PrefixQuestion(identity=IDENTITY, tokens=()))
    assert nothing == wire.PrefixCount(0, 0, ())


@pytest.mark.parametrize(
    "question",
    [
        wire.PrefixQuestion(),
        wire.PrefixQuestion(identity=IDENTITY),
        wire.PrefixQuestion(tokens=(1,)),
        wire.PrefixQuestion(keys=(), identity=IDENTITY),
        wire.PrefixQuestion(keys=(), identity=IDENTITY, tokens=(1,)),
    ],
)
async def test_a_prefix_question_is_one_question(service, question):
    with pytest.raises(errors.InvalidRequest, match="either keys"):
        await service.longest_prefix(ME, question)


async def test_a_description_needs_no_segments(service, key, container_bytes):
    data = container_bytes([EXACT], content_key=key, tokens=7, first_position=70)
    await service.put(ME, key, data, ack=Ack.DISK)
    detail = await service.describe(ME, key)
    assert detail.chunk == wire.ChunkEntry(key, len(data), 1000, ("memory", "ssd"))
    assert (detail.tokens, detail.first_position, detail.profile_digest) == (7, 70, None)
    assert [item.level for item in detail.levels] == [EXACT]


async def test_lists_are_bounded(service, container_bytes):
    keys = [os.urandom(32) for _ in range(5)]
    for name in keys:
        await service.put(ME, name, container_bytes([EXACT], content_key=name), ack=Ack.DISK)
    everything = await service.list_chunks(ME, limit=5, prefix="")
    assert ({item.key for item in everything.chunks}, everything.truncated) == (set(keys), False)
    some = await service.list_chunks(ME, limit=4, prefix="")
    assert (len(some.chunks), some.truncated) == (4, True)
    for limit in (0, limits.LIST_CHUNKS_MAX + 1):
        with pytest.raises(errors.InvalidRequest, match=str(limit)):
            await service.list_chunks(ME, limit=limit, prefix="")


async def test_tenants_do_not_see_each_other(service, key, container_bytes):
    data = container_bytes([EXACT], content_key=key)
    await service.put(ME, key, data, ack=Ack.DISK)
    assert await service.exists(OTHER, [key]) == [False]
    assert await service.match_prefix(OTHER, [key]) == 0
    assert (await service.list_chunks(OTHER, limit=10, prefix="")).chunks == ()
    assert not await service.delete(OTHER, key)
    assert await service.delete_namespace(OTHER) == 0
    assert service.lend(OTHER, key) is None
    assert (await service.pin(OTHER, [key], lease_seconds=5)).pinned == (False,)
    with pytest.raises(errors.NotFound):
        await read(service, key, OTHER)
    with pytest.raises(errors.NotFound):
        await service.describe(OTHER, key)
    assert await read(service, key) == data


async def test_a_lease_of_another_tenant_cannot_be_released(service, key, container_bytes):
    await service.put(ME, key, container_bytes([EXACT], content_key=key), ack=Ack.DISK)
    lease = (await service.pin(ME, [key], lease_seconds=30)).lease
    assert not service.release(OTHER, lease)
    assert service.release(ME, lease)


async def test_profiles_of_tenants_are_apart(service, key, container_bytes):
    digest = blake3(b"p").digest()
    await service.put_profile(ME, digest, b"p")
    with pytest.raises(errors.NotFound):
        async with service.reading_profile(OTHER, digest):
            pass
    data = container_bytes(content_key=key, profile_digest=digest)
    with pytest.raises(errors.ProfileMismatch, match="among the 0 profiles"):
        await service.put(OTHER, key, data, ack=Ack.MEMORY)
    await service.put(ME, key, data, ack=Ack.MEMORY)


async def test_a_tenant_sees_its_own_figures_and_an_operator_everybodys(service, key, container_bytes):
    await service.put(ME, key, container_bytes([EXACT], content_key=key), ack=Ack.MEMORY)
    tenant = Caller(OTHER.namespace, frozenset({Scope.READ}))
    assert (service.tenant(tenant).namespace, service.tenant(tenant).puts) == ("other", 0)
    with pytest.raises(errors.Forbidden, match="needs scope admin, the key has read"):
        service.stats(tenant)
    assert [item.namespace for item in service.stats(OTHER).tenants] == ["other", "default"]


async def test_events_come_to_their_own_tenant(store, tmp_path):
    hub = EventHub()
    service = Service(store, ProfileShelves(tmp_path, ME.namespace.owner), Admission(), dirty_bytes_max=1, hub=hub)
    async with aclosing(service.events(ME)) as mine, aclosing(service.events(OTHER, resumed=True)) as theirs:
        assert await anext(theirs) == EventsLost(None)
        waiting = asyncio.ensure_future(anext(mine))
        await asyncio.sleep(0)
        place = storage_key(ME.namespace.secret, b"k" * 32)
        hub.note_stored("memory", RecordInfo(place, b"k" * 32, 5, 1, ME.namespace.owner))
        assert (await waiting).block_hashes == (b"k" * 32,)
        hub.close()
        assert [event async for event in mine] == [event async for event in theirs] == []
    assert hub.subscribers == 0


async def test_the_slow_reads_of_one_tenant_leave_places_for_the_others(service, store, key, container_bytes):
    """Everything that ``OTHER`` reads hangs, as a disk or a network store may."""
    await service.put(ME, key, container_bytes([EXACT], content_key=key), ack=Ack.MEMORY)
    reading, hang = store.get, asyncio.Event()

    async def get(namespace, wanted, **asked):
        if namespace == OTHER.namespace:
            await hang.wait()
        return await reading(namespace, wanted, **asked)

    store.get = get
    slow = [asyncio.create_task(read(service, key, OTHER)) for _ in range(4 * limits.STORE_READS_MAX)]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        for _ in range(20):
            await read(service, key)
    hang.set()
    outcomes = await asyncio.gather(*slow, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {errors.NotFound}


def methods_with_a_caller():
    for name, method in inspect.getmembers(Service, inspect.isfunction):
        if "caller" in inspect.signature(method).parameters and name not in ("entering", "reserving"):
            yield name


@pytest.mark.parametrize("name", sorted(methods_with_a_caller()))
async def test_every_method_refuses_a_caller_without_its_scope(service, key, container_bytes, name):
    """Exactly one scope opens a method, and without any it does nothing."""
    data = container_bytes([EXACT], content_key=key)
    values = {"key": key, "keys": [key], "payload": data, "ack": Ack.MEMORY, "digest": key, "data": b"", "limit": 1}
    values |= {"question": wire.PrefixQuestion(keys=()), "lease_seconds": 5, "lease": 1, "finished": True, "prefix": ""}
    about = PoolIntroduction("host", 1, 1)
    values |= {"about": about, "pool": RegisteredPool(ME.namespace.owner, about), "held": Held(PoolCounts(), [key])}
    values |= {"uses": [LentUses(key, 1, 1)]}
    method = getattr(service, name)
    wanted = inspect.signature(method).parameters
    given = {item: values[item] for item in wanted if item in values}

    async def call(scopes):
        result = method(Caller(ME.namespace, frozenset(scopes)), **given)
        if inspect.isawaitable(result):
            await result
        elif hasattr(result, "__aenter__"):
            async with result:
                pass

    opened = []
    for scope in Scope:
        try:
            await call([scope])
            opened.append(scope)
        except errors.Forbidden as error:
            assert f"the key has {scope}" in str(error)  # noqa: PT017
        except errors.KvloomError:
            opened.append(scope)
    assert len(opened) == 1
    with pytest.raises(errors.Forbidden, match=f"needs scope {opened[0]}, the key has none"):
        await call([])


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Miss(), errors.NotFound),
        (Corrupt("ssd", "a bit flipped"), errors.NotFound),
        (Throttled("ssd", 2.0), errors.Overloaded),
        (Unavailable("ssd", "no such device"), errors.StorageUnavailable),
    ],
)
async def test_an_outcome_that_is_no_hit_is_the_error_an_edge_answers_with(service, key, monkeypatch, outcome, error):
    async def answer(*_, **__):
        return outcome

    monkeypatch.setattr(service._store, "get", answer)
    with pytest.raises(error):
        await read(service, key)


async def test_stats_count_what_happened(service, key, container_bytes):
    data = container_bytes([EXACT], content_key=key)
    await service.put(ME, key, data, ack=Ack.DISK)
    await read(service, key)
    with pytest.raises(errors.NotFound):
        await read(service, os.urandom(32))
    stats = service.stats(ME)
    assert (stats.hits, stats.misses, stats.puts, stats.put_bytes) == (1, 1, 1, len(data))
    assert [(tier.name, tier.records, tier.durable) for tier in stats.tiers] == [("memory", 1, False), ("ssd", 1, True)]
    assert isinstance(await service._store.get(ME.namespace, key), Hit)


async def test_a_chunk_put_for_a_time_says_until_when(service, key, container_bytes):
    await service.put(ME, key, container_bytes([EXACT], content_key=key), ack=Ack.DISK, ttl_seconds=60)
    assert (await service.describe(ME, key)).chunk.expires_at_ms == 61_000
    assert (await service.list_chunks(ME, limit=1, prefix="")).chunks[0].expires_at_ms == 61_000
    other = os.urandom(32)
    await service.put(ME, other, container_bytes([EXACT], content_key=other), ack=Ack.DISK)
    assert (await service.describe(ME, other)).chunk.expires_at_ms is None
    with pytest.raises(errors.InvalidRequest, match="time to live"):
        await service.put(ME, key, container_bytes([EXACT], content_key=key), ack=Ack.DISK, ttl_seconds=0)


async def test_a_lease_is_counted_and_can_be_given_back(service, key, container_bytes):
    data = container_bytes([EXACT], content_key=key)
    await service.put(ME, key, data, ack=Ack.DISK)
    pinned = await service.pin(ME, [key, os.urandom(32)], lease_seconds=30)
    assert (pinned.pinned, pinned.until_ms) == ((True, False), 31_000)
    stats = service.stats(ME)
    assert (stats.leases, stats.pinned_bytes, stats.tenants[0].pinned_bytes) == (1, len(data), len(data))
    assert service.release(ME, pinned.lease)
    assert not service.release(ME, pinned.lease)
    assert (service.stats(ME).leases, service.stats(ME).pinned_bytes) == (0, 0)


async def test_many_chunks_or_all_are_forgotten(service, container_bytes):
    keys = [os.urandom(32) for _ in range(5)]
    for name in keys:
        await service.put(ME, name, container_bytes([EXACT], content_key=name), ack=Ack.DISK)
    assert await service.delete_many(ME, [*keys[:2], os.urandom(32)]) == [True, True, False]
    assert await service.delete_namespace(ME) == 6  # three chunks on two tiers
    assert await service.exists(ME, keys) == [False] * 5


async def test_prefetch_and_hints_are_passed_on(service, key, container_bytes):
    await service.put(ME, key, container_bytes([EXACT], content_key=key), ack=Ack.DISK)
    assert await service.prefetch(ME, [key, os.urandom(32)]) == 2
    service.hint(ME, [key], finished=True)
    assert await service.exists(ME, [key]) == [True]


async def test_stats_tell_of_the_tenant_and_of_what_waits(service, key, container_bytes):
    data = container_bytes([EXACT], content_key=key)
    await service.put(ME, key, data, ack=Ack.MEMORY)
    await service._store.flush()
    await read(service, key)
    stats = service.stats(ME)
    assert [(stage.tier, stage.written, stage.dirty_bytes) for stage in stats.stages] == [("ssd", 1, 0)]
    (tenant,) = stats.tenants
    assert (tenant.namespace, tenant.puts, tenant.hits, tenant.hit_bytes) == ("default", 1, 1, len(data))
    assert [(tier.tier, tier.records) for tier in tenant.tiers] == [("memory", 1), ("ssd", 1)]
    assert wire.load(wire.DaemonStats, wire.dump(stats)) == stats


async def test_a_tenants_pools_are_its_own(service, key):
    pool = service.register_pool(ME, PoolIntroduction("cuda:0", 100, 5))
    service.update_pool(ME, pool, Held(PoolCounts(chunks=1), [key], used=[key]))
    assert [match.matched for match in service.resident(ME, [key]).pools] == [1]
    assert service.resident(OTHER, [key]).pools == ()
    assert [report.pid for report in service.stats(OTHER).pools] == [5]
    service.remove_pool(pool)
    assert service.resident(ME, [key]).pools == ()
