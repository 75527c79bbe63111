"""How far what is stored is worth loading: the planner's word on it, from what this engine's loads and prefills took.

The scheduler asks with every hit, for a bounded time (docs/PLANNER.md); :mod:`.reporting` tells the daemon afterwards
what came of it. Until this engine has computed enough for its costs to be known, whatever is found is loaded.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ... import limits
from ...codec.level import EXACT, LOSSY_LEVELS, Level
from ...errors import KvloomError
from ..overdue import overdue_seconds
from ..plan_wire import (
    Ability,
    ChunkAction,
    LevelLoss,
    PlanQuestion,
    PlanReply,
    PrefillSample,
)
from ..sequence import ShardedChunk
from .stats import Counts

__all__ = ["LOAD_ALL", "Advice", "EngineState", "LoadAdviser"]

_OTHER_LEVELS_LOSS: Final = 1000.0
"""Of levels that this engine does not load: more than any floor allows."""

Ask = Callable[[PlanQuestion], PlanReply | None]


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine was doing when the last step was scheduled: its requests, and prompt tokens not yet computed."""

    running: int = 0
    queued_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Advice:
    """Load the first ``chunks`` of what was found. ``links``: over which each is expected.

    ``seconds_max``: then the load is overdue, or everything would have been computed; of what has come until then the
    engine keeps the prefix. ``plan`` names what was decided.
    """

    chunks: int
    links: tuple[str | None, ...] = ()
    seconds_max: float | None = None
    plan: bytes | None = None


LOAD_ALL: Final = Advice(limits.PLAN_CHUNKS_MAX)
"""What is done where nobody can say."""


class LoadAdviser:
    """Asks for plans as ``engine``, which takes chunks of ``level`` only; ``ask`` takes a bounded time.

    ``state`` is for whoever schedules to keep up to date.
    """

    def __init__(
        self,
        engine: str,
        level: Level,
        ask: Ask,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._ask = engine, ask
        self._losses = tuple(
            LevelLoss(other, 0.0 if other == level else _OTHER_LEVELS_LOSS) for other in (*LOSSY_LEVELS, EXACT)
        )
        self._clock = clock
        self._prefills_known = 0
        self._silent_until = 0.0
        self._counts = Counts()
        self.state = EngineState()

    def note_prefills(self, prefills: Sequence[PrefillSample]) -> None:
        """The engine has computed: after enough of it what the planner says is done."""
        self._prefills_known += sum(item.tokens >= limits.ENGINE_PLAN_PREFILL_TOKENS_MIN for item in prefills)

    def advise(self, chunks: Sequence[ShardedChunk], prompt_tokens: int) -> Advice:
        """How much of ``chunks``, which follow each other and are stored, to load for a prompt of so many tokens."""
        now = self._clock()
        if not chunks or now < self._silent_until or len(chunks) > limits.PLAN_CHUNKS_MAX:
            return LOAD_ALL
        question = PlanQuestion(
            self._engine,
            keys=tuple(chunk.keys[0].hex() for chunk in chunks),
            chunk_lengths=tuple(chunk.tokens for chunk in chunks),
            first_position=chunks[0].start,
            prompt_tokens=prompt_tokens,
            loss_max=0.0,
            losses=self._losses,
            ability=Ability.PREFIX_CUT,
            running=max(1, self.state.running),
            queued_tokens=self.state.queued_tokens,
            stops=True,
        )
        try:
            reply = self._ask(question)
        except KvloomError:
            reply = None
        seconds = self._clock() - now
        self._counts += Counts(plans=1, plan_seconds=seconds)
        if reply is None or len(reply.decisions) != len(chunks):
            self._prefills_known = 0  # a daemon that comes back has forgotten what this engine costs
            self._silent_until = self._clock() + limits.ENGINE_PAUSE_SECONDS_MIN
            return LOAD_ALL
        links = tuple(decision.link for decision in reply.decisions)
        if self._prefills_known < limits.ENGINE_PLAN_PREFILLS_DEFAULT:
            return Advice(len(chunks), links)
        loaded = [decision.action is not ChunkAction.RECOMPUTE for decision in reply.decisions]
        count = loaded.index(False) if False in loaded else len(loaded)
        self._counts += Counts(declined_tokens=sum(chunk.tokens for chunk in chunks[count:]))
        overdue = overdue_seconds(max((decision.seconds for decision in reply.decisions[:count]), default=0.0))
        seconds_max = max(min(reply.recompute_seconds, overdue), limits.ENGINE_PLANNED_LOAD_SECONDS_MIN)
        return Advice(count, links, seconds_max, reply.plan)

    def take_counts(self) -> Counts:
        """Plans asked for since the last call, and what they took and declined."""
        counts, self._counts = self._counts, Counts()
        return counts
