"""What computing and loading are expected to cost: the numbers that a plan is made from. Pure.

An :class:`Outlook` is one view of all costs, at their means or at a quantile of them; :class:`Estimates` is whoever
has such views: what was learnt (:mod:`.model`), or the truth, in a simulation that asks for the optimum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimates", "LinkCost", "Outlook", "PrefillCost"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Prefill of ``n`` tokens at position ``s``: ``a·n + b·n·(s + n/2) + c`` seconds.

    ``s + n/2`` is the context, the tokens that one of them attends to in the mean. So the cost of two runs that follow
    each other is that of both together and one ``c``.
    """

    token_seconds: float
    """``a``"""
    token_context_seconds: float
    """``b``"""
    call_seconds: float
    """``c``"""
    wait_seconds: float = 0.0
    """How long the engine is busy with others before it begins."""

    def seconds(self, tokens: Ints, starts: Ints) -> Floats:
        """The cost of each of several runs, [runs], without ``c`` and the wait."""
        lengths = tokens.astype(np.float64)
        costs: Floats = lengths * (self.token_seconds + self.token_context_seconds * (starts + lengths / 2))
        return costs


@dataclass(frozen=True, slots=True)
class LinkCost:
    """A link: requests for chunks follow each other at once, so its latency is waited for once.

    A load of chunks of ``s`` bytes in all takes ``wait + latency + s · byte`` seconds. The seconds per byte are those
    that this request is expected to get, with what others have in flight.
    """

    latency_seconds: float
    byte_seconds: float
    wait_seconds: float = 0.0
    """How long the link is busy with what this request is queued behind."""
    path: str = ""
    """Links of one path carry one chunk at a time between them, as tiers behind one socket do; by default a link is
    a path of its own."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """One view of all costs. A link that is not in it is not used."""

    prefill: PrefillCost
    links: Mapping[str, LinkCost]


class Estimates(Protocol):
    """Views of the costs of one engine and the links it can use."""

    def mean(self) -> Outlook:
        """Every cost at what is expected of it."""
        ...

    def at(self, quantile: float) -> Outlook:
        """Every cost of a link at this quantile of it, and those of prefill at their mean.

        A high quantile is a slow link. Computing is the safe side, and what is compared with: it is not made slower.
        """
        ...
