"""What computing and loading are expected to cost: the numbers that a plan is made from. Pure.

An :class:`Outlook` is one view of all costs, at their means or at a quantile of them; :class:`Estimates` is whoever
has such views: what was learnt (:mod:`.model`), or the truth, in a simulation that asks for the optimum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PREFIX_PRICE_MAX", "Estimates", "LinkCost", "Outlook", "PrefillCost"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PREFIX_PRICE_MAX: Final = 1.5
"""What a second of an engine weighs at the most that takes only a prefix: loading one for others may take longer than
computing does, and past this what is waited more is sure, and what they wait less is not."""
_STEPS_MAX: Final = 12
"""Newton steps to when a link that changes has delivered so many bytes; five are enough mostly."""


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
    price: float = 1.0
    """What a second of the engine weighs against one that is only waited for: others wait for it, too."""

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
    typical_byte_seconds: float = 0.0
    """What the link takes in the long run; 0 where that is what it takes now."""
    reversion_seconds: float = inf
    """How soon it goes back to that: the difference falls to a third in this time."""

    def over(self, size_bytes: float) -> "LinkCost":
        """A link of steady speed that takes as long as this one for so many bytes, behind what it waits for."""
        now, typical = self.byte_seconds, self.typical_byte_seconds
        if typical <= 0.0 or typical == now or self.reversion_seconds == inf:
            return self
        ahead = self.wait_seconds / now
        wanted = size_bytes + ahead
        factor = _reverting(wanted, 1 / now, 1 / typical, self.reversion_seconds) / (wanted * now) if wanted else 1.0
        return LinkCost(self.latency_seconds, now * factor, self.wait_seconds * factor, self.path)


def _reverting(wanted: float, rate: float, typical: float, reversion_s: float) -> float:
    """When ``wanted`` bytes have come at a rate that goes from ``rate`` to ``typical``, as ``exp(-t / reversion_s)``.

    Newton from where the rate as it is would end: on the side from which every step stays there, whichever it is.
    """
    seconds, extra = wanted / rate, (rate - typical) * reversion_s
    for _ in range(_STEPS_MAX):
        faded = exp(-seconds / reversion_s)
        missing = wanted - typical * seconds - extra * (1.0 - faded)
        seconds += missing / (typical + (rate - typical) * faded)
        if abs(missing) <= 1e-6 * wanted:
            break
    return seconds


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
