"""Measure what the codec's levels do to a model's answers: the score of real question-answering data.

    python bench/codec_qa.py --json qa.json --data FOLDER --dataset nq-oracle --questions 500
    python bench/codec_qa.py --json qa.json --data FOLDER ... --shard 1/2     # one half; the other elsewhere

Each question is answered greedily twice or more from the very same prompt: from the cache that the model computed of
the documents, and from what is left of it after encoding, truncating to a level and decoding, in chunks of 256 tokens.
Scores are compared question by question, with a bootstrap interval over questions. Every answer is appended to
``FILE.I-of-N.jsonl`` when it is there, so a run that was stopped goes on where it was, and the shards beside each other
make one result: ``FILE`` is written from all of them.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec_bench.answers import REFERENCE, Answer, Answerer
from codec_bench.corpus import data_sources
from codec_bench.profiles import Profiles
from codec_bench.questions import DATASETS, Question, questions_of, scores_of
from codec_bench.subject import CALIBRATION_TOKENS, CONTEXT_TOKENS, MODELS, Subject
from codec_bench.texts import cut_all
from json_lines import append_line, mend, whole_lines

from kvloom.codec import parse_level

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """One level on one data set by one score; the benchmark's own has ``own`` true. Changes are relative."""

    model: str
    dataset: str
    level: str
    score: str
    own: bool
    questions: int
    bits_per_value: float
    unquantised: float
    coded: float
    change: float | None
    change_ci95_low: float | None
    change_ci95_high: float | None
    same_answer: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--dataset", choices=DATASETS, default="nq-oracle")
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--levels", nargs="+", default=["standard"], metavar="LEVEL")
    parser.add_argument("--questions", type=int, default=200, help="the first so many of the data set")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every Nth question, from the Ith on")
    parser.add_argument("--answer-tokens", type=int, default=12, help="at most")
    parser.add_argument("--document-tokens", type=int, default=1536, help="of all of a question's documents together")
    parser.add_argument("--sequences", type=int, metavar="N", help="of calibration text, at most; all without it")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", default=Path("build/codec-bench"))
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read_answers(options: argparse.Namespace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of all shards; ends the program where one was made with other settings."""
    lines: list[dict[str, Any]] = []
    for path in sorted(options.json.parent.glob(f"{options.json.name}.*-of-*.jsonl")):
        for line in whole_lines(path):
            if line["settings"] != settings:
                raise SystemExit(f"{path} holds answers of other settings, {line['settings']}: move it away")
            lines.append(line)
    return lines


def answer_all(
    questions: Sequence[Question], answerer: Answerer, path: Path, done: set[str], settings: dict[str, Any]
) -> None:
    """Answer the questions that are not ``done`` and append each to ``path``."""
    mend(path)
    todo = [question for question in questions if question.name not in done]
    for number, question in enumerate(todo):
        answers = {name: asdict(answer) for name, answer in answerer.answers(question).items()}
        line = {"settings": settings, "question": question.name, "right": question.answers, "answers": answers}
        append_line(path, line)
        if number % 20 == 0:
            print(
                f"  {number + 1} of {len(todo)}: {question.question[:60]} {answers[REFERENCE]['text']!r}",
                flush=True,
            )


def rows_of(lines: Sequence[dict[str, Any]], options: argparse.Namespace) -> Iterator[Row]:
    """A row per level and score."""
    seen = {line["question"]: line for line in lines}.values()
    for level in options.levels:
        reference = [Answer(**line["answers"][REFERENCE]) for line in seen]
        coded = [Answer(**line["answers"][level]) for line in seen]
        before, after = (
            [scores_of(answer.text, line["right"]) for answer, line in zip(answers, seen, strict=True)]
            for answers in (reference, coded)
        )
        for score in ("f1", "exact_match", "best_subspan_em"):
            pairs = np.array([[getattr(a, score), getattr(b, score)] for a, b in zip(before, after, strict=True)])
            low, high = bootstrap(pairs)
            unquantised, kept = pairs.mean(axis=0).tolist()
            yield Row(
                model=options.model,
                dataset=options.dataset,
                level=level,
                score=score,
                own=score == DATASETS[options.dataset],
                questions=len(seen),
                bits_per_value=float(np.mean([answer.bits_per_value for answer in coded])),
                unquantised=unquantised,
                coded=kept,
                change=kept / unquantised - 1 if unquantised else None,
                change_ci95_low=low,
                change_ci95_high=high,
                same_answer=float(np.mean([a.text == b.text for a, b in zip(reference, coded, strict=True)])),
            )


def bootstrap(pairs: np.ndarray) -> tuple[float | None, float | None]:
    """95 % interval of the relative change of the mean of ``pairs`` ``[questions, 2]``, questions drawn anew."""
    rng = np.random.default_rng(0)
    means = np.stack([pairs[rng.integers(0, len(pairs), len(pairs))].mean(axis=0) for _ in range(RESAMPLES)])
    means = means[means[:, 0] > 0]
    if not len(means):
        return None, None
    low, high = np.quantile(means[:, 1] / means[:, 0] - 1, [0.025, 0.975])
    return float(low), float(high)


def show(rows: Sequence[Row]) -> None:
    print(
        f"{'dataset':10} {'level':9} {'score':16} {'n':>5} {'bits/value':>10} {'before':>8} {'after':>8} "
        f"{'change':>8}  95 % interval        same answer"
    )
    for row in rows:
        change, low, high = (
            "" if item is None else f"{item:+.2%}" for item in (row.change, row.change_ci95_low, row.change_ci95_high)
        )
        print(
            f"{row.dataset:10} {row.level:9} {row.score + ' *' * row.own:16} {row.questions:5} "
            f"{row.bits_per_value:10.3f} {row.unquantised:8.4f} "
            f"{row.coded:8.4f} {change:>8}  {low:>8} … {high:<8}  {row.same_answer:9.1%}"
        )
    print("* the score that the data set's benchmark reports")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    subject = Subject.load(options.model)
    texts = cut_all(
        data_sources(options.data, 6),
        subject.tokenizer,
        context_tokens=CONTEXT_TOKENS,
        calibration_tokens=CALIBRATION_TOKENS,
        sequences_max=options.sequences,
    )
    profile = Profiles(subject, texts, options.cache).kvloom()
    settings = {
        "model": subject.name,
        "dataset": options.dataset,
        "levels": options.levels,
        "document_tokens": options.document_tokens,
        "answer_tokens": options.answer_tokens,
        "profile": profile.digest.hex()[:32],
    }
    shard, shards = map(int, options.shard.split("/"))
    chosen = questions_of(options.data, options.dataset)[: options.questions][shard - 1 :: shards]
    answerer = Answerer(
        subject,
        profile,
        [parse_level(name) for name in options.levels],
        document_tokens=options.document_tokens,
        answer_tokens=options.answer_tokens,
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    done = {line["question"] for line in read_answers(options, settings)}
    own = options.json.with_name(f"{options.json.name}.{shard}-of-{shards}.jsonl")
    answer_all(chosen, answerer, own, done, settings)
    rows = list(rows_of(read_answers(options, settings), options))
    show(rows)
    options.json.write_text(
        json.dumps(
            {"settings": settings, "calibration": texts.calibration_digest, "rows": [asdict(row) for row in rows]},
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
