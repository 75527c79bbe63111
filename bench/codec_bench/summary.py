"""What the rows say: bits per value at equal KL, and what it costs that one stream has several levels.

Between two levels of a scheme bits are interpolated over the logarithm of the KL. Outside a scheme's levels nothing is
said: there is no extrapolation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .quality import QualityRow

TARGET_KLS = (0.005, 0.01, 0.02, 0.03)
RIVALS = ("cachegen", "kivi", "turboquant")
OURS = ("kvloom", "kvloom-generic")


@dataclass(frozen=True, slots=True)
class EqualKl:
    """Bits per value at one KL; None where the scheme's levels do not reach it. ``ratio`` is ours over the rival's."""

    text: str
    kl: float
    scheme: str
    bits_per_value: float | None
    rival: str
    rival_bits_per_value: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class LevelCost:
    """One level of the levelled stream against a single-rate encoding of the same KL."""

    text: str
    level: str
    kl: float
    bits_per_value: float
    single_rate_bits_per_value: float | None
    cost_bits_per_value: float | None


def bits_at(rows: Sequence[QualityRow], scheme: str, text: str, kl: float) -> float | None:
    """Least bits per value of ``scheme`` at ``kl``, over its variants; None out of its range."""
    variants: dict[str, list[QualityRow]] = {}
    for row in rows:
        if row.scheme == scheme and row.text == text and row.kl > 0:
            variants.setdefault(row.variant, []).append(row)
    found: list[float] = []
    for points in variants.values():
        for coarse, fine in pairwise(sorted(points, key=lambda row: row.bits_per_value)):
            if fine.kl <= kl <= coarse.kl and fine.kl < coarse.kl:
                share = (math.log(coarse.kl) - math.log(kl)) / (math.log(coarse.kl) - math.log(fine.kl))
                found.append(coarse.bits_per_value + share * (fine.bits_per_value - coarse.bits_per_value))
    return min(found, default=None)


def equal_kl(rows: Sequence[QualityRow]) -> list[EqualKl]:
    """Ours against each rival at the KLs that the targets speak of."""
    measured = {row.scheme for row in rows}
    found: list[EqualKl] = []
    for text in dict.fromkeys(row.text for row in rows):
        for scheme in (name for name in OURS if name in measured):
            for rival in (name for name in RIVALS if name in measured):
                for kl in TARGET_KLS:
                    ours, theirs = bits_at(rows, scheme, text, kl), bits_at(rows, rival, text, kl)
                    ratio = None if ours is None or theirs is None else ours / theirs
                    found.append(EqualKl(text, kl, scheme, ours, rival, theirs, ratio))
    return found


def level_costs(rows: Sequence[QualityRow]) -> list[LevelCost]:
    """What each level costs more than a single-rate encoding of its KL."""
    found: list[LevelCost] = []
    if any(row.scheme == "kvloom-single-rate" for row in rows):
        for row in rows:
            if row.scheme == "kvloom":
                single = bits_at(rows, "kvloom-single-rate", row.text, row.kl)
                cost = None if single is None else row.bits_per_value - single
                found.append(LevelCost(row.text, row.level, row.kl, row.bits_per_value, single, cost))
    return found


def show(comparisons: Sequence[EqualKl], costs: Sequence[LevelCost]) -> None:
    """Print both tables."""
    if comparisons:
        print(
            "\nBits per value at equal KL\n"
            f"{'text':10} {'KL':>6} {'ours':15} {'bits':>12} {'rival':11} {'bits':>12} ratio"
        )
        for item in comparisons:
            print(
                f"{item.text:10} {item.kl:6.3f} {item.scheme:15} {_number(item.bits_per_value):>12} {item.rival:11} "
                f"{_number(item.rival_bits_per_value):>12} {'' if item.ratio is None else f'{item.ratio:.3f}'}"
            )
    if costs:
        print(
            "\nCost of levels, bits per value\n"
            f"{'text':10} {'level':10} {'KL':>9} {'bits':>8} {'single rate':>12} {'cost':>7}"
        )
        for cost in costs:
            extra = "" if cost.cost_bits_per_value is None else f"{cost.cost_bits_per_value:+.4f}"
            print(
                f"{cost.text:10} {cost.level:10} {cost.kl:9.5f} {cost.bits_per_value:8.4f} "
                f"{_number(cost.single_rate_bits_per_value):>12} {extra:>7}"
            )


def _number(bits: float | None) -> str:
    return "out of range" if bits is None else f"{bits:.4f}"
