"""Whether the rows reach what was asked of the codec, goal by goal."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .quality import QualityRow
from .speed import SpeedRow
from .summary import EqualKl, LevelCost

LEVELS = ("draft", "economy", "standard", "fine")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, what was measured of it, and whether it is reached: ``least`` says that only the least acceptable is."""

    goal: str
    measured: str
    reached: str


def of_quality(
    rows: Sequence[QualityRow], comparisons: Sequence[EqualKl], costs: Sequence[LevelCost]
) -> Iterator[Verdict]:
    """Of size at equal quality, overhead, levels and ``exact``; nothing of what was not measured."""
    for scheme, rival, goal, least in (
        ("kvloom", "cachegen", 1 / 3, 0.4),
        ("kvloom", "kivi", 1.0, 1.0),
        ("kvloom", "turboquant", 1.0, 1.0),
        ("kvloom-generic", "cachegen", 1.0, 1.0),
    ):
        found = [item for item in comparisons if (item.scheme, item.rival) == (scheme, rival)]
        ratios = [item.ratio for item in found if item.ratio is not None]
        if ratios:
            worst = max(ratios)
            measured = f"{min(ratios):.2f} to {worst:.2f}, {len(ratios)} of {len(found)} points in reach of both"
            reached = "yes" if worst <= goal else "least" if worst <= least else "no"
            yield Verdict(f"{scheme}: bits over {rival}'s at equal KL, at most {goal:.2g}", measured, reached)
    for scheme in ("kvloom", "kvloom-generic"):
        sides = [row.side_bits_per_value for row in rows if row.scheme == scheme]
        yield from _at_most(f"{scheme}: side information, bits per value", 0.06, [item for item in sides if item])
    yield from _at_most(
        "bits per value of a level over those of a single rate",
        0.15,
        [item.cost_bits_per_value for item in costs if item.cost_bits_per_value is not None],
    )
    for dtype, raw_bits, goal in (("bfloat16", 16, 1.45), ("float16", 16, 1.15)):
        exact = [raw_bits / row.bits_per_value for row in rows if row.level == f"exact {dtype}"]
        yield from _at_least(f"exact {dtype}: times smaller", goal, exact)


def of_speed(rows: Sequence[SpeedRow]) -> Iterator[Verdict]:
    """Of Gvalue/s on one core, and of how many times a rival's that is."""
    speeds = {(row.implementation, row.stage): row.gvalues_per_s for row in rows if row.cores == 1}
    paths = [name for name in dict.fromkeys(name for name, _ in speeds) if name.startswith("avx")]
    for path in paths:
        entropy = {stage: speed for (name, stage), speed in speeds.items() if name == path and "entropy dec" in stage}
        yield from _at_least(f"{path}: entropy decode", 0.4 if path == "avx2" else 1.0, entropy.values())
        lossless = [speed for (name, stage), speed in speeds.items() if name == path and "decode exact" in stage]
        yield from _at_least(f"{path}: decode exact", 0.25, lossless)
        generic = {level: speeds[path, f"decode {level} generic"] for level in LEVELS}
        yield from _at_least(f"{path}: decode of the generic profile", 0.25, generic.values())
        yield from _at_least(f"{path}: decode standard, calibrated", 0.08, [speeds[path, "decode standard"]])
        for rival in ("constriction ANS", "constriction range"):
            times = [speed / speeds[rival, stage] for stage, speed in entropy.items() if (rival, stage) in speeds]
            yield from _at_least(f"{path}: times {rival}, entropy decode", 10.0, times)
        for level, speed in generic.items():
            theirs = speeds.get(("cachegen (LMCache)", "decode"))
            goal = f"{path}: times LMCache's CacheGen, decode {level} generic"
            if theirs is None:
                yield Verdict(f"{goal}, at least 30", "not measured: --lmcache PYTHON", "")
            else:
                yield from _at_least(goal, 30.0, [speed / theirs])


def show(verdicts: Sequence[Verdict]) -> None:
    """Print them."""
    print(f"\n{'goal':74} {'reached':7} measured")
    for item in verdicts:
        print(f"{item.goal:74} {item.reached:7} {item.measured}")


def _at_most(what: str, goal: float, found: Iterable[float]) -> Iterator[Verdict]:
    numbers = sorted(found)
    if numbers:
        yield Verdict(f"{what}, at most {goal:g}", _range(numbers), "yes" if numbers[-1] <= goal else "no")


def _at_least(what: str, goal: float, found: Iterable[float]) -> Iterator[Verdict]:
    numbers = sorted(found)
    if numbers:
        yield Verdict(f"{what}, at least {goal:g}", _range(numbers), "yes" if numbers[0] >= goal else "no")


def _range(numbers: Sequence[float]) -> str:
    low, high = (f"{number:.3g}" for number in (numbers[0], numbers[-1]))
    return low if low == high else f"{low} to {high}"
