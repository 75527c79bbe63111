"""Measure the codec on real KV against its rivals: size and quality of each level, and speed of each execution.

    python bench/codec.py --json codec.json                          # both, on texts that Python carries
    python bench/codec.py --quality --data FOLDER --plot codec.svg   # on news, code, and questions with documents
    python bench/codec.py --speed --lmcache VENV/bin/python          # LMCache's CacheGen in the same run
    python bench/codec.py --read codec.json --plot codec.svg         # tables and plot of an earlier run

Quality is the KL divergence (nats) of the next-token distributions of the 128 tokens after a context of 768 whose KV
went through the codec in chunks of 256, from those after the unquantised KV. Bits per value count everything but what
is learnt once per model. Calibration text shares nothing with the evaluation's, which is checked. Speed is of one real
chunk, best of several rounds with everything measured in turn in each.
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from codec_bench import quality, speed, summary
from codec_bench.corpus import builtin_sources, data_sources
from codec_bench.plot import plot_quality
from codec_bench.profiles import Profiles
from codec_bench.quality import QualityRow
from codec_bench.reference import references
from codec_bench.schemes import Scheme, scheme_makers
from codec_bench.subject import CALIBRATION_TOKENS, CONTEXT_TOKENS, MODELS, Subject
from codec_bench.texts import Texts, cut_all

from kvloom.codec.entropy import native


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="store_true", help="only this, unless --speed is given too")
    parser.add_argument("--speed", action="store_true", help="only this, unless --quality is given too")
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="data sets; without it, what Python carries")
    parser.add_argument("--contexts", type=int, default=6, help="contexts of each kind of text")
    parser.add_argument("--sequences", type=int, metavar="N", help="of calibration text, at most; all without it")
    parser.add_argument("--schemes", nargs="+", choices=scheme_makers("smollm2"), metavar="SCHEME")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", default=Path("build/codec-bench"))
    parser.add_argument("--threads", type=int, default=1, help="of torch; the model is run with these")
    parser.add_argument("--rounds", type=int, default=7, help="of the speed measurement")
    parser.add_argument("--lmcache", type=Path, metavar="PYTHON", help="of an environment that has LMCache 0.5.6")
    parser.add_argument("--read", type=Path, metavar="FILE", help="the JSON of an earlier run, instead of measuring")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="rate-distortion plot, .svg or .png")
    parser.add_argument("--json", type=Path, metavar="FILE")
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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked for; the report as it is written."""
    both = not (options.quality or options.speed)
    torch.set_num_threads(options.threads)
    subject = Subject.load(options.model)
    sources = data_sources(options.data, options.contexts) if options.data else builtin_sources(options.contexts)
    texts = cut_all(
        sources,
        subject.tokenizer,
        context_tokens=CONTEXT_TOKENS,
        calibration_tokens=CALIBRATION_TOKENS,
        sequences_max=options.sequences,
    )
    profiles = Profiles(subject, texts, options.cache)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "core": native.DESCRIPTION}
    report: dict[str, Any] = {"model": subject.name, "machine": machine, "texts": texts_report(texts)}
    if options.quality or both:
        schemes = chosen_schemes(subject, profiles, options.schemes)
        rows = quality.measure(subject, schemes, references(subject, texts, options.cache))
        report["quality"] = [asdict(row) for row in rows]
    if options.speed or both:
        speed_rows = speed.measure(subject, texts, profiles, options.cache, options.rounds, options.lmcache)
        speed.show(speed_rows)
        report["speed"] = [asdict(row) for row in speed_rows]
    return report


def main() -> None:
    options = arguments()
    report = json.loads(options.read.read_text()) if options.read else measure(options)
    rows = [QualityRow(**row) for row in report.get("quality", ())]
    if rows:
        comparisons, costs = summary.equal_kl(rows), summary.level_costs(rows)
        quality.show(rows)
        summary.show(comparisons, costs)
        report["equal_kl"] = [asdict(item) for item in comparisons]
        report["level_costs"] = [asdict(item) for item in costs]
        if options.plot:
            plot_quality(rows, options.plot)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
