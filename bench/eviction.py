"""Replay public traces through every eviction policy and print what each saves, beside what no policy can beat.

    python bench/eviction.py --data FOLDER --json eviction.json --plot eviction.svg
    python bench/eviction.py --data FOLDER --traces synthetic --capacities 1 5       # less of it
    python bench/eviction.py --data FOLDER --rows rivals --json part.json            # and the others at another time
    python bench/eviction.py --read *.json --plot eviction.svg                       # tables of earlier runs, joined

A trace at one capacity takes 10 to 30 s of one core, so all of it ten minutes or so; every row is printed as it is
done. A trace whose files are missing is left out and named. FOLDER, by default ``../shared/data`` beside the checkout,
has ``traces/`` (Mooncake's, prefix-chained blocks) and ``qa/`` (passages for the two RAG traces). A capacity is a share
of a trace's unique blocks, all charged alike. A block is saved only where every block before it in its chain is;
seconds are those of a prefill at the stated rates, by default of Llama-3.1-8B at half of an H100's dense BF16 peak: 2
FLOP per parameter and token, and 4 per layer, hidden width, token and token of context.

``belady`` saves the most blocks of all policies. ``flow bound`` is at least what any policy saves in seconds (a
min-cost flow over the whole trace, without the rule on chains; needs ortools, of the dependency group ``bench``). Hints
are ``perfect`` (Belady's cache of the same size gives the block up before its next use), ``inverted`` (the opposite),
``over`` (never used again) or none. ``gittins-bare`` is the default policy without a chunk's attributes.
"""

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eviction_bench.hints import Hints
from eviction_bench.optimum import belady, discard_hints, over_hints, seconds_bound
from eviction_bench.plot import plot_rows
from eviction_bench.replay import Saved, replay
from eviction_bench.result import BOUND, RIVALS, Row, gains, hint_results
from eviction_bench.trace import PrefillCost, Trace, load_mooncake, load_rag

from kvloom.kvstore.eviction import (
    DEFAULT_POLICY,
    EvictionPolicy,
    GdsfPolicy,
    GittinsPolicy,
    HintedPolicy,
    LruPolicy,
    RecomputeCost,
    S3FifoPolicy,
    WTinyLfuPolicy,
)

CAPACITIES = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0)
GOAL_CAPACITY_MAX = 10.0
TRACES = ("conversation", "synthetic", "rag", "rag-standalone")
BARE = f"{DEFAULT_POLICY}-bare"
ROWS = ("rivals", "default", "bare", "hinted", "belady", "bound")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=TRACES)
    parser.add_argument("--capacities", nargs="+", type=float, default=CAPACITIES, metavar="PERCENT")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="what to replay and compute")
    parser.add_argument("--requests", type=int, metavar="N", help="only the first N of each trace")
    parser.add_argument("--parameters", type=float, default=8.03e9, help="of the model")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096, help="heads times head_dim")
    parser.add_argument("--flops", type=float, default=4.95e14, help="that prefill reaches, per second")
    parser.add_argument(
        "--read", nargs="+", type=Path, metavar="FILE", help="JSON of earlier runs, instead of measuring"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".svg or .png")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def sources(name: str, data: Path) -> list[Path]:
    """What a trace is made from."""
    if name.startswith("rag"):
        return [data / "qa" / "musique_100.json", data / "qa" / "hotpot_distractor_60.json"]
    return [data / "traces" / f"mooncake_{name}_trace.jsonl"]


def load(name: str, data: Path, cost: PrefillCost) -> Trace:
    if name.startswith("rag"):
        return load_rag(data / "qa", cost, standalone=name == "rag-standalone")
    return load_mooncake(*sources(name, data), cost)


def rivals(cost: RecomputeCost) -> dict[str, Callable[[], EvictionPolicy]]:
    return {
        "lru": LruPolicy,
        "s3-fifo": S3FifoPolicy,
        "w-tinylfu": WTinyLfuPolicy,
        "gdsf": lambda: GdsfPolicy(cost),
    }


def measure(trace: Trace, percents: Sequence[float], cost: RecomputeCost, rows: Sequence[str] = ROWS) -> Iterator[Row]:
    """Every policy at every capacity, capacity by capacity, as far as ``rows`` asks for it."""
    total_seconds, references = trace.prefill_seconds, trace.references
    bounded = "bound" in rows and importlib.util.find_spec("ortools") is not None
    if "bound" in rows and not bounded:
        print(f"  no {BOUND}: ortools is not installed")
    for percent in percents:
        capacity = max(1, int(trace.blocks * percent / 100))

        def row(policy: str, saved: Saved, hints: str = "none", percent: float = percent, size: int = capacity) -> Row:
            rate, share = saved.hits / references, saved.seconds / total_seconds
            return Row(trace.name, policy, hints, percent, size, rate, saved.seconds, share)

        if "rivals" in rows:
            for name, make in rivals(cost).items():
                yield row(name, replay(trace, make(), capacity))
        if "default" in rows:
            yield row(DEFAULT_POLICY, replay(trace, GittinsPolicy(cost), capacity))
        if "bare" in rows:
            yield row(BARE, replay(trace, GittinsPolicy(cost), capacity, attributed=False))
        if "hinted" in rows:
            perfect = discard_hints(trace, max(1, capacity - 1))
            inverted = Hints("inverted", [not discard for discard in perfect.discard])
            for hints in (perfect, inverted, over_hints(trace)):
                yield row("hinted", replay(trace, HintedPolicy(cost), capacity, hints=hints), hints.name)
        if "belady" in rows:
            yield row("belady", belady(trace, capacity))
        if bounded:
            seconds = seconds_bound(trace, capacity)
            yield Row(trace.name, BOUND, "none", percent, capacity, None, seconds, seconds / total_seconds)


def joined(reports: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[Row]]:
    """Runs of one setting as one: what they were run on, and the rows of all, in the order of the tables."""
    if any(report["prefill"] != reports[0]["prefill"] for report in reports):
        raise SystemExit("the runs have different prefill rates")
    traces = {about["name"]: about for report in reports for about in report["traces"]}
    rows = {tuple(row.values())[:4]: Row(**row) for report in reports for row in report["rows"]}
    order = [*RIVALS, DEFAULT_POLICY, BARE, "hinted", "belady", BOUND]
    report = reports[0] | {"traces": [traces[name] for name in TRACES if name in traces]}
    in_order = sorted(rows.values(), key=lambda r: (TRACES.index(r.trace), r.capacity_percent, order.index(r.policy)))
    return report, in_order


def show(rows: Sequence[Row]) -> None:
    for trace in dict.fromkeys(row.trace for row in rows):
        mine = [row for row in rows if row.trace == trace]
        percents = list(dict.fromkeys(row.capacity_percent for row in mine))
        print(f"\n{trace}: hit rate % / seconds saved %, at capacities of")
        print(f"{'':22s}" + "".join(f"{percent:11g} %" for percent in percents))
        for policy, hints in dict.fromkeys((row.policy, row.hints) for row in mine):
            cells = [row for row in mine if (row.policy, row.hints) == (policy, hints)]
            label = policy if hints == "none" else f"{policy}, {hints}"
            texts = [
                f"{'' if c.hit_rate is None else f'{100 * c.hit_rate:.1f}'} / {100 * c.saved_share:.1f}" for c in cells
            ]
            print(f"{label:22s}" + "".join(f"{text:>13s}" for text in texts))


def show_goals(rows: Sequence[Row]) -> None:
    for subject in (DEFAULT_POLICY, BARE):
        print(f"\n{subject}: seconds saved over the best of {', '.join(RIVALS)}")
        found = gains(rows, subject)
        for trace in dict.fromkeys(gain.trace for gain in found):
            mine = [gain for gain in found if gain.trace == trace]
            small = [gain.percent for gain in mine if gain.capacity_percent <= GOAL_CAPACITY_MAX]
            mean = sum(small) / len(small) if small else float("nan")
            cells = "  ".join(f"{g.capacity_percent:g} %: {g.percent:+.1f} ({g.best_rival})" for g in mine)
            print(f"  {trace:16s} mean up to {GOAL_CAPACITY_MAX:g} %: {mean:+.1f}   {cells}")
    print("\nhinted: share of the way from LRU to the bound / over LRU, %")
    results = hint_results(rows)
    for trace, hints in dict.fromkeys((item.trace, item.hints) for item in results):
        mine = [item for item in results if (item.trace, item.hints) == (trace, hints)]
        cells = "  ".join(f"{i.capacity_percent:g} %: {i.closed_percent:.0f} / {i.percent_over_lru:+.1f}" for i in mine)
        print(f"  {trace:16s} {hints:9s} {cells}")


def main() -> None:
    options = arguments()
    linear = 2.0 * options.parameters / options.flops
    quadratic = 4.0 * options.layers * options.width / options.flops
    if options.read:
        report, rows = joined([json.loads(path.read_text()) for path in options.read])
    else:
        rows = []
        report = {"machine": platform.machine(), "python": platform.python_version(), "traces": []}
        report["prefill"] = {"linear_seconds": linear, "quadratic_seconds": quadratic}
        for name in options.traces:
            if missing := [path for path in sources(name, options.data) if not path.exists()]:
                print(f"left out: {name}: {missing[0]} is not there (--data)", flush=True)
                continue
            trace = load(name, options.data, PrefillCost(linear, quadratic))
            if options.requests:
                trace = trace.head(options.requests)
            about = {"name": name, "requests": len(trace.requests), "blocks": trace.blocks}
            about |= {"references": trace.references, "prefill_seconds": trace.prefill_seconds}
            print(f"[{time.strftime('%H:%M:%S')}] {about}", flush=True)
            report["traces"].append(about)
            for row in measure(trace, options.capacities, RecomputeCost(linear / quadratic), options.rows):
                rows.append(row)
                print(f"  {row.capacity_percent:g} % {row.policy} {row.hints} {row.saved_share:.4f}", flush=True)
    if not rows:
        raise SystemExit("no trace could be replayed")
    show(rows)
    show_goals(rows)
    report["rows"] = [asdict(row) for row in rows]
    report["gains"] = [asdict(gain) for gain in gains(rows, DEFAULT_POLICY)]
    report["hints"] = [asdict(item) for item in hint_results(rows)]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot_rows(rows, options.plot)


if __name__ == "__main__":
    main()
