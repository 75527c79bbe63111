"""What the planner is held to, reckoned from the rows of simulations. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .experiment import ClassRow, Row

__all__ = ["Goals", "goals"]

_PLANNER: Final = "kvloom"
_SAFE: Final = ("always-recompute", "always-load-raw", "always-load-level")


@dataclass(frozen=True, slots=True)
class Goals:
    """Of all traces and links that were simulated with one kind of engine; 0 where a strategy for it was not run.

    ``optimum_ratio_worst``: kvloom's mean TTFT over the optimum's, at its worst trace and link (the goal is 1.10).
    ``cachegen_ratio``: CacheGen's mean TTFT over kvloom's, the geometric mean over links that change (1.25 or more).
    ``class_ratio_worst``: kvloom's mean TTFT over the best of always recomputing and always loading, in the class of
    requests where that is highest (1.02).
    """

    ability: str
    optimum_ratio_worst: float
    optimum_worst_at: str
    cachegen_ratio: float
    class_ratio_worst: float
    class_worst_at: str


def goals(rows: Sequence[Row], classes: Sequence[ClassRow]) -> list[Goals]:
    """One for each kind of engine that there are rows of."""
    return [_of(ability, rows, classes) for ability in sorted({row.ability for row in rows})]


def _of(ability: str, rows: Sequence[Row], classes: Sequence[ClassRow]) -> Goals:
    ours = [row for row in rows if row.ability == ability and row.strategy == _PLANNER]
    near = max(ours, key=lambda row: row.optimum_ratio, default=None)
    product, count = 1.0, 0
    for row in ours:
        there = [other for other in rows if other.strategy == "cachegen" and _where(other) == _where(row)]
        if there and not row.link.startswith("constant"):
            product, count = product * there[0].ttft_mean_s / row.ttft_mean_s, count + 1
    worst, worst_at = 0.0, ""
    for own in classes:
        if own.ability != ability or own.strategy != _PLANNER:
            continue
        safe = [
            other.ttft_mean_s
            for other in classes
            if other.strategy in _SAFE and other.requests_of == own.requests_of and _where(other) == _where(own)
        ]
        if safe and own.ttft_mean_s / min(safe) > worst:
            worst = own.ttft_mean_s / min(safe)
            worst_at = f"{own.trace}, {own.link}, {own.engine}: {own.requests_of} ({own.requests})"
    return Goals(
        ability,
        0.0 if near is None else near.optimum_ratio,
        "" if near is None else f"{near.trace}, {near.link}, {near.engine}",
        product ** (1 / count) if count else 0.0,
        worst,
        worst_at,
    )


def _where(row: Row | ClassRow) -> tuple[str, str, str, str]:
    return row.trace, row.link, row.engine, row.ability
