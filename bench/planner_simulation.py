r"""What the planner is held to, simulated: the traces it was tuned on, and others; every class with its spread.

    python bench/planner_simulation.py --data shared/data --json docs/measurements/planner_simulation.json \
        --plot docs/planner_simulation.svg

About three minutes of a core. For each trace, link and kind of engine: kvloom, always recomputing, always loading (as
the engine holds it, and at level ``standard``), CacheGen, the bidirectional strategy, and the optimum; ``rows`` are
those of ``kvloom simulate``. A class (by length, and by how much of the prompt was seen before) is compared with the
better of always recomputing and always loading *in that class*. ``spread`` is the standard error of that ratio, over
the paired differences of its requests. ``unserved``: the safe strategy that is
compared with takes over ten times as long as kvloom over all requests, because its link cannot carry what it asks for:
in its own run this class has the engine to itself, for others wait for the link.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kvloom.daemon.cli.simulate import Settings, bandwidth_of, staged
from kvloom.daemon.cli.simulate_plot import plot_rows
from kvloom.daemon.planner.request import Ability
from kvloom.daemon.planner.simulate import Experiment, Row, classify, strategies_for
from kvloom.daemon.planner.simulate.planned import STRATEGIES

SAFE = ("always-recompute", "always-load-raw", "always-load-level")
COMPARED = (*SAFE, "cachegen", "bidirectional")
GPU, CPU = "llama3-8b-h100", "smollm2-cpu"
TRACES = {
    "conversation": "traces/mooncake_conversation_trace.jsonl",
    "mooncake": "traces/mooncake_synthetic_trace.jsonl",
    "rag": "qa/musique_100.json",
    "synthetic": None,
}
UNSERVED = 10.0


@dataclass(frozen=True, slots=True)
class Case:
    """A trace over a link; ``held_out``: nothing was tuned on it."""

    trace: str
    link: str
    engine: str
    requests: int
    load: float = 0.5
    seed: int = 0
    held_out: bool = False


LINKS = ("congested:10Gb", "congested:25Gb", "constant:10Gb", "constant:1Gb", "saw:0.5Gb,10Gb,20", "step:10Gb,1Gb,5")
TUNED = (
    *(Case("conversation", link, GPU, 600) for link in LINKS),
    *(Case("mooncake", link, GPU, 400) for link in ("congested:10Gb", "constant:1Gb", "step:10Gb,1Gb,5")),
    *(Case("rag", link, GPU, 250) for link in ("congested:10Gb", "constant:10Gb", "step:10Gb,1Gb,5")),
    *(Case("rag", link, CPU, 200) for link in ("constant:20Mb", "lte", "saw:1Mb,50Mb,60", "step:50Mb,2Mb,10")),
)
HELD_OUT = (
    Case("conversation", "constant:3Gb", GPU, 400, 0.5, 1, True),
    Case("conversation", "step:25Gb,2Gb,2", GPU, 400, 0.7, 1, True),
    Case("conversation", "congested:5Gb", GPU, 400, 0.3, 1, True),
    Case("synthetic", "congested:10Gb", GPU, 800, 0.5, 1, True),
    Case("synthetic", "step:10Gb,0.5Gb,15", GPU, 800, 0.5, 1, True),
    Case("synthetic", "constant:2Gb", GPU, 800, 0.7, 1, True),
    Case("rag", "step:25Gb,2Gb,2", GPU, 300, 0.5, 1, True),
    Case("rag", "saw:1Gb,10Gb,5", GPU, 300, 0.3, 1, True),
    Case("rag", "congested:5Gb", GPU, 300, 0.6, 1, True),
    Case("rag", "step:20Mb,1Mb,30", CPU, 200, 0.5, 1, True),
    Case("rag", "lte:0.5", CPU, 200, 0.3, 1, True),
    Case("rag", "constant:5Mb", CPU, 200, 0.5, 1, True),
    Case("rag", "congested:40Mb", CPU, 200, 0.6, 1, True),
    # Looked at once, after everything was chosen: other seeds, links and loads.
    Case("conversation", "lte:100", GPU, 600, 0.5, 2, True),
    Case("conversation", "step:5Gb,0.5Gb,10", GPU, 600, 0.6, 2, True),
    Case("mooncake", "saw:1Gb,20Gb,30", GPU, 400, 0.6, 2, True),
    Case("synthetic", "saw:1Gb,10Gb,10", GPU, 1500, 0.5, 2, True),
    Case("rag", "constant:3Gb", GPU, 400, 0.4, 2, True),
    Case("rag", "step:30Mb,3Mb,20", CPU, 300, 0.4, 2, True),
    Case("rag", "saw:2Mb,30Mb,20", CPU, 300, 0.5, 2, True),
)


def run(asked: tuple[Case, Ability, Path, float]) -> dict[str, object]:
    """One case with one kind of engine: kvloom's row, and each class against the better of the safe strategies."""
    case, ability, data, longer = asked
    began = time.perf_counter()
    count = round(case.requests * longer)
    settings = Settings(
        case.engine, ability, "standard", None, 1e-3, None, 1, case.load, count, None, "gittins", case.seed, True
    )
    path = TRACES[case.trace]
    workload, scene = staged("synthetic" if path is None else str(data / path), settings)
    experiment = Experiment(workload, scene, case.link, bandwidth_of(case.link, case.seed), None, "gittins", case.seed)
    runs = {
        name: experiment.run(name, STRATEGIES[name], with_optimum=False) for name in strategies_for(ability, COMPARED)
    }
    others = {name: other.result.ttft_s for name, other in runs.items()}
    outcome = experiment.run("kvloom", STRATEGIES["kvloom"])
    ours = outcome.result.ttft_s
    classes = []
    for kind in classify(workload):
        means = {name: float(others[name][kind.members].mean()) for name in SAFE}
        best = min(means, key=lambda name: means[name])
        difference = ours[kind.members] - others[best][kind.members]
        classes.append(
            {
                "class": kind.name,
                "requests": len(kind.members),
                "ratio": float(ours[kind.members].mean()) / means[best],
                "spread": float(difference.std() / np.sqrt(len(kind.members))) / means[best],
                "against": best,
                "unserved": bool(others[best].mean() > UNSERVED * ours.mean()),
            }
        )
    return {
        **asdict(case),
        "requests": len(workload),
        "ability": ability.value,
        "nodes": scene.nodes,
        "optimum_ratio": outcome.row.optimum_ratio,
        "ttft_mean_s": {"kvloom": float(ours.mean()), **{name: float(each.mean()) for name, each in others.items()}},
        "rows": [asdict(row) for row in (*(other.row for other in runs.values()), outcome.row, outcome.optimum_row)],
        "classes": classes,
        "seconds": time.perf_counter() - began,
    }


def summary(found: list[dict]) -> list[dict[str, object]]:
    """What the planner is held to: for each kind of engine, on what was tuned on and on what was not."""
    rows = []
    for ability in Ability:
        for held_out in (False, True):
            here = [row for row in found if row["ability"] == ability.value and row["held_out"] is held_out]
            if not here:
                continue
            changing = [row["ttft_mean_s"] for row in here if not row["link"].startswith("constant")]
            gains = [np.log(means["cachegen"] / means["kvloom"]) for means in changing]
            classes = [item for row in here for item in row["classes"]]
            served = [item for item in classes if not item["unserved"]]
            rows.append(
                {
                    "ability": ability.value,
                    "held_out": held_out,
                    "optimum_ratio_worst": max(row["optimum_ratio"] for row in here),
                    "cachegen_ratio": float(np.exp(np.mean(gains))) if gains else 0.0,
                    "classes": len(classes),
                    "classes_above": sum(item["ratio"] > 1.02 for item in classes),
                    "classes_above_beyond_two_spreads": sum(
                        item["ratio"] - 2 * item["spread"] > 1.02 for item in classes
                    ),
                    "class_ratio_worst": max(item["ratio"] for item in classes),
                    "class_ratio_worst_served": max(item["ratio"] for item in served),
                }
            )
    return rows


def one_line(row: dict) -> str:
    worst = max(row["classes"], key=lambda item: item["ratio"])
    means = row["ttft_mean_s"]
    return (
        f"{row['ability']:10} {row['trace']:12} {row['link']:20} load {row['load']} n {row['requests']:5d} "
        f"kvloom {means['kvloom']:8.4f} s, {row['optimum_ratio']:.3f} of the optimum, "
        f"CacheGen {means['cachegen'] / means['kvloom']:5.2f}; worst class {worst['ratio']:.3f} "
        f"± {worst['spread']:.3f} (n {worst['requests']}); {row['seconds']:.1f} s"
    )


def show(found: list[dict]) -> None:
    print("\nclasses above 1.02:")
    for row in found:
        for item in row["classes"]:
            if item["ratio"] > 1.02:
                print(
                    f"  {item['ratio']:.3f} ± {item['spread']:.3f} n {item['requests']:4d} {item['class']}, against "
                    f"{item['against']}{' (unserved)' if item['unserved'] else ''}: {row['ability']}, {row['trace']}, "
                    f"{row['link']}{', held out' if row['held_out'] else ''}"
                )
    for row in summary(found):
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with traces/ and qa/")
    parser.add_argument("--json", type=Path, help="write what was found")
    parser.add_argument("--plot", type=Path, help="draw what it was tuned on (.svg, .png)")
    parser.add_argument("--longer", type=float, default=1.0, help="times as many requests of each (default 1)")
    parser.add_argument("--processes", type=int, default=1, help="cases at a time (default 1)")
    asked = parser.parse_args()
    cases = [(case, ability, asked.data, asked.longer) for case in (*TUNED, *HELD_OUT) for ability in Ability]
    found = []
    with multiprocessing.Pool(asked.processes) as pool:
        for row in pool.imap(run, cases, chunksize=1):
            found.append(row)
            print(f"{len(found)} of {len(cases)}: {one_line(row)}", flush=True)
    show(found)
    if asked.json is not None:
        record = {"longer": asked.longer, "summary": summary(found), "cases": found}
        asked.json.write_text(json.dumps(record, indent=1) + "\n")
    if asked.plot is not None:
        plot_rows([Row(**row) for case in found if not case["held_out"] for row in case["rows"]], asked.plot)


if __name__ == "__main__":
    main()
