"""Measure blending: how near to full prefill each rule comes, at what cost, and how soon the first token is there.

    python bench/blend.py --json blend.json
    python bench/blend.py --hotpot ../shared/data/qa/hotpot_distractor_60.json --questions 24 --ratios 0.15 0.3

Every question stands after 4 documents of about 256 tokens, in the model's chat template. The reference is plain
Transformers computing the whole prompt; time to first token is taken in one process, each way in turn, from decoded
chunks in memory (realignment included, loading and decoding not). KL (nats) is of the next-token distribution from
the reference's: of the first token, and as a mean over the first 16 tokens of the reference's answer. Documents are
precomputed in two ways: ``standalone`` (from position 0, nothing before them) and ``after-prefix`` (after the exact
prefix that every prompt begins with; whichever comes first in a prompt is then exact and never recomputed).
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch

from kvloom.blend import AllTokens, BlendCache, Blended, Blender, BlendRequest, KvCache, PlacedChunk, SelectionRule
from kvloom.blend.select import selection_rule
from kvloom.clients.rag import Document
from kvloom.clients.rag.documents import Prompt, PromptTemplate
from kvloom.clients.transformers import extract, load_smollm2, model_layout, prefill

DOCUMENTS, DOCUMENT_TOKENS, ANSWER_TOKENS = 4, 256, 16
STRATEGIES_PER_REFERENCE = 3
"""The reference is timed anew before every so many blends, so that both see the same machine."""
STANDALONE, AFTER_PREFIX = "standalone", "after-prefix"


@dataclass(frozen=True)
class Row:
    """One strategy over all questions of a data set; means, but medians of times."""

    model: str
    dataset: str
    n: int
    strategy: str
    precomputed: str
    ratio: float
    token_layer_cost: float
    kl: float
    kl_answer: float
    kl_answer_ci95: float
    gap_closed: float
    first_token_agreement: float
    answer_agreement: float
    ttft_s: float
    ttft_ratio: float


@dataclass(frozen=True)
class Case:
    """A question and its documents, cut to size."""

    question: str
    documents: tuple[Document, ...]


@dataclass
class Seen:
    """What one strategy did, question by question."""

    cost: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    kl_answer: list[float] = field(default_factory=list)
    first: list[bool] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Strategy:
    """A rule, and how the documents it is given were computed."""

    name: str
    precomputed: str
    rule: SelectionRule


class Subject:
    """The model, and the ways to the first token of a prompt."""

    def __init__(self) -> None:
        loaded = load_smollm2()
        self.name = loaded.folder.name.split(".Q")[0]
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.layout = model_layout(self.model)
        self.template = PromptTemplate(self.tokenizer)
        self.blender = Blender(self.model, self.layout)
        self.prefix = prefill(self.model, self.template.prefix, cache=KvCache(self.layout, len(self.template.prefix)))

    def cut(self, title: str, text: str) -> Document:
        """A document of at most ``DOCUMENT_TOKENS`` tokens."""
        ids = self.template.tokenise(text)[: DOCUMENT_TOKENS - 12]
        return Document(self.tokenizer.decode(ids), title)

    @torch.inference_mode()
    def full(self, prompt: Prompt) -> Blended:
        """Plain Transformers: compute everything."""
        output = self.model(input_ids=torch.from_numpy(prompt.token_ids)[None], use_cache=True, logits_to_keep=1)
        return Blended(output.past_key_values, output.logits[0, -1], None)  # type: ignore[arg-type]

    def request(self, prompt: Prompt, precomputed: str) -> BlendRequest:
        """The prompt with its documents precomputed one way."""
        prefix_tokens = prompt.prefix_tokens
        chunks = [PlacedChunk(0, prefix_tokens, *extract(self.prefix, 0, prefix_tokens), first_position=0)]
        for span in prompt.spans:
            ids, length = prompt.tokens_of(span), span.stop - span.start
            before = self.template.prefix if precomputed == AFTER_PREFIX else ids[:0]
            cache = prefill(self.model, np.concatenate([before, ids]), cache=KvCache(self.layout, len(before) + length))
            keys, values = extract(cache, len(before), len(before) + length)
            chunks.append(PlacedChunk(span.start, length, keys, values, first_position=len(before)))
        if precomputed == AFTER_PREFIX:
            prefix_tokens = chunks[1].stop
        return BlendRequest(prompt.token_ids, prefix_tokens, tuple(chunks))

    @torch.inference_mode()
    def answer(self, cache: BlendCache, logits: torch.Tensor) -> list[int]:
        """The first tokens of the greedy answer."""
        found = [int(logits.argmax())]
        while len(found) < ANSWER_TOKENS:
            output = self.model(input_ids=torch.tensor([found[-1:]]), past_key_values=cache, use_cache=True)
            found.append(int(output.logits[0, -1].argmax()))
        return found

    @torch.inference_mode()
    def following(self, result: Blended, answer: list[int], tokens: int) -> torch.Tensor:
        """Log-probabilities ``[ANSWER_TOKENS, vocabulary]`` of each token of ``answer`` after those before it."""
        result.cache.crop(tokens - result.cache.get_seq_length())
        rest = torch.tensor([answer[:-1]])
        logits = self.model(input_ids=rest, past_key_values=result.cache, use_cache=True).logits[0]
        return torch.cat([result.logits[None], logits]).double().log_softmax(-1)


def pydoc_cases(subject: Subject, count: int, seed: int) -> Iterator[Case]:
    """Questions about one of four topics of the Python language reference."""
    names = [name for name in sorted(topics) if len(topics[name]) > 1500]
    rng = np.random.default_rng(seed)
    for _ in range(count):
        chosen = [names[index] for index in rng.choice(len(names), DOCUMENTS, replace=False)]
        asked = chosen[int(rng.integers(DOCUMENTS))].replace("-", " ").lower()
        documents = tuple(subject.cut(f"About {name}", topics[name]) for name in chosen)
        yield Case(f"In Python, what is the rule about {asked}? Explain it in one sentence.", documents)


def hotpot_cases(subject: Subject, path: Path, count: int) -> Iterator[Case]:
    """HotpotQA's distractor setting: ten paragraphs packed into four documents, the two that matter in two of them."""
    for item in json.loads(path.read_text())[:count]:
        context, needed = item["context"], set(item["supporting_facts"]["title"])
        texts = {t: t + ": " + "".join(s).strip() for t, s in zip(context["title"], context["sentences"], strict=True)}
        order = sorted(texts, key=lambda title: title not in needed)
        packed: list[list[str]] = [[] for _ in range(DOCUMENTS)]
        for place, title in zip((1, 3, 0, 2) * 3, order, strict=False):
            packed[place].append(texts[title])
        documents = tuple(subject.cut(f"Passage {n + 1}", "\n".join(parts)) for n, parts in enumerate(packed))
        yield Case(item["question"], documents)


def measure(subject: Subject, cases: Iterator[Case], strategies: list[Strategy]) -> dict[str, dict[Strategy, Seen]]:
    """Run every case; the reference's times stand under ``full`` and are taken once per strategy, in turn with it."""
    seen = {strategy: Seen() for strategy in strategies}
    reference = {strategy: Seen() for strategy in strategies}
    for case in cases:
        prompt = subject.template.prompt(case.question, case.documents)
        total = len(prompt.token_ids)
        truth = subject.full(prompt)
        answer = subject.answer(truth.cache, truth.logits)
        expected = subject.following(truth, answer, total)
        full_s = 0.0
        requests = {way: subject.request(prompt, way) for way in (STANDALONE, AFTER_PREFIX)}
        for turn, strategy in enumerate(strategies):
            started = time.perf_counter()
            if turn % STRATEGIES_PER_REFERENCE == 0:
                subject.full(prompt)
                full_s, started = time.perf_counter() - started, time.perf_counter()
            result = subject.blender.blend(requests[strategy.precomputed], strategy.rule)
            seen[strategy].ttft_s.append(time.perf_counter() - started)
            reference[strategy].ttft_s.append(full_s)
            found = subject.following(result, answer, total)
            kl = (expected.exp() * (expected - found)).sum(-1)
            agrees = found.argmax(-1) == torch.tensor(answer)
            seen[strategy].cost.append(result.report.token_layer_cost)
            seen[strategy].kl.append(float(kl[0]))
            seen[strategy].kl_answer.append(float(kl.mean()))
            seen[strategy].first.append(bool(agrees[0]))
            seen[strategy].answer.append(float(agrees.double().mean()))
        print(f"  {case.question[:70]:70s} {total} tokens")
    return {"blend": seen, "full": reference}


def rows(subject: Subject, dataset: str, measured: dict[str, dict[Strategy, Seen]]) -> list[Row]:
    """One row per strategy, the reference's first."""
    seen, reference = measured["blend"], measured["full"]
    naive = {s.precomputed: statistics.fmean(o.kl_answer) for s, o in seen.items() if s.name == "none"}
    n = len(next(iter(seen.values())).kl)
    full_s = statistics.median(t for item in reference.values() for t in item.ttft_s)
    found = [Row(subject.name, dataset, n, "full", "", 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, full_s, 1.0)]
    for strategy, item in seen.items():
        mean = statistics.fmean(item.kl_answer)
        found.append(
            Row(
                model=subject.name,
                dataset=dataset,
                n=n,
                strategy=strategy.name,
                precomputed=strategy.precomputed,
                ratio=strategy.rule.ratio,
                token_layer_cost=statistics.fmean(item.cost),
                kl=statistics.fmean(item.kl),
                kl_answer=mean,
                kl_answer_ci95=1.96 * statistics.stdev(item.kl_answer) / n**0.5 if n > 1 else 0.0,
                gap_closed=1.0 - mean / naive[strategy.precomputed],
                first_token_agreement=statistics.fmean(item.first),
                answer_agreement=statistics.fmean(item.answer),
                ttft_s=statistics.median(item.ttft_s),
                ttft_ratio=statistics.median(
                    whole / part for whole, part in zip(reference[strategy].ttft_s, item.ttft_s, strict=True)
                ),
            )
        )
    return found


def show(found: list[Row]) -> None:
    """Print the table."""
    print(f"\n{found[0].dataset}: {found[0].model}, n={found[0].n}")
    print(
        "strategy   computed      ratio   cost     KL  KL answer ± ci95  gap closed  first  answer  TTFT s  full÷blend"
    )
    for row in found:
        print(
            f"{row.strategy:10s} {row.precomputed:12s} {row.ratio:6.2f} {row.token_layer_cost:6.3f} {row.kl:6.3f} "
            f"{row.kl_answer:10.4f} ±{row.kl_answer_ci95:6.4f} {row.gap_closed:11.2f} {row.first_token_agreement:6.2f} "
            f"{row.answer_agreement:7.3f} {row.ttft_s:7.2f} {row.ttft_ratio:11.2f}"
        )


def strategies(ratios: list[float]) -> list[Strategy]:
    """Every rule at every ratio, on documents precomputed both ways."""
    found = []
    for way in (STANDALONE, AFTER_PREFIX):
        found.append(Strategy("none", way, selection_rule("none")))
        found += [
            Strategy(rule, way, selection_rule(rule, ratio)) for rule in ("deviation", "first") for ratio in ratios
        ]
    return [*found, Strategy("all", STANDALONE, AllTokens())]


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.15, 0.2, 0.3])
    parser.add_argument("--hotpot", type=Path, help="hotpot_distractor_60.json; without it, the Python documentation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = Subject()
    if arguments.hotpot:
        dataset, cases = "hotpot", hotpot_cases(subject, arguments.hotpot, arguments.questions)
    else:
        dataset, cases = "pydoc", pydoc_cases(subject, arguments.questions, arguments.seed)
    found = rows(subject, dataset, measure(subject, cases, strategies(arguments.ratios)))
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
