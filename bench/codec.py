"""Measure the codec on real KV beside its rivals: size, quality and speed.

    python bench/codec.py --json FILE                     # every scheme and speed
    python bench/codec.py --full --data FOLDER --json FILE
    python bench/codec.py --speed --lmcache VENV/bin/python
    python bench/codec.py --read FILE --plot codec.svg    # of an earlier run

Without arguments: two contexts of each kind of text, from what Python carries,
some fifteen minutes on two cores, LMCache included where `make bench-peers` put it.
With --full six, as docs/CODEC.md has them: some thirty. With --data the texts
are news, code, and questions with documents. What it is at goes to stderr, and
the JSON is written anew after every context and round.

Quality is the KL divergence (nats) of the next-token distributions of the 128
tokens after a context of 768, whose KV went through the codec in chunks of 256,
from those after the unquantised KV. Bits per value count everything but what is
learnt once per model. Calibration text shares nothing with the evaluation's,
which is checked. Speed is of one real chunk, best of several rounds with
everything measured in turn in each.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from codec_bench import quality, speed, summary, verdict
from codec_bench.corpus import builtin_sources, data_sources
from codec_bench.plot import plot_quality
from codec_bench.profiles import Profiles
from codec_bench.progress import Progress
from codec_bench.quality import QualityRow
from codec_bench.reference import references
from codec_bench.schemes import Scheme, scheme_makers
from codec_bench.speed import SpeedRow
from codec_bench.subject import CALIBRATION_TOKENS, CONTEXT_TOKENS, MODELS, Subject
from codec_bench.texts import Texts, cut_all

from kvloom.codec.entropy import native

CONTEXTS, CONTEXTS_FULL = 2, 6
PEER = Path("build/peers/lmcache/bin/python")
"""Where `make bench-peers` puts LMCache."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quality", action="store_true", help="only this, unless --speed is given too")
    add("--speed", action="store_true", help="only this, unless --quality is given too")
    add("--full", action="store_true", help=f"{CONTEXTS_FULL} contexts of each kind of text")
    add("--model", choices=MODELS, default="smollm2")
    add("--data", type=Path, metavar="FOLDER", help="data sets, see corpus.py")
    add("--contexts", type=int, metavar="N", help=f"of each kind of text, {CONTEXTS} without it")
    add("--sequences", type=int, metavar="N", help="of calibration text, at most")
    add("--schemes", nargs="+", choices=scheme_makers("smollm2"), metavar="SCHEME")
    add("--cache", type=Path, metavar="FOLDER", default=Path("build/codec-bench"))
    add("--threads", type=int, metavar="N", help="of the model; without it, all cores")
    add("--rounds", type=int, metavar="N", default=7, help="of the speed measurement")
    add("--lmcache", type=Path, metavar="PYTHON", help=f"that has LMCache 0.5.6; {PEER} if there")
    add("--read", type=Path, metavar="FILE", help="an earlier run's JSON, measures nothing")
    add("--plot", type=Path, metavar="FILE", help="rate-distortion plot, .svg or .png")
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def chosen_schemes(subject: Subject, profiles: Profiles, names: list[str] | None) -> dict[str, list[Scheme]]:
    """Every scheme asked for, all without ``names``."""
    makers = scheme_makers(subject.name)
    return {name: make(profiles) for name, make in makers.items() if names is None or name in names}


def texts_report(texts: Texts) -> dict[str, Any]:
    """Which texts were used, to be compared between runs."""
    return {
        "source": texts.name,
        "contexts": {kind.value: len(contexts) for kind, contexts in texts.evaluation.items()},
        "evaluation_digest": texts.evaluation_digest,
        "calibration_sequences": len(texts.calibration),
        "calibration_digest": texts.calibration_digest,
    }


def measure(options: argparse.Namespace, progress: Progress) -> Iterator[dict[str, Any]]:
    """Run what was asked for: the report, as far as it has come, again and again."""
    both = not (options.quality or options.speed)
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    progress.say(f"loading {options.model}")
    subject = Subject.load(options.model)
    contexts = options.contexts or (CONTEXTS_FULL if options.full else CONTEXTS)
    texts = cut_all(
        data_sources(options.data, contexts) if options.data else builtin_sources(contexts),
        subject.tokenizer,
        context_tokens=CONTEXT_TOKENS,
        calibration_tokens=CALIBRATION_TOKENS,
        sequences_max=options.sequences,
    )
    profiles = Profiles(subject, texts, options.cache, progress)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "core": native.DESCRIPTION}
    report: dict[str, Any] = {"model": subject.name, "machine": machine, "texts": texts_report(texts)}
    if options.quality or both:
        schemes = chosen_schemes(subject, profiles, options.schemes)
        count = sum(map(len, texts.evaluation.values()))
        profiles.release()
        evaluated = references(subject, texts, options.cache)
        for rows in quality.measure(subject, schemes, evaluated, count, progress):
            yield report | {"quality": [asdict(row) for row in rows]}
        report["quality"] = [asdict(row) for row in rows]
    if options.speed or both:
        lmcache = options.lmcache or (PEER if PEER.exists() else None)
        if lmcache is None:
            progress.say(f"LMCache is not measured: no {PEER} (make bench-peers), and no --lmcache PYTHON")
        for timed in speed.measure(subject, texts, profiles, options.cache, options.rounds, lmcache, progress):
            yield report | {"speed": [asdict(row) for row in timed]}
        report["speed"] = [asdict(row) for row in timed]
    yield report | {"seconds": round(progress.seconds)}


def concluded(report: dict[str, Any], *, shown: bool, plot: Path | None = None) -> dict[str, Any]:
    """The report with what its rows say; where ``shown``, tables on stdout, and ``plot`` drawn."""
    rows = [QualityRow(**row) for row in report.get("quality", ())]
    timed = [SpeedRow(**row) for row in report.get("speed", ())]
    comparisons, costs = summary.equal_kl(rows), summary.level_costs(rows)
    verdicts = [*verdict.of_quality(rows, comparisons, costs), *verdict.of_speed(timed)]
    if shown and rows:
        quality.show(rows)
        summary.show(comparisons, costs)
    if shown and timed:
        speed.show(timed)
    if shown:
        verdict.show(verdicts)
    if plot and rows:
        plot_quality(rows, plot)
    found = {"equal_kl": comparisons, "level_costs": costs, "verdicts": verdicts}
    return report | {name: [asdict(item) for item in items] for name, items in found.items() if items}


def main() -> None:
    options = arguments()
    report: dict[str, Any] = {}
    for report in [json.loads(options.read.read_text())] if options.read else measure(options, Progress()):
        if options.json:
            draft = options.json.with_name(options.json.name + ".part")
            draft.write_text(json.dumps(concluded(report, shown=False), indent=1) + "\n")
            draft.replace(options.json)
    concluded(report, shown=True, plot=options.plot)


if __name__ == "__main__":
    main()
