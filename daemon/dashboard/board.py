"""What the dashboard shows to a caller, made of the daemon's reports and its journal.

Scope ``admin`` sees the whole daemon, scope ``read`` its own tenant: what ``GET /stats`` and ``GET /tenant`` would tell
them, and no more. Chunks are the caller's own in any case.
"""

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

from ...clients import plan_wire, tenancy, wire
from ...codec.container import ContainerHeader
from ...kvstore.key import ContentKey
from ..caller import Caller, Scope
from ..journal.slow_requests import SlowRequest
from ..rates import TierRates, rates_between
from ..service import Service
from .records import (
    ChunkMap,
    LastError,
    LevelRow,
    Load,
    NetworkRow,
    PlannerRow,
    QualityRow,
    RecentChunk,
    SegmentCell,
    SlowRow,
    State,
    TierKind,
    TierRow,
)
from .trends import TierPulse, figures_of, history_of, namespaces_of, tier_pulse

__all__ = ["Board"]

_FIGURES_SECONDS: Final = 10.0
_NAMESPACES_SECONDS: Final = 60.0
_NAMESPACES_SHOWN: Final = 12
_SLOW_SHOWN: Final = 12
_PLANS_SHOWN: Final = 8
_LOCAL_KINDS: Final = {"memory": TierKind.MEMORY, "ssd": TierKind.DISK}


class Board:
    """Made when the daemon starts, which it counts from; ``now_ms`` is the time of day, by which chunks age."""

    def __init__(self, service: Service, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._service = service
        self._now_ms = now_ms
        self._started = time.monotonic()

    def state(self, caller: Caller, since: int) -> State:
        """All there is now, and the samples from ``since`` on; :class:`Forbidden` without ``read`` or ``admin``."""
        if Scope.ADMIN not in caller.scopes:
            own = self._service.tenant(caller)
            return self._state(caller, since, own, (own,), None)
        stats = self._service.stats(caller)
        return self._state(caller, since, stats, stats.tenants, stats)

    async def chunk(self, caller: Caller, key: ContentKey) -> ChunkMap:
        """What is stored under ``key``, for every level and layer; :class:`NotFound` where nothing is."""
        detail = await self._service.describe(caller, key)
        outline = await self._service.outline(caller, key)
        return ChunkMap(detail, _levels(outline.header))

    def _state(
        self,
        caller: Caller,
        since: int,
        asked: wire.DaemonStats | tenancy.TenantStats,
        tenants: Sequence[tenancy.TenantStats],
        stats: wire.DaemonStats | None,
    ) -> State:
        """``asked`` counts what the caller may see, in ``tenants``; ``stats`` is for those who see all."""
        journal, health = self._service.journal, self._service.health()
        samples, tenant = journal.samples, caller.tenant if stats is None else None
        used = {item.namespace: sum(tier.used_bytes for tier in item.tiers) for item in tenants}
        namespaces = namespaces_of(samples.last(_NAMESPACES_SECONDS), used)
        reads = asked.hits + asked.misses
        return State(
            version=health.version,
            pid=health.pid,
            phase=health.phase,
            uptime_seconds=time.monotonic() - self._started,
            now_ms=self._now_ms(),
            tenant=caller.tenant,
            scopes=tuple(scope for scope in Scope if scope in caller.scopes),
            figures=figures_of(
                samples.last(_FIGURES_SECONDS),
                tenant,
                since_start=asked.hits / reads if reads else None,
                pinned_bytes=asked.pinned_bytes,
            ),
            load=None if stats is None else _load(stats),
            tiers=_own_tiers(tenants[0]) if stats is None else self._tiers(stats),
            network=None if stats is None else self._network(stats),
            planner=None if stats is None or not stats.planner.plans else _planner(stats.planner),
            quality=None if stats is None or not stats.quality.checked else _quality(stats.quality),
            namespaces=tuple(namespaces[:_NAMESPACES_SHOWN]),
            namespaces_more=max(0, len(namespaces) - _NAMESPACES_SHOWN),
            slowest=tuple(self._slow(request) for request in journal.requests.slowest(_SLOW_SHOWN, tenant=tenant)),
            recent=self._recent(caller),
            history=history_of(samples.since(since), tenant, next_number=samples.next_number),
        )

    def _tiers(self, stats: wire.DaemonStats) -> tuple[TierRow, ...]:
        """Sizes as they are now, rates as they were in the last seconds."""
        samples = self._service.journal.samples.last(_FIGURES_SECONDS)
        kinds = {tier.name: _kind(tier) for tier in stats.tiers}
        return tuple(
            _tier(now, kinds.get(now.name, TierKind.POOL), tier_pulse(samples, now.name))
            for now in rates_between(None, stats).tiers
        )

    def _network(self, stats: wire.DaemonStats) -> tuple[NetworkRow, ...]:
        errors = self._service.journal.errors
        stages = {stage.tier: stage for stage in stats.stages}
        rows = []
        for tier in stats.tiers:
            if not tier.shared:
                continue
            stage, error = stages.get(tier.name), errors.last(tier.name)
            rows.append(
                NetworkRow(
                    tier.name,
                    tier.breaker,
                    tier.breaker_openings,
                    tier.errors,
                    0 if stage is None else stage.dirty_bytes,
                    0 if stage is None else stage.dirty_bytes_max,
                    0 if stage is None else stage.dropped,
                    None if error is None else LastError(error.operation, error.detail, errors.age_seconds(error)),
                )
            )
        return tuple(rows)

    def _slow(self, request: SlowRequest) -> SlowRow:
        return SlowRow(
            request.request_id,
            request.tenant,
            request.edge,
            request.operation,
            request.outcome,
            request.tiers,
            request.size_bytes,
            request.seconds,
            self._service.journal.requests.age_seconds(request),
        )

    def _recent(self, caller: Caller) -> tuple[RecentChunk, ...]:
        """The caller's own, whatever else he sees, and only where he may read them."""
        if Scope.READ not in caller.scopes:
            return ()
        known = self._service.journal.chunks.of(caller.namespace.owner)
        return tuple(RecentChunk(info.content_key, info.payload_bytes, info.stored_at_ms) for info in known)


def _load(stats: wire.DaemonStats) -> Load:
    return Load(
        stats.requests_inflight,
        stats.bytes_inflight,
        stats.bytes_inflight_max,
        stats.dirty_bytes,
        stats.dirty_bytes_max,
        stats.leases,
    )


def _planner(stats: plan_wire.PlannerStats) -> PlannerRow:
    """The most frequent decision first."""
    decisions = tuple(sorted(stats.decisions, key=lambda item: (-item.chunks, item.action, item.reason)))
    return PlannerRow(
        stats.plans, stats.outcomes, stats.slower, stats.regret_seconds, decisions, stats.recent[:_PLANS_SHOWN]
    )


def _quality(stats: plan_wire.QualityStats) -> QualityRow:
    return QualityRow(
        stats.checked,
        stats.agreed,
        stats.kl_sum / stats.checked,
        stats.recent_kl,
        stats.recent_agreement,
        stats.alert,
    )


def _tier(now: TierRates, kind: TierKind, pulse: TierPulse | None) -> TierRow:
    unknown = now.limit_bytes is None
    return TierRow(
        now.name,
        kind,
        None if unknown else now.used_bytes,
        now.limit_bytes,
        None if unknown else now.chunks,
        None if pulse is None else pulse.hit_share,
        None if pulse is None else pulse.read_bytes_per_second,
        None if pulse is None else pulse.written_bytes_per_second,
        None if pulse is None else pulse.evictions_per_second,
        None if pulse is None else pulse.errors_per_second,
    )


def _own_tiers(own: tenancy.TenantStats) -> tuple[TierRow, ...]:
    return tuple(
        TierRow(
            item.tier, _LOCAL_KINDS.get(item.tier, TierKind.NETWORK), item.used_bytes, item.limit_bytes, item.records
        )
        for item in own.tiers
    )


def _kind(tier: wire.TierStats) -> TierKind:
    if tier.shared:
        return TierKind.NETWORK
    return TierKind.DISK if tier.durable else TierKind.MEMORY


def _levels(header: ContainerHeader) -> tuple[LevelRow, ...]:
    """Keys and values of a layer, and all that a block of layers has, as one cell each."""
    rows = []
    for level, segments in groupby(header.segments, key=lambda segment: segment.level):
        cells = []
        for first, parts in groupby(segments, key=lambda segment: segment.layer):
            held = list(parts)
            layers = 1 if held[0].kind is not None else header.whole_blocks(range(first, first + 1)).stop - first
            cells.append(SegmentCell(first, layers, sum(part.length for part in held)))
        rows.append(LevelRow(level, tuple(cells)))
    return tuple(rows)
