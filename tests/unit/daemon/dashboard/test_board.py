"""What the page is told, over a real store."""

import os

import pytest
from blake3 import blake3

from kvloom.clients.plan_wire import EngineReport, PlanOutcome, PlanQuestion
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.daemon.admission import Admission
from kvloom.daemon.caller import ALL_SCOPES, Caller, Scope
from kvloom.daemon.dashboard.board import Board
from kvloom.daemon.dashboard.records import TierKind
from kvloom.daemon.journal.slow_requests import note_tenant
from kvloom.daemon.service import Service
from kvloom.errors import Forbidden, NotFound
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.profiles import ProfileShelves
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore

MIB = 1024**2
ME = Caller(derive_namespace(bytes(32), "default"), ALL_SCOPES)
READER = Caller(derive_namespace(bytes(32), "acme"), frozenset({Scope.READ, Scope.WRITE}))


@pytest.fixture
async def service(tmp_path):
    store = TieredStore([MemoryTier(8 * MIB)], clock_ms=lambda: 1000)
    await store.start()
    shelves = ProfileShelves(tmp_path / "profiles", ME.namespace.owner)
    service = Service(store, shelves, Admission(), dirty_bytes_max=MIB)
    service.open()
    yield service
    await store.close()


@pytest.fixture
def board(service):
    return Board(service, now_ms=lambda: 61_000)


def sample(service):
    service.journal.samples.take(service.stats(ME))


async def test_an_operator_sees_the_daemon_and_a_reader_its_namespace(service, board, container_bytes):
    sample(service)
    key = os.urandom(32)
    await service.put(READER, key, container_bytes([EXACT], content_key=key), ack=Ack.MEMORY)
    sample(service)
    everything, own = board.state(ME, 0), board.state(READER, 0)
    assert [(tier.name, tier.kind, tier.chunks) for tier in everything.tiers] == [("memory", TierKind.MEMORY, 1)]
    assert everything.load.bytes_inflight_max > 0
    assert everything.network == ()
    assert {row.name for row in everything.namespaces} == {"default", "acme"}
    assert (own.load, own.network, own.tenant) == (None, None, "acme")
    assert [(tier.name, tier.chunks, tier.limit_bytes, tier.hit_share) for tier in own.tiers] == [
        ("memory", 1, None, None)
    ]
    assert [row.name for row in own.namespaces] == ["acme"]
    assert (everything.history.next, board.state(ME, 2).history.uptime_seconds) == (2, ())


async def test_without_read_and_admin_there_is_nothing_to_see(service, board):
    with pytest.raises(Forbidden):
        board.state(Caller(ME.namespace, frozenset({Scope.WRITE})), 0)


async def test_slow_requests_are_the_callers_own_but_for_an_operator(service, board):
    for tenant in ("acme", "other"):
        work = service.journal.requests.begin()
        note_tenant(tenant)
        service.journal.requests.finish(work, tenant, "http", "get_chunk", "200", 0.5)
    assert {row.request_id for row in board.state(ME, 0).slowest} == {"acme", "other"}
    assert {row.request_id for row in board.state(READER, 0).slowest} == {"acme"}


async def test_a_chunk_is_shown_with_all_its_bytes_by_level_and_layer(service, board, container_bytes):
    key = os.urandom(32)
    digest = blake3(b"profile").digest()
    await service.put_profile(ME, digest, b"profile")
    data = container_bytes(
        [DRAFT, ECONOMY, EXACT], content_key=key, layers=5, block_layers=2, profile_digest=digest, segment_bytes=3000
    )
    await service.put(ME, key, data, ack=Ack.MEMORY)
    shown = await board.chunk(ME, key)
    assert [row.level for row in shown.levels] == [DRAFT, ECONOMY, EXACT]
    assert [(cell.first_layer, cell.layers) for cell in shown.levels[0].cells] == [(0, 2), (2, 2), (4, 1)]
    assert [(cell.first_layer, cell.layers) for cell in shown.levels[2].cells] == [(layer, 1) for layer in range(5)]
    sizes = {level.level: level.payload_bytes for level in shown.detail.levels}
    assert {row.level: sum(cell.payload_bytes for cell in row.cells) for row in shown.levels} == sizes
    assert shown.detail.chunk.tiers == ("memory",)
    with pytest.raises(NotFound):
        await board.chunk(READER, key)


async def test_what_came_of_plans_is_shown_with_what_it_cost(service, board):
    sample(service)
    assert board.state(ME, 0).planner is None
    plan = await service.planning.plan(ME, PlanQuestion("engine", keys=(os.urandom(32).hex(),)))
    late = EngineReport("engine", outcomes=(PlanOutcome(plan.plan, plan.recompute_seconds + 2.0),))
    assert service.planning.report(ME, late).accepted == 1
    sample(service)
    shown = board.state(ME, 0).planner
    assert (shown.plans, shown.outcomes, shown.slower) == (1, 1, 1)
    assert shown.regret_seconds == pytest.approx(2.0)
    assert [item.chunks for item in shown.decisions] == [1]
