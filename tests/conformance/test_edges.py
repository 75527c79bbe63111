"""One suite against every edge of a real daemon: HTTP, gRPC and the Unix socket come to the same outcomes."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from kvloom import errors, limits
from kvloom.clients import AsyncKvloomClient, ChunkToPut, KvloomClient, RetryPolicy
from kvloom.clients.discovery import DATA_DIR_VARIABLE, DaemonNote
from kvloom.clients.patience import Attempts
from kvloom.clients.plan_wire import (
    ChunkAction,
    EngineReport,
    PlanGoal,
    PlanOutcome,
    PlanQuestion,
    PrefillSample,
    QualitySample,
    Reason,
)
from kvloom.codec.container import Container
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, FINE
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import RunningDaemon, open_daemon
from kvloom.kvstore.key import ModelIdentity, chunk_refs, storage_key
from kvloom.kvstore.outcome import Hit, Miss, Outcome, Throttled, Unavailable
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


@pytest.mark.parametrize("by", ["asyncio", "blocking"])
async def test_what_is_damaged_in_memory_is_found_by_who_reads_it_and_comes_from_the_disk(served, key, large, by):
    """The daemon leaves it to its client to verify what lies in memory, and is asked again where that does not hold."""
    await served.client.put(key, large, ack=Ack.DISK)
    (memory,) = served.running.service._store._roles.volatile
    lease = memory.lease(storage_key(served.running.authenticator.local.namespace.secret, key))
    segment, place = lease.segment, lease.offset + len(large) - 9
    lease.release()
    with segment.writable(place, 1) as byte:
        byte[0] ^= 4

    def blocking() -> Outcome[Container]:
        with served.blocking() as client:
            return client.get(key)

    found = await (asyncio.to_thread(blocking) if by == "blocking" else served.client.get(key))
    assert isinstance(found, Hit)
    assert (found.tier, bytes(found.value.data)) == ("ssd", bytes(large))
    assert {tier.name: tier.corrupt for tier in (await served.client.stats()).tiers}["memory"] == 1


async def test_a_daemon_that_is_gone_is_unavailable(served, key, tmp_path):
    gone = "grpc://127.0.0.1:9" if served.edge == "grpc" else "127.0.0.1:9"
    async with AsyncKvloomClient(gone, local=False) as client:
        assert isinstance(await client.get(key), Unavailable)
        assert await client.exists([key]) == [False]
        with pytest.raises(errors.DaemonUnavailable):
            await client.health()
    blocking = KvloomClient(gone, local=False)
    assert isinstance(await asyncio.to_thread(blocking.get, key), Unavailable)


async def test_many_are_put_and_each_is_answered(served, container_bytes):
    keys = [os.urandom(32) for _ in range(5)]
    sizes = (100, 3000, 900_000, 10, 50_000)
    chunks = [
        ChunkToPut(name, container_bytes((EXACT,), content_key=name, segment_bytes=size, seed=size))
        for name, size in zip(keys, sizes, strict=True)
    ]
    chunks[1] = replace(chunks[1], ttl_seconds=3600, parent=keys[0])
    wrong = replace(chunks[3], container=chunks[0].container)
    for ack in Ack:
        results = await served.client.put_many([*chunks[:3], wrong, chunks[4]], ack=ack)
        assert [(item.key, item.ack) for item in results] == [(name, None if name == keys[3] else ack) for name in keys]
        assert isinstance(results[3].error, errors.KeyMismatch)
    found = await served.client.get_many(keys)
    assert [isinstance(item, Hit) for item in found] == [True, True, True, False, True]
    assert bytes(found[2].value.data) == chunks[2].container
    entry = (await served.client.info(keys[1])).chunk
    assert 3_500_000 < entry.expires_at_ms - entry.stored_at_ms <= 3_600_000
    assert await served.client.put_many([]) == []
    assert [item.ack for item in await asyncio.to_thread(served.blocking().put_many, chunks)] == [Ack.MEMORY] * 5


async def test_a_batch_is_cut_where_it_would_be_too_long(served, container_bytes, monkeypatch):
    monkeypatch.setattr(limits, "CLIENT_BATCH_BYTES_MAX", 3000)
    monkeypatch.setattr(limits, "CLIENT_BATCH_CHUNKS_MAX", 2)
    names = [os.urandom(32) for _ in range(7)]
    chunks = [ChunkToPut(name, container_bytes((EXACT,), content_key=name, segment_bytes=700)) for name in names]
    assert [item.key for item in await served.client.put_many(chunks)] == names
    assert await served.client.exists(names) == [True] * 7


async def test_what_no_daemon_would_take_is_raised_before_anything_is_sent(served, key, container):
    good = ChunkToPut(key, container)
    for wrong, error in (
        (ChunkToPut(b"short", container), errors.InvalidKey),
        (ChunkToPut(key, container, parent=b"short"), errors.InvalidKey),
        (ChunkToPut(key, container, ttl_seconds=-1.0), errors.InvalidRequest),
        (ChunkToPut(key, bytearray(limits.CONTAINER_BYTES_MAX + 1)), errors.BodyTooLarge),
    ):
        with pytest.raises(error):
            await served.client.put_many([good, wrong])
    assert await served.client.exists([key]) == [False]


async def test_many_are_deleted(served, key, container):
    absent = os.urandom(32)
    await served.client.put(key, container)
    assert await served.client.delete_many([absent, key]) == [False, True]
    assert await served.client.delete_many([key]) == [False]
    assert await served.client.delete_many([]) == []


async def test_a_namespace_is_emptied(served, key, container, large):
    await served.client.put(key, container, ack=Ack.DISK)
    assert await served.client.delete_namespace() >= 1
    assert await served.client.exists([key]) == [False]


async def test_a_pin_holds_until_its_block_is_left(served, key, container):
    absent = os.urandom(32)
    await served.client.put(key, container)
    async with await served.client.pin([key, absent], lease_seconds=30) as pin:
        assert pin.pinned == (True, False)
        assert (await served.client.tenant()).pinned_bytes >= len(container)
    assert (await served.client.tenant()).pinned_bytes == 0
    assert await pin.release() is False

    def blocking() -> tuple[int, int]:
        with served.blocking() as client:
            with client.pin([key]) as held:
                inside = client.tenant().pinned_bytes
            assert client.release(held.lease) is False
            return inside, client.tenant().pinned_bytes

    inside, after = await asyncio.to_thread(blocking)
    assert inside >= len(container)
    assert after == 0


async def test_what_is_wrong_with_a_pin_is_said_alike(served, key):
    for seconds in (0, -1, limits.LEASE_SECONDS_MAX + 1):
        with pytest.raises(errors.InvalidRequest):
            await served.client.pin([key], lease_seconds=seconds)
    with pytest.raises(errors.InvalidKey):
        await served.client.pin([b"short"])
    with pytest.raises(errors.TooManyItems):
        await served.client.pin([key] * (limits.KEYS_PER_REQUEST_MAX + 1))
    with pytest.raises(errors.InvalidRequest):
        await served.client.release(b"short")
    assert await served.client.release(os.urandom(16)) is False


async def test_advice_is_taken(served, key, container):
    await served.client.put(key, container)
    assert await served.client.hint([key]) == 1
    assert await served.client.hint([key] * (limits.KEYS_PER_REQUEST_MAX + 1), finished=False) == 10_001
    assert await served.client.prefetch([key]) == 1
    assert await served.client.prefetch([]) == 0


async def test_tenants_are_told_apart_and_their_figures_are_the_same_everywhere(served, key, container):
    await served.client.put(key, container)
    own = await served.client.tenant()
    assert own.puts == 1
    assert [item.namespace for item in await served.client.namespaces()] == [own.namespace]


async def test_advice_and_many_puts_to_a_daemon_that_is_gone_come_to_an_end(served, key, container):
    gone = "grpc://127.0.0.1:9" if served.edge == "grpc" else "127.0.0.1:9"
    async with AsyncKvloomClient(gone, local=False) as client:
        assert await client.hint([key]) == 0
        assert await client.prefetch([key]) == 0
        results = await client.put_many([ChunkToPut(key, container)] * 3)
        assert [type(item.error) for item in results] == [errors.DaemonUnavailable] * 3
        with pytest.raises(errors.DaemonUnavailable):
            await client.pin([key])


async def test_what_was_refused_for_now_is_tried_again(served, key, container):
    """The daemon has no room until somebody waits; a client with one try gets the refusal."""
    admission = served.running.service.admission
    once = AsyncKvloomClient(served.address, local=served.edge.startswith("local"), retries=RetryPolicy(tries_max=1))
    room, admission._bytes_max = admission._bytes_max, 1
    async with once:
        with pytest.raises(errors.Overloaded):
            await once.put(key, container)
    trying = asyncio.create_task(served.client.put(key, container))
    refused = asyncio.get_running_loop().create_future()
    wait_after = Attempts.wait_after

    def noting(self, error):
        wait = wait_after(self, error)
        if not refused.done():
            refused.set_result(wait)
        return wait

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempts, "wait_after", noting)
        assert await refused is not None
        admission._bytes_max = room
        assert (await trying).ack is Ack.MEMORY


async def test_hedged_reads_come_to_the_same(served, key, container):
    await served.client.put(key, container)
    options = {"local": served.edge.startswith("local"), "hedge_seconds": 1e-6}
    async with AsyncKvloomClient(served.address, **options) as client:
        for _ in range(20):
            assert bytes((await client.get(key)).value.data) == container
        assert await client.exists([key]) == [True]

    def blocking() -> list[bytes]:
        with KvloomClient(served.address, **options) as client:
            return [bytes(item.value.data) for item in client.get_many([key] * 20)]

    assert await asyncio.to_thread(blocking) == [container] * 20


async def test_a_scrub_reads_all_that_is_on_disk(served, key, container):
    await served.client.put(key, container, ack=Ack.DISK)
    assert (await served.client.scrub_report()).number == 0
    begun = await served.client.start_scrub()
    assert begun.number == 1
    report = begun
    while report.running:
        report = await served.client.scrub_report()
    assert (report.number, report.records, report.damaged, report.failure) == (1, 1, 0, None)
    assert report.size_bytes >= len(container)

    def blocking() -> int:
        with served.blocking() as client:
            client.start_scrub()
            return client.scrub_report().number

    assert await asyncio.to_thread(blocking) == 2


async def test_a_plan_says_what_to_load_and_learns_from_what_came_of_it(served, container_bytes):
    """An engine so slow that whatever is stored is loaded; a last chunk that nobody has."""
    keys = [os.urandom(32) for _ in range(3)]
    for key in keys[:2]:
        await served.client.put(key, container_bytes((EXACT,), content_key=key))
    prefills = tuple(PrefillSample(tokens, 0, tokens * 1.0) for tokens in range(100, 1000, 100))
    assert await served.client.report(EngineReport("slow", prefills=prefills)) == len(prefills)
    question = PlanQuestion("slow", keys=tuple(key.hex() for key in keys), prompt_tokens=700, prefetch=True)
    plan = await served.client.plan(question)
    assert [item.action for item in plan.decisions] == [ChunkAction.LOAD, ChunkAction.LOAD, ChunkAction.RECOMPUTE]
    assert (plan.decisions[0].link, plan.decisions[0].level) == ("memory", EXACT)
    assert (sorted(plan.load_order), plan.meeting, plan.prefetching) == ([0, 1], 0, 2)
    assert plan.decisions[2].reason is Reason.NOT_OFFERED
    assert 0 < plan.ttft_seconds < plan.recompute_seconds
    outcome = EngineReport("slow", outcomes=(PlanOutcome(plan.plan, plan.ttft_seconds), PlanOutcome(b"none", 1.0)))
    assert await asyncio.to_thread(served.blocking().report, outcome) == 1
    assert len((await asyncio.to_thread(served.blocking().plan, question)).decisions) == 3
    planner = (await served.client.stats()).planner
    assert (planner.plans, planner.outcomes, planner.samples, planner.ignored) == (2, 1, len(prefills) + 1, 1)
    assert {(item.action, item.reason, item.chunks) for item in planner.decisions} == {
        (ChunkAction.LOAD, Reason.LOAD_FASTER, 4),
        (ChunkAction.RECOMPUTE, Reason.NOT_OFFERED, 2),
    }
    assert [item.real_seconds for item in planner.recent] == [None, plan.ttft_seconds]


async def test_answers_that_were_checked_are_counted(served):
    good, impossible = QualitySample(0.25, True, 0.05, 0.5), QualitySample(-1.0, False, 0.05, 0.5)
    assert await served.client.report(EngineReport("rag", qualities=(good, impossible, good))) == 2
    quality = (await served.client.stats()).quality
    assert (quality.checked, quality.agreed, quality.kl_sum, quality.alert) == (2, 2, 0.5, False)
    assert (quality.recent_kl, quality.recent_agreement) == (0.25, 1.0)


async def test_what_is_wrong_with_a_plan_is_said_alike_and_without_a_daemon_there_is_none(served, key):
    for wrong, error in (
        (PlanQuestion("engine"), errors.InvalidRequest),
        (PlanQuestion("", keys=(key.hex(),)), errors.InvalidRequest),
        (PlanQuestion("engine", keys=(key.hex(),), goal=PlanGoal.BEST_WITHIN), errors.InvalidRequest),
        (PlanQuestion("engine", keys=(key.hex(),), done=(1,)), errors.InvalidRequest),
    ):
        with pytest.raises(error):
            await served.client.plan(wrong)
    served.running.service.admission.drain()
    assert await served.client.plan(PlanQuestion("engine", keys=(key.hex(),))) is None
    assert await served.client.report(EngineReport("engine", prefills=(PrefillSample(100, 0, 1.0),))) == 0


async def test_the_daemon_measures_its_own_tiers(served, key, large):
    await served.client.put(key, large, ack=Ack.DISK)
    for tier in served.running.service._store._roles.volatile:
        async for info in tier.scan():
            await tier.delete(info.storage_key)
    assert isinstance(await served.client.get(key), Hit)
    measured = {link.tier: link for link in (await served.client.stats()).planner.links}
    assert measured["ssd"].samples == 1
    assert measured["ssd"].bytes_per_second > 0
