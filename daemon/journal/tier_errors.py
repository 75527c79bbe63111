"""The last thing that went wrong in each tier."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ... import limits

__all__ = ["TierError", "TierErrors"]


@dataclass(frozen=True, slots=True)
class TierError:
    """A tier failed at ``operation``, at ``at`` of the clock that noted it; ``detail`` is one line, cut to a limit."""

    operation: str
    detail: str
    at: float


class TierErrors:
    """One error per tier: there are as many as the configuration has tiers. ``clock`` says monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, TierError] = {}

    def note(self, tier: str, operation: str, detail: str) -> None:
        """``tier`` refused or failed now."""
        line = " ".join(detail.split())[: limits.TIER_ERROR_CHARACTERS_MAX]
        self._last[tier] = TierError(operation, line, self._clock())

    def last(self, tier: str) -> TierError | None:
        """What went wrong in ``tier`` last, since the start."""
        return self._last.get(tier)

    def age_seconds(self, error: TierError) -> float:
        """How long ago it was."""
        return max(0.0, self._clock() - error.at)
