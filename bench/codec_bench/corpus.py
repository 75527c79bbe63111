"""Which texts are evaluated and which calibrate: from what Python carries, or from a folder of data sets.

The folder's ``qa/`` holds LongBench's multi_news, HippoRAG's 2Wiki passages, and the questions of :mod:`.questions`.
Candidates for calibration that share a run of words with any evaluation text, or any document that questions are asked
about, are passed over, so the final check of token ids finds nothing.
"""

import json
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from .questions import DATASETS, questions_of
from .texts import SHINGLE_WORDS, Sources, TextKind, shingles, words_of

CALIBRATION_CHARACTERS = 9000
"""Enough for 1,024 tokens of anything."""
CONTEXT_CHARACTERS = 9000
EVALUATED_MODULES = (
    *("difflib", "http/client", "statistics", "unittest/case", "turtle", "imaplib"),
    *("optparse", "smtplib", "ftplib", "doctest", "ipaddress", "configparser"),
)
CALIBRATING_MODULES = (
    *("argparse", "asyncio/base_events", "subprocess", "tarfile"),
    *("typing", "zipfile", "email/message", "logging/__init__"),
)
PYDOC_SEQUENCES, PASSAGE_SEQUENCES = 8, 12
PYDOC_EVALUATED = 2
"""Of the topics of pydoc, each this manyeth is kept for evaluation where nothing else is there."""
_SEED = 0
_DEFINITION = re.compile(r"^(class|def) ", re.MULTILINE)


def builtin_sources(contexts: int) -> Sources:
    """Texts that every Python carries: the language reference (prose, documents) and the library (code)."""
    names = sorted(topics)
    evaluated = names[::PYDOC_EVALUATED]
    prose = _spread("\n\n".join(topics[name] for name in evaluated[::2]), contexts)
    asked = [name for name in evaluated[1::2] if len(topics[name]) > CONTEXT_CHARACTERS // 2]
    documents, tails = [], []
    for place in range(contexts):
        name, other = asked[place % len(asked)], asked[(place + 1) % len(asked)]
        documents.append("\n\n".join([topics[name][:CONTEXT_CHARACTERS], topics[other][:CONTEXT_CHARACTERS]]))
        sentence = " ".join(topics[name].partition("\n\n")[2].split(". ")[0].split()[:25])
        tails.append(f"\n\nQuestion: What is the rule about {name} in Python?\nAnswer: {sentence}.")
    evaluation = {TextKind.PROSE: prose, TextKind.CODE: _code(contexts), TextKind.DOCUMENTS: documents}
    held = _runs(text for texts in evaluation.values() for text in texts)
    reference = "\n\n".join(_unseen((topics[name] for name in names), held))
    calibration = _spread(reference, PYDOC_SEQUENCES) + _library(CALIBRATING_MODULES)
    return Sources("python", evaluation, calibration, _tails(evaluation, tails))


def data_sources(folder: Path, contexts: int) -> Sources:
    """News, library modules, and MuSiQue's passages with their question; calibrated on pydoc, modules and 2Wiki."""
    news = [json.loads(line) for line in (folder / "qa/longbench_multi_news.jsonl").read_text().splitlines()]
    chosen = [item["context"].replace("NEWLINE_CHAR", "\n") for item in news]
    prose = _every([text for text in chosen if len(text) > CONTEXT_CHARACTERS], contexts)
    questions = _every(json.loads((folder / "qa/musique_100.json").read_text()), contexts)
    documents = ["\n\n".join(_passage(item) for item in question["ctxs"]) for question in questions]
    tails = [f"\n\nQuestion: {question['question']}\nAnswer: {question['answers'][0]}" for question in questions]
    evaluation = {TextKind.PROSE: prose, TextKind.CODE: _code(contexts), TextKind.DOCUMENTS: documents}
    asked_about = [text for name in DATASETS for item in questions_of(folder, name) for text in item.texts]
    held = _runs([*(text for texts in evaluation.values() for text in texts), *asked_about])
    # MuSiQue's passages come without titles, so a title is looked for in their text.
    said = " ".join(words_of(" ".join(asked_about)))
    passages = json.loads((folder / "qa/2wikimultihopqa_corpus.json").read_text())
    order = np.random.default_rng(_SEED).permutation(len(passages))
    untold = (passages[place] for place in order if " ".join(words_of(passages[place]["title"])) not in said)
    wiki = "\n\n".join(_unseen(map(_passage, untold), held, PASSAGE_SEQUENCES * CALIBRATION_CHARACTERS))
    reference = "\n\n".join(_unseen((topics[name] for name in sorted(topics)), held))
    calibration = [
        *_spread(reference, PYDOC_SEQUENCES),
        *_library(CALIBRATING_MODULES),
        *_spread(wiki, PASSAGE_SEQUENCES),
    ]
    return Sources("data sets", evaluation, calibration, _tails(evaluation, tails))


def _code(contexts: int) -> list[str]:
    if contexts > len(EVALUATED_MODULES):
        raise SystemExit(f"{contexts} contexts of code asked for, there are {len(EVALUATED_MODULES)}")
    return _library(EVALUATED_MODULES[:contexts])


def _library(names: Iterable[str]) -> list[str]:
    """The standard library's modules from their first class or function on."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for name in names:
        text = (folder / f"{name}.py").read_text()
        first = _DEFINITION.search(text)
        start = first.start() if first else 0
        found.append(text[start : start + CALIBRATION_CHARACTERS])
    return found


def _passage(item: dict[str, str]) -> str:
    return f"{item['title']}\n{item['text']}" if item["title"] else item["text"]


def _every(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` items spread evenly over all."""
    if count > len(items):
        raise SystemExit(f"{count} contexts asked for, there are {len(items)}")
    return [items[len(items) * place // count] for place in range(count)]


def _spread(text: str, count: int) -> list[str]:
    """``count`` pieces of ``text`` at even distances."""
    distance = len(text) // count
    if distance < CALIBRATION_CHARACTERS // 2:
        raise SystemExit(f"{len(text)} characters are too few for {count} sequences")
    return [text[place * distance :][: min(distance, CALIBRATION_CHARACTERS)] for place in range(count)]


def _runs(texts: Iterable[str]) -> set[int]:
    """Hashes of all runs of words of ``texts``."""
    return {hash(run) for text in texts for run in shingles(words_of(text), SHINGLE_WORDS)}


def _unseen(texts: Iterable[str], held: set[int], characters: int | None = None) -> Iterator[str]:
    """Those ``texts`` that have none of the runs of words ``held``, until there are ``characters`` of them."""
    taken = 0
    for text in texts:
        if characters is not None and taken >= characters:
            return
        if held.isdisjoint(map(hash, shingles(words_of(text), SHINGLE_WORDS))):
            taken += len(text)
            yield text


def _tails(evaluation: dict[TextKind, list[str]], documents: list[str]) -> dict[TextKind, list[str]]:
    return {kind: documents if kind == TextKind.DOCUMENTS else [""] * len(texts) for kind, texts in evaluation.items()}
