"""What was decided: for each chunk load, recompute or race, with the times expected and the reason. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ...clients.plan_wire import Reason
from .request import PlanRequest, Way

__all__ = ["Action", "Decision", "Plan", "Progress", "Reason"]


class Action(IntEnum):
    """What becomes of a chunk."""

    RECOMPUTE = 0
    LOAD = 1
    RACE = 2
    """Loaded, and computed if the engine gets to it first: what comes first is taken, and the other given up."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One chunk's. ``way`` is ``None`` where nothing is loaded; ``seconds`` until it is there, from the start."""

    action: Action
    way: Way | None
    seconds: float
    reason: Reason


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A plan for one request; arrays that nobody changes.

    The engine computes the chunks that are not loaded in the order of their positions. Loads are asked for in
    ``load_order``: what is needed soonest first, and from the back to the front within a run, so that the two ends meet
    wherever the link lets them. Where only a prefix can be loaded it comes from the front: what has come of it is one.
    """

    request: PlanRequest
    actions: NDArray[np.int8]
    """[chunks], :class:`Action`"""
    ways: NDArray[np.int16]
    """[chunks], the column of the request that is loaded, or -1"""
    seconds: NDArray[np.float64]
    """[chunks], when each is expected to be there, from the plan's start"""
    reasons: tuple[Reason, ...]
    load_order: NDArray[np.int64]
    """The chunks to load, first to last."""
    meeting: int
    """How many chunks are computed from the front before the first that is loaded: where the two ends meet.

    Of those, the ones that are raced are the last."""
    ttft_seconds: float
    """Expected: all costs at their means."""
    cautious_seconds: float
    """With links as slow as the quantile that was decided by."""
    recompute_seconds: float
    """What it is expected to take to compute everything."""
    loss: float
    """Mean of the chunks' losses weighted by their tokens, in nats."""
    hold_seconds: float = 0.0
    """So long the engine had better wait for the first load, and have the plan made anew, before it computes."""

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, chunk: int) -> Decision:
        way = int(self.ways[chunk])
        return Decision(
            Action(int(self.actions[chunk])),
            None if way < 0 else self.request.ways[way],
            float(self.seconds[chunk]),
            self.reasons[chunk],
        )

    def __iter__(self) -> Iterator[Decision]:
        return (self[chunk] for chunk in range(len(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """How far a request is when its plan is revised. Seconds count from now."""

    done: NDArray[np.bool_]
    """[chunks], what has been computed, or loaded and decoded"""
    left_bytes: NDArray[np.float64]
    """[chunks], what is still to come of a load under way, and 0 elsewhere"""
    under_way: NDArray[np.int16]
    """[chunks], the way by which a load is under way, or -1"""
    computing_seconds: float = 0.0
    """For how long the engine is still busy with what it computes now; that chunk counts as done."""
    elapsed_seconds: float = 0.0
    """Since the request began."""
    lost: float = 0.0
    """The loss of what has been loaded, in nats, summed over tokens."""
