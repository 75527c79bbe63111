"""A request while it is served, and the strategy that says what becomes of its chunks."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from ..request import Ability
from .figures import EngineFigures, LevelFigures
from .link import SharedLink, Transfer

__all__ = ["Active", "Load", "Scene", "Sighting", "Strategy"]


@dataclass(frozen=True, slots=True)
class Load:
    """Fetch a chunk at a level: the chunk by its place in the request, the level by its place in the scene's."""

    chunk: int
    level: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What all requests of a simulation share."""

    engine: EngineFigures
    levels: tuple[LevelFigures, ...]
    """Those that may be used, from coarse to fine."""
    ability: Ability
    nodes: int
    """Engines, each with its share of a link."""
    nodes_per_link: int
    latency_s: float
    """From asking a link for a chunk until its first byte; chunks asked for in a row wait for it once."""

    @property
    def links(self) -> int:
        """How many links there are."""
        return -(-self.nodes // self.nodes_per_link)

    def size_bytes(self, tokens: int, level: int) -> float:
        """What a chunk takes on a link."""
        return tokens * self.engine.values_per_token * self.levels[level].bits_per_value / 8

    def decode_s(self, tokens: int, level: int) -> float:
        """What decoding a chunk takes."""
        return tokens * self.engine.values_per_token / self.levels[level].decode_values_per_s


@dataclass(slots=True, eq=False)
class Active:
    """One request. Strategies read it and call :meth:`ask`; everything else is the simulation's to write."""

    index: int
    node: int
    link: SharedLink
    arrival_s: float
    blocks: list[int]
    tokens: Sequence[int]
    starts: Sequence[int]
    compute_s: Sequence[float]
    """[chunks], what each takes to compute, without what a call costs"""
    hits: list[int]
    """Chunks that are stored and that the engine can take; never the last, whose logits are wanted"""
    present: bytearray
    """[chunks], whether the engine has it"""
    coming: bytearray
    """[chunks], whether it is to be loaded, and is not there yet"""
    front: int = 0
    """The first chunk that the engine does not have."""
    loads: deque[Load] = field(default_factory=deque)
    """What is to be transferred next, in this order."""
    transfer: Transfer | None = None
    loading: Load | None = None
    """What is being transferred."""
    decodes: deque[Load] = field(default_factory=deque)
    """What waits for the engine to decode it."""
    decoding: int = 0
    """Chunks that have come and are not decoded."""
    decoder_free_s: float = 0.0
    step_chunks: int = 0
    """How many chunks the engine computes now, from ``front`` on."""
    wake_s: float = inf
    """When the strategy wants to look at the request again, whatever happens; it says so here."""
    hold_s: float = 0.0
    """Until when the engine computes nothing of it; the strategy says so here, and looks at it by then."""
    given_up: bool = False
    """The strategy no longer wants what is being transferred."""
    probing: bool = False
    """What is loaded is not for this request: somebody wants to know how fast the link is."""
    connecting: bool = False
    first_load: bool = False
    queued: bool = False
    bytes: float = 0.0
    gpu_s: float = 0.0
    loss: float = 0.0
    """Nats, summed over tokens."""
    loaded_tokens: int = 0
    done_s: float = -1.0

    def ask(self, loads: Iterable[Load]) -> None:
        """From now on load these, in this order, and compute the rest; what is being transferred goes on.

        Nothing happens once the request has been used for a probe.
        """
        if self.probing:
            return
        for load in self.loads:
            self.coming[load.chunk] = 0
        kept = [load for load in loads if not self.present[load.chunk] and not self.coming[load.chunk]]
        self.loads = deque(kept)
        for load in kept:
            self.coming[load.chunk] = 1

    def probe(self, load: Load) -> None:
        """Load a chunk to see how long that takes, and compute all the same; for a request that loads nothing."""
        if not self.loads and self.transfer is None and not self.connecting:
            self.probing = True
            self.loads.append(load)

    def left_bytes(self, now_s: float) -> float:
        """What is still to come of the load that is being transferred; 0 where none is."""
        return 0.0 if self.transfer is None else self.link.left_bytes(self.transfer, now_s)

    def give_up(self) -> None:
        """Stop the transfer that is under way; its chunk is computed unless it is asked for again."""
        self.given_up = self.transfer is not None

    def forget(self, chunk: int) -> None:
        """Do not load this chunk, which has not begun to come."""
        self.loads = deque(load for load in self.loads if load.chunk != chunk)
        self.coming[chunk] = 0

    @property
    def ready_tokens(self) -> int:
        """Tokens that the engine can compute now: until the first chunk that is to be loaded."""
        tokens = 0
        for at in range(self.front + self.step_chunks, len(self.tokens)):
            if self.coming[at]:
                break
            tokens += 0 if self.present[at] else self.tokens[at]
        return tokens


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a link has just done for a request: a load that came whole."""

    load: Load
    size_bytes: float
    seconds: float
    """since the load before it came or, for the first of a row, since it was asked for"""
    transfer_s: float
    """the same without the wait for the first byte"""


class Strategy(ABC):
    """Decides for every request what is loaded. It sees what a planner can see; the truth is the simulation's."""

    name: str

    @abstractmethod
    def begin(self, request: Active, now_s: float, ahead: Collection[Active]) -> None:
        """A request has arrived: say what to load. ``ahead`` are those before it at its engine."""

    def came(self, request: Active, sighting: Sighting, now_s: float) -> None:  # noqa: B027  (most do not look)
        """A load came whole; what to load next may be said anew."""

    def computed(self, request: Active, tokens: int, start: int, seconds: float, now_s: float) -> None:  # noqa: B027
        """The engine has computed a run of chunks, in ``seconds``; what to load may be said anew."""

    def stopped(self, request: Active, size_bytes: float, seconds: float, now_s: float) -> None:  # noqa: B027
        """A transfer was given up, or overtaken by the engine, after so many bytes and seconds."""

    def ended(self, request: Active) -> None:  # noqa: B027
        """It has its first token."""

    def wake(self, request: Active, now_s: float) -> None:  # noqa: B027
        """It is ``request.wake_s``; what to load may be said anew."""

    def takes(self, request: Active, chunk: int, now_s: float) -> bool:
        """The engine has got to a chunk that is to be loaded: whether it computes it all the same.

        It may be on its way (``request.loading``) or waiting for that; what to load may be said anew.
        """
        return False
