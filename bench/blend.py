"""Measure blending: how near to full prefill each strategy comes, at what cost, and how soon the first token is there.

    python bench/blend.py --json blend.json
    python bench/blend.py --questions 60 --shard b.jsonl --json blend.json --plot b.svg

Questions stand after 4 to 10 documents, about 1,280 tokens in all, in the model's chat template. The reference is plain
Transformers computing the whole prompt. KL (nats) is of the next-token distribution from the reference's, a mean over
the tokens of the reference's greedy answer (16 of them, 32 of a summary), with every strategy fed the same tokens.
Cost is in token-layers of full prefill's after the exact prefix: fresh tokens, scoring passes and probes are counted.
Time to first token is from decoded chunks in memory (realignment included, loading and decoding not). ``naive`` is
plain reuse of documents computed alone, the floor that ``gap_closed`` is counted from.

With ``--shard`` each result is appended to a file as it comes, and a run that was killed goes on where it was; several
files can be summed up with ``--sum``. ``--only`` takes strategy names.
"""

import argparse
import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from blend_bench.cases import DATASETS, cases_of
from blend_bench.shards import Measured, Shard, read_shards
from blend_bench.strategies import Outcome, full_outcome, outcome_of, strategies
from blend_bench.subject import Asked, Subject
from blend_bench.table import FULL, plot, rows_of, show, verdict

from kvloom.errors import MissingDependency

MODELS = ("smollm2", "gemma3")


def measure(
    model: str, dataset: str, arguments: argparse.Namespace, shard: Shard | None, found: list[Measured]
) -> None:
    """Run the cases that are not in the shard yet; what is measured is added to it and to ``found``."""
    subject = Subject(model, dataset)
    todo = [item for item in strategies(arguments.ratios) if not arguments.only or item.name in arguments.only]
    cases = cases_of(arguments.data, dataset, subject.cut)
    for case in islice(cases, arguments.first, arguments.first + arguments.questions):
        asked = Asked(subject, case)

        def is_done(strategy: str, ratio: float, index: int = case.index) -> bool:
            return shard is not None and (model, dataset, index, strategy, ratio) in shard.done

        def add(strategy: str, ratio: float, outcome: Outcome, index: int = case.index) -> None:
            item = Measured(model, dataset, index, strategy, ratio, outcome)
            found.append(item)
            if shard is not None:
                shard.add(item)

        left = [item for item in todo if not is_done(item.name, item.rule.ratio)]
        if not is_done(FULL, 1.0):
            add(FULL, 1.0, full_outcome(asked))
        for strategy in left:
            add(strategy.name, strategy.rule.ratio, outcome_of(asked, strategy))
        print(f"  {model} {dataset} {case.index}: {asked.total} tokens, {len(left)} strategies", flush=True)


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        default=Path(__file__).parents[2] / "shared" / "data",
        help="the folder of data sets (it has a qa/); default: %(default)s",
    )
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL", help="smollm2, gemma3, a folder")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--first", type=int, default=0, help="the first question")
    parser.add_argument("--questions", type=int, default=1, help="how many of each data set")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.12, 0.28])
    parser.add_argument("--only", nargs="+", help="names of strategies")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shard", type=Path)
    parser.add_argument("--sum", type=Path, nargs="+", help="sum up these shards and measure nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if not arguments.sum and not (arguments.data / "qa").is_dir():
        parser.error(f"{arguments.data} has no qa/ with questions in it: name the folder of data sets with --data")
    torch.set_num_threads(arguments.threads)
    found: list[Measured] = []
    if arguments.sum:
        found = read_shards(arguments.sum)
    else:
        shard = Shard(arguments.shard) if arguments.shard else None
        for model in arguments.models:
            try:
                for dataset in arguments.datasets:
                    measure(model, dataset, arguments, shard, found)
            except MissingDependency as error:
                print(f"{model} is left out: {error}")
        if arguments.shard:
            found = read_shards([arguments.shard])
    rows = rows_of(found)
    show(rows)
    verdict(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
