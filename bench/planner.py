"""Measure how long the planner takes, and how far its plans are from the best there is.

    python bench/planner.py --json planner.json

Two tables. ``time``: milliseconds to plan requests of several lengths (best, median and 95th percentile of many, with
three views of the costs, as in the daemon), for an engine that takes any chunk and one that takes a prefix, with four
levels and ``exact`` over one link, with and without a floor of quality. ``gap``: time to first token over that of the
exact dynamic programme (tests/oracles/planner_oracle.py), over random requests: median, 99th percentile and worst.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracles"))

from planner_oracle import fastest, frontier

from kvloom.daemon.planner.outlook import LinkCost, Outlook, PrefillCost
from kvloom.daemon.planner.planner import make_plan
from kvloom.daemon.planner.request import Ability, BestWithin, Chunk, Executor, Fastest, Objective, Offer, PlanRequest

LEVELS = (
    ("draft", 0.05, 0.0988),
    ("economy", 0.09, 0.0268),
    ("standard", 0.15, 0.0055),
    ("fine", 0.27, 0.0014),
    ("exact", 1.0, 0.0),
)
"""Shares of the raw bytes and losses as they are measured in docs/CODEC.md."""
RAW_BYTES = 30e6
LENGTHS = (10, 100, 1000)
GOALS: dict[str, Objective] = {"no floor": Fastest(), "floor": Fastest(0.004), "objective": BestWithin(2.0, 0.03)}


@dataclass(frozen=True)
class Views:
    """Costs with a spread, as learnt ones have it."""

    outlook: Outlook
    spread: float = 1.3

    def mean(self) -> Outlook:
        return self.outlook

    def at(self, quantile: float) -> Outlook:
        factor = self.spread if quantile > 0.5 else 1 / self.spread
        links = {
            name: replace(link, byte_seconds=link.byte_seconds * factor) for name, link in self.outlook.links.items()
        }
        return replace(self.outlook, links=links)


def long_request(count: int, rng: np.random.Generator) -> PlanRequest:
    """Chunks of 256 tokens of a model of 8 billion parameters, sizes a tenth apart, and the end of the prompt."""
    chunks = [
        Chunk(
            256,
            256 * index,
            tuple(
                Offer("ssd", name, int(RAW_BYTES * share * rng.uniform(0.9, 1.1)), RAW_BYTES * 5e-11, loss)
                for name, share, loss in LEVELS
            ),
        )
        for index in range(count)
    ]
    return PlanRequest.of([*chunks, Chunk(64, 256 * count)])


def time_rows(rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for count in LENGTHS:
        request = long_request(count, np.random.default_rng(count))
        views = Views(Outlook(PrefillCost(6e-5, 2e-9, 0.005), {"ssd": LinkCost(0.001, 1e-9)}))
        for ability in Ability:
            for goal, objective in GOALS.items():
                executor = Executor(ability)
                took = []
                for _ in range(rounds):
                    begun = time.perf_counter()
                    plan = make_plan(request, views, objective, executor)
                    took.append((time.perf_counter() - begun) * 1e3)
                took.sort()
                rows.append(
                    {
                        "chunks": count,
                        "executor": ability.value,
                        "goal": goal,
                        "best_ms": round(took[0], 3),
                        "median_ms": round(statistics.median(took), 3),
                        "p95_ms": round(took[int(0.95 * len(took))], 3),
                        "ttft_over_recompute": round(plan.ttft_seconds / plan.recompute_seconds, 3),
                    }
                )
    return rows


def random_case(rng: np.random.Generator) -> tuple[list[Chunk], Outlook, Executor]:
    """A short request of which anything may be odd: sizes, holes, two links, decoding, an engine that is busy."""
    scale, path = 10 ** rng.uniform(-3, 0), str(rng.choice(["", "one"]))
    links = {
        f"link{index}": LinkCost(
            scale * rng.uniform(0, 2), scale * rng.uniform(0.1, 8) / 1e6, scale * rng.uniform(0, 1), path
        )
        for index in range(int(rng.integers(1, 3)))
    }
    token = scale / 256
    prefill = PrefillCost(token, token * rng.uniform(0, 1e-3), scale * rng.uniform(0, 1), scale * rng.uniform(0, 2))
    chunks, start = [], int(rng.integers(0, 4000))
    for _ in range(int(rng.integers(1, 8))):
        tokens = int(rng.integers(1, 512))
        offers = tuple(
            Offer(link, name, int(rng.integers(1, 2_000_000)), scale * rng.uniform(0, 0.6), loss)
            for link in links
            for name, _, loss in LEVELS[2:]
            if rng.uniform() < 0.8
        )
        chunks.append(Chunk(tokens, start, offers if rng.uniform() < 0.85 else ()))
        start += tokens
    executor = Executor(list(Ability)[int(rng.integers(2))], bool(rng.integers(2)), bool(rng.integers(2)))
    return chunks, Outlook(prefill, links), executor


def gap_rows(cases: int) -> list[dict[str, object]]:
    rng, gaps = np.random.default_rng(6), []
    for _ in range(cases):
        chunks, outlook, executor = random_case(rng)
        outcomes = frontier(chunks, outlook, executor)
        for loss_max in (float("inf"), 0.004, 0.0):
            plan = make_plan(PlanRequest.of(chunks), Views(outlook, 1.0), Fastest(loss_max), executor)
            gaps.append(plan.ttft_seconds / fastest(outcomes, loss_max))
    found = np.array(gaps)
    return [
        {
            "plans": len(gaps),
            "median": round(float(np.median(found)), 4),
            "p99": round(float(np.quantile(found, 0.99)), 4),
            "worst": round(float(found.max()), 4),
            "exact_share": round(float((found < 1 + 1e-9).mean()), 3),
        }
    ]


def show(title: str, rows: list[dict[str, object]]) -> None:
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    print(f"\n{title}")
    print("  ".join(name.rjust(width) for name, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--rounds", type=int, default=50, help="plans of each kind (default 50)")
    parser.add_argument("--cases", type=int, default=400, help="random requests (default 400)")
    asked = parser.parse_args()
    result = {"time": time_rows(asked.rounds), "gap": gap_rows(asked.cases)}
    for title, rows in result.items():
        show(title, rows)
    if asked.json is not None:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
        asked.json.write_text(json.dumps({**machine, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
