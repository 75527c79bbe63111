"""Rows of the report, and what follows from them: the default against its best rival."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Gain", "HintResult", "Row", "gains", "hint_results"]

RIVALS = ("lru", "s3-fifo", "w-tinylfu", "gdsf")
BOUND = "flow bound"


@dataclass(frozen=True, slots=True)
class Row:
    """One replay: shares are of all block uses and of all prefill seconds of the trace."""

    trace: str
    policy: str
    hints: str
    capacity_percent: float
    capacity_blocks: int
    hit_rate: float | None
    seconds_saved: float
    saved_share: float


@dataclass(frozen=True, slots=True)
class Gain:
    """The default's seconds over those of the best rival, in percent more."""

    trace: str
    capacity_percent: float
    best_rival: str
    percent: float
    percent_over_lru: float


@dataclass(frozen=True, slots=True)
class HintResult:
    """What hints are worth: the share of the way from LRU to the bound, and what is lost against LRU in percent."""

    trace: str
    capacity_percent: float
    hints: str
    closed_percent: float
    percent_over_lru: float


def gains(rows: Sequence[Row], subject: str) -> list[Gain]:
    """``subject`` against its rivals, wherever all of them were run."""
    found: list[Gain] = []
    for row in rows:
        if row.policy != subject:
            continue
        there = {
            other.policy: other.seconds_saved
            for other in rows
            if (other.trace, other.capacity_percent, other.hints) == (row.trace, row.capacity_percent, "none")
        }
        if all(there.get(name) for name in RIVALS):
            best = max(RIVALS, key=lambda name, there=there: there[name])
            over = [100.0 * (row.seconds_saved / there[name] - 1.0) for name in (best, "lru")]
            found.append(Gain(row.trace, row.capacity_percent, best, *over))
    return found


def hint_results(rows: Sequence[Row]) -> list[HintResult]:
    """The hinted policy against LRU and the bound (Belady's where there is no bound)."""
    found: list[HintResult] = []
    for row in rows:
        if row.policy != "hinted":
            continue
        there = {
            other.policy: other.seconds_saved
            for other in rows
            if (other.trace, other.capacity_percent, other.hints) == (row.trace, row.capacity_percent, "none")
        }
        lru, best = there.get("lru"), there.get(BOUND, there.get("belady"))
        if lru and best:
            closed = 100.0 * (row.seconds_saved - lru) / (best - lru) if best > lru else 100.0
            over = 100.0 * (row.seconds_saved / lru - 1.0)
            found.append(HintResult(row.trace, row.capacity_percent, row.hints, closed, over))
    return found
