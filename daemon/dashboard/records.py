"""What the dashboard's page is told, as records on the wire (:mod:`kvloom.clients.wire`). Rates are per second.

Fields that are ``None`` are not for this caller, are not known, or mean nothing there: a rate of hits without reads,
the fill of what nothing bounds.
"""

from dataclasses import dataclass
from enum import StrEnum

from ...clients.plan_wire import DecisionCount, RecentPlan
from ...clients.wire import ChunkDetail
from ...codec.level import Level
from ..caller import Scope

__all__ = [
    "ChunkMap",
    "Figures",
    "History",
    "LastError",
    "LevelRow",
    "Load",
    "Login",
    "NamespaceRow",
    "NetworkRow",
    "PlannerRow",
    "RecentChunk",
    "SegmentCell",
    "SlowRow",
    "State",
    "TierHistory",
    "TierKind",
    "TierRow",
]


class TierKind(StrEnum):
    """What a tier is to whoever reads its row."""

    POOL = "pool"
    MEMORY = "memory"
    DISK = "disk"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Login:
    """Who has logged in, as what, and for how long."""

    tenant: str
    scopes: tuple[Scope, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """How it goes: averages over the last ``seconds``, of the whole daemon or of the caller's own tenant."""

    seconds: float
    gets_per_second: float
    puts_per_second: float
    hit_rate: float | None
    hit_rate_since_start: float | None
    read_bytes_per_second: float
    put_bytes_per_second: float
    pinned_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is inside the daemon now, and what of it is only in memory yet."""

    requests_inflight: int
    bytes_inflight: int
    bytes_inflight_max: int
    dirty_bytes: int
    dirty_bytes_max: int
    leases: int


@dataclass(frozen=True, slots=True)
class TierRow:
    """A tier: all of it, with averages over the last seconds, or what the caller's tenant has of it and its quota."""

    name: str
    kind: TierKind
    used_bytes: int | None
    limit_bytes: int | None
    chunks: int | None
    hit_share: float | None = None
    read_bytes_per_second: float | None = None
    written_bytes_per_second: float | None = None
    evictions_per_second: float | None = None
    errors_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class LastError:
    """What went wrong last: in which operation, what it said, and how long ago."""

    operation: str
    detail: str
    seconds_ago: float


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """A shared tier's health; ``breaker`` is open, closed or none. Counts are since the start."""

    tier: str
    breaker: str
    openings: int
    errors: int
    waiting_bytes: int
    waiting_bytes_max: int
    dropped: int
    last_error: LastError | None


@dataclass(frozen=True, slots=True)
class NamespaceRow:
    """A namespace over the last minute; ``used_bytes`` is what it has on all local tiers now."""

    name: str
    gets_per_second: float
    hit_rate: float | None
    read_bytes_per_second: float
    puts_per_second: float
    put_bytes_per_second: float
    used_bytes: int


@dataclass(frozen=True, slots=True)
class SlowRow:
    """A slow request; ``size_bytes`` are the chunk bytes that it moved, ``tiers`` those that it read from."""

    request_id: str
    tenant: str
    edge: str
    operation: str
    outcome: str
    tiers: tuple[str, ...]
    size_bytes: int
    seconds: float
    seconds_ago: float


@dataclass(frozen=True, slots=True)
class PlannerRow:
    """What the planner decided since the start, chunk by chunk, and its latest plans, the last first.

    Of ``outcomes`` plans it is known what came of them; ``slower`` of those came later than computing everything was
    expected to take. ``regret_seconds``: by how much later than the better of both promises, all of them together.
    """

    plans: int
    outcomes: int
    slower: int
    regret_seconds: float
    decisions: tuple[DecisionCount, ...]
    recent: tuple[RecentPlan, ...]


@dataclass(frozen=True, slots=True)
class QualityRow:
    """Answers that clients checked against full prefill: all so far, and means over the latest, in nats."""

    checked: int
    agreed: int
    kl: float
    recent_kl: float
    recent_agreement: float
    alert: bool


@dataclass(frozen=True, slots=True)
class TierHistory:
    """One tier over the samples of :class:`History`."""

    name: str
    fill: tuple[float | None, ...]
    read_bytes_per_second: tuple[float | None, ...]
    written_bytes_per_second: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class History:
    """Samples ``first`` to ``next - 1``, each list with one item per sample; times are of the daemon's uptime."""

    first: int
    next: int
    uptime_seconds: tuple[float, ...]
    hit_rate: tuple[float | None, ...]
    gets_per_second: tuple[float, ...]
    puts_per_second: tuple[float, ...]
    read_bytes_per_second: tuple[float, ...]
    put_bytes_per_second: tuple[float, ...]
    tiers: tuple[TierHistory, ...]


@dataclass(frozen=True, slots=True)
class RecentChunk:
    """A chunk that was stored, or copied up, lately."""

    key: bytes
    payload_bytes: int
    stored_at_ms: int


@dataclass(frozen=True, slots=True)
class State:
    """All that the page shows but a chunk; ``load``, ``network``, ``planner`` and ``quality`` are for scope ``admin``.

    ``planner`` is ``None``, too, where nobody has asked for a plan, and ``quality`` where no answer was checked.
    """

    version: str
    pid: int
    phase: str
    uptime_seconds: float
    now_ms: int
    tenant: str
    scopes: tuple[Scope, ...]
    figures: Figures
    load: Load | None
    tiers: tuple[TierRow, ...]
    network: tuple[NetworkRow, ...] | None
    planner: PlannerRow | None
    quality: QualityRow | None
    namespaces: tuple[NamespaceRow, ...]
    namespaces_more: int
    slowest: tuple[SlowRow, ...]
    recent: tuple[RecentChunk, ...]
    history: History


@dataclass(frozen=True, slots=True)
class SegmentCell:
    """What one level has of the layers from ``first_layer`` on: payload bytes, keys and values together."""

    first_layer: int
    layers: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One level of a chunk."""

    level: Level
    cells: tuple[SegmentCell, ...]


@dataclass(frozen=True, slots=True)
class ChunkMap:
    """A chunk, and where its bytes are."""

    detail: ChunkDetail
    levels: tuple[LevelRow, ...]
