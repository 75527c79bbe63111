"""Questions to the planner, plans, and what engines report, as records on the wire (:mod:`.wire`)."""

from dataclasses import dataclass
from enum import StrEnum

from .. import limits
from ..codec.level import STANDARD, Level
from ..kvstore.key import ModelIdentity

__all__ = [
    "NO_CHECKS",
    "NO_PLANS",
    "Ability",
    "BlendQuestion",
    "ChunkAction",
    "ChunkDecision",
    "DecisionCount",
    "DecodeSample",
    "EngineReport",
    "LevelLoss",
    "LinkReport",
    "LoadSample",
    "LoadUnderWay",
    "PlanGoal",
    "PlanOutcome",
    "PlanQuestion",
    "PlanReply",
    "PlannerStats",
    "PrefillSample",
    "QualitySample",
    "QualityStats",
    "Reason",
    "RecentPlan",
    "ReportReply",
]


class Ability(StrEnum):
    """Which chunks an engine takes from outside."""

    PREFIX_CUT = "prefix_cut"
    """One contiguous run from the front; everything after it is computed (vLLM's connectors)."""
    ANY_CHUNK = "any_chunk"
    """Any of them; the others are computed in the order of their positions (ours on Transformers)."""


class PlanGoal(StrEnum):
    """What a plan is to be best at."""

    FASTEST = "fastest"
    """The lowest time to first token that loses at most ``loss_max``."""
    BEST_WITHIN = "best_within"
    """The least loss within ``ttft_seconds``; the lowest time to first token where none is."""


class ChunkAction(StrEnum):
    """What becomes of a chunk."""

    RECOMPUTE = "recompute"
    LOAD = "load"
    RACE = "race"
    """Loaded, and computed if the engine gets to it first."""


class Reason(StrEnum):
    """Why, in a word that metrics and people can read."""

    NOT_OFFERED = "not_offered"
    """Nobody has it: computed."""
    AFTER_CUT = "after_cut"
    """The engine takes a prefix only, and this is behind where it ends: computed."""
    COMPUTE_FASTER = "compute_faster"
    """Computed before it could have come."""
    QUALITY_FLOOR = "quality_floor"
    """What there is of it would lose more than is allowed: computed."""
    LOAD_FASTER = "load_faster"
    """It comes before it could have been computed."""
    UNCERTAIN = "uncertain"
    """Near where computing and loading meet, and the link may be faster or slower than that: raced."""
    DONE = "done"
    """It is there already."""


@dataclass(frozen=True, slots=True)
class LevelLoss:
    """What a level loses: KL divergence from full prefill, in nats per token."""

    level: Level
    loss: float


@dataclass(frozen=True, slots=True)
class BlendQuestion:
    """The chunks are no prefix and are blended, in a model of so many ``layers``.

    The first ``whole_layers`` are computed for all tokens; of the others at least ``ratio_min`` are recomputed.
    """

    layers: int
    whole_layers: int = 1
    ratio_min: float = 0.15


@dataclass(frozen=True, slots=True)
class LoadUnderWay:
    """A chunk, by its place in the question, that is being loaded at ``level`` for ``seconds`` now.

    ``received_bytes``: what has come of it; 0 where that is not known.
    """

    chunk: int
    level: Level
    seconds: float
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """Load or recompute, chunk by chunk? Of ``keys``, or of ``tokens`` cut and keyed as ``identity`` says.

    Chunks named by ``keys`` follow each other and have ``chunk_tokens`` each, or ``chunk_lengths``: one for each key.
    ``engine`` names whose costs count, as it reports them. ``first_position``: the tokens before the first chunk, which
    the engine has. ``prompt_tokens`` (with keys): the length of the prompt; what is behind the chunks is computed, the
    last token always. ``running``: requests in the engine; ``queued_tokens``: what it has to compute before. ``done``:
    chunks that are there already, where a plan is asked for again. ``prefetch``: copy what is to be loaded into memory.
    ``stops``: the engine asks again when a load is overdue (:mod:`.overdue`), and gives it up where the plan says so.
    ``under_way``: what is being loaded then; how long it takes says how fast the link is now.
    """

    engine: str
    keys: tuple[str, ...] | None = None
    identity: ModelIdentity | None = None
    tokens: tuple[int, ...] | None = None
    chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT
    chunk_lengths: tuple[int, ...] = ()
    first_position: int = 0
    prompt_tokens: int | None = None
    goal: PlanGoal = PlanGoal.FASTEST
    loss_max: float | None = None
    """The floor of quality, a mean over the prompt; by default what ``floor`` loses."""
    floor: Level = STANDARD
    ttft_seconds: float | None = None
    losses: tuple[LevelLoss, ...] = ()
    """Where the model's own are known; else those measured on SmolLM2 (docs/CODEC.md) are taken."""
    ability: Ability = Ability.ANY_CHUNK
    side_by_side: bool = True
    decoding_competes: bool = False
    step_tokens: int = 0
    running: int = 1
    queued_tokens: int = 0
    done: tuple[int, ...] = ()
    elapsed_seconds: float = 0.0
    prefetch: bool = False
    blend: BlendQuestion | None = None
    stops: bool = False
    under_way: tuple[LoadUnderWay, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkDecision:
    """One chunk's. ``link``, ``level`` and ``size_bytes`` are of what is loaded; ``seconds`` until it is there."""

    action: ChunkAction
    reason: Reason
    seconds: float
    link: str | None = None
    level: Level | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlanReply:
    """A plan: what becomes of each chunk, in which order to load, and what is expected of it.

    ``meeting``: how many chunks are computed from the front before the first that is loaded. ``cautious_seconds``: the
    time to first token with links as slow as was decided by. ``prefetching``: chunks on their way into memory.
    ``recompute_ratio``: of a blended request, the part of the loaded tokens to recompute. ``hold_seconds``: so long the
    engine had better wait for the first load, and ask again then, before it begins a step that it does not stop.
    """

    plan: bytes
    decisions: tuple[ChunkDecision, ...]
    load_order: tuple[int, ...]
    meeting: int
    ttft_seconds: float
    cautious_seconds: float
    recompute_seconds: float
    loss: float
    prefetching: int = 0
    recompute_ratio: float | None = None
    hold_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """A prefill of ``tokens`` after ``start`` others took ``seconds``, with ``running`` requests in the engine."""

    tokens: int
    start: int
    seconds: float
    running: int = 1


@dataclass(frozen=True, slots=True)
class LoadSample:
    """A load of ``size_bytes`` over ``link`` took ``seconds``, beside ``concurrent - 1`` others on average."""

    link: str
    size_bytes: int
    seconds: float
    concurrent: float = 1.0


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """Decoding ``kv_bytes`` of KV (as it is when decoded) from ``level`` took ``seconds``."""

    level: Level
    kv_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """The time to first token that came of a plan."""

    plan: bytes
    ttft_seconds: float


@dataclass(frozen=True, slots=True)
class QualitySample:
    """A lossy or blended answer, checked against full prefill: mean KL (nats) of its first tokens, and the first one.

    ``agrees``: full prefill begins with the same token. ``kl_max`` and ``agreement_min`` are what was asked for.
    """

    kl: float
    agrees: bool
    kl_max: float
    agreement_min: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What really happened in ``engine``. What cannot be is ignored."""

    engine: str
    prefills: tuple[PrefillSample, ...] = ()
    loads: tuple[LoadSample, ...] = ()
    decodes: tuple[DecodeSample, ...] = ()
    outcomes: tuple[PlanOutcome, ...] = ()
    qualities: tuple[QualitySample, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportReply:
    """How many of the measurements were taken in, and how many could not be true or were of no plan known."""

    accepted: int
    ignored: int


@dataclass(frozen=True, slots=True)
class DecisionCount:
    """Chunks of which this was decided, for this reason."""

    action: ChunkAction
    reason: Reason
    chunks: int


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What the daemon has measured of one of its tiers; ``spread`` is the deviation of the logarithm."""

    tier: str
    latency_seconds: float
    bytes_per_second: float
    spread: float
    samples: int


@dataclass(frozen=True, slots=True)
class RecentPlan:
    """A plan made lately; ``real_seconds`` where its outcome was reported, ``reason`` the most frequent one."""

    age_seconds: float
    namespace: str
    engine: str
    chunks: int
    loaded: int
    raced: int
    recomputed: int
    reason: Reason
    expected_seconds: float
    recompute_seconds: float
    loss: float
    real_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PlannerStats:
    """The planner since the daemon started.

    ``regret_seconds``: by how much outcomes were later than the better of what the plan and what computing everything
    was expected to take, summed; ``slower`` counts those later than computing everything was expected to take.
    """

    plans: int = 0
    deciding_seconds: float = 0.0
    prefetched: int = 0
    samples: int = 0
    ignored: int = 0
    outcomes: int = 0
    slower: int = 0
    regret_seconds: float = 0.0
    decisions: tuple[DecisionCount, ...] = ()
    links: tuple[LinkReport, ...] = ()
    recent: tuple[RecentPlan, ...] = ()


@dataclass(frozen=True, slots=True)
class QualityStats:
    """Answers that clients checked against full prefill since the daemon started; ``kl_sum`` in nats.

    The means are over the latest checks; ``alert``: these miss what was asked for (:mod:`.quality`).
    """

    checked: int = 0
    agreed: int = 0
    kl_sum: float = 0.0
    recent_kl: float = 0.0
    recent_agreement: float = 0.0
    alert: bool = False


NO_CHECKS = QualityStats()
"""Of a daemon that was told of none yet."""

NO_PLANS = PlannerStats()
"""Of a daemon that has made none yet."""
