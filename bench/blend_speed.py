"""Measure how soon a blended prompt has its first token: from the text, from decoded chunks, and from a cold disk.

    python bench/blend_speed.py --text texts.jsonl --json docs/measurements/blend_speed.json

Four documents of 512 tokens each stand in a prompt, in four ways, one after the other in every round:
``full``: the model computes the prompt. ``memory``: chunks lie decoded in memory. ``cold``: chunks lie encoded at
level ``standard`` in the SSD tier of a daemon of its own, whose memory tier is too small for them, and the page cache
has been told to drop its files; ``after``: the same, but all layers are decoded before the first is computed. The same
rule blends all. Times are from the call to the first token's logits; of ``cold`` and ``after`` from the question on,
so tokenising it counts there.

``batch``: six questions over pairs of documents, each pair asked about twice, answered together and one by one: how
many chunks were decoded, and the seconds of both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ssd_bench.costs import drop_caches

from kvloom import limits
from kvloom.blend import Blender, BlendRequest, KvCache, PlacedChunk
from kvloom.clients import KvloomClient
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.rag import BatchQuestion, Document, RagPipeline
from kvloom.clients.rag.blending import Refused
from kvloom.clients.rag.documents import Prompt
from kvloom.clients.rag.loading import PlanSettings
from kvloom.clients.transformers import extract, load_model, next_logits
from kvloom.codec.generic import generic_profile

DOCUMENTS, DOCUMENT_TOKENS = 4, 512
QUESTION = "What do these documents have in common?"
START_SECONDS_MAX = 60.0
MEMORY = "8MiB"
"""Less than one question's documents take, so that none of the next one's are found there."""


@dataclass(frozen=True, slots=True)
class Report:
    """Medians over the rounds, in seconds, and what they say: medians of each round's quotients."""

    model: str
    threads: int
    rounds: int
    prompt_tokens: int
    recompute_ratio: float
    token_layer_cost: float
    full_s: float
    memory_s: float
    cold_s: float
    after_s: float
    full_over_memory: float
    full_over_cold: float
    cold_over_memory: float
    after_over_memory: float
    loaded_bytes: int
    batch_uses: int
    batch_decodes: int
    batch_s: float
    one_by_one_s: float


def documents_of(path: Path, pipeline: RagPipeline, sets: int) -> list[tuple[Document, ...]]:
    """``sets`` of documents, every one cut to just as many tokens, none of them twice."""
    found: list[Document] = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        ids = pipeline.template.tokenise(str(record.get("text") or record["context"]))
        for start in range(0, len(ids) - DOCUMENT_TOKENS, DOCUMENT_TOKENS):
            part = ids[start : start + DOCUMENT_TOKENS - 2]
            found.append(Document(pipeline.tokenizer.decode(part)))
            if len(found) == sets * DOCUMENTS:
                return [tuple(found[n : n + DOCUMENTS]) for n in range(0, len(found), DOCUMENTS)]
    raise SystemExit(f"{path} has text for {len(found)} documents, {sets * DOCUMENTS} are needed")


def decoded(pipeline: RagPipeline, prompt: Prompt) -> BlendRequest:
    """The prompt with its documents as they are right after a prefill, in memory of their own."""
    model, layout, prefix = pipeline.model, pipeline.layout, prompt.prefix_tokens
    chunks = []
    for span in prompt.spans:
        cache = KvCache(layout, prefix + span.stop - span.start)
        next_logits(model, cache, prompt.token_ids[:prefix])
        if not chunks:
            chunks.append(PlacedChunk(0, prefix, *extract(cache, 0, prefix), first_position=0))
        next_logits(model, cache, prompt.tokens_of(span))
        kept = extract(cache, prefix, cache.length)
        chunks.append(PlacedChunk(span.start, span.stop - span.start, *kept, first_position=prefix))
    return BlendRequest(prompt.token_ids, prompt.spans[0].stop, tuple(chunks))


def start_daemon(folder: Path) -> subprocess.Popen[bytes]:
    """A daemon whose memory tier is too small for what is asked of it."""
    command = [sys.executable, "-m", "kvloom.daemon.cli", "serve", "--port", "0", "--memory", MEMORY]
    process = subprocess.Popen([*command, "--data-dir", str(folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        note = DaemonNote.read(folder) if folder.exists() else None
        if note is not None and note.pid == process.pid:
            return process
        time.sleep(0.05)
    process.kill()
    raise SystemExit("the daemon did not start")


def timed(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def loaded_then_blended(pipeline: RagPipeline, documents: tuple[Document, ...]) -> None:
    """Blend what was decoded whole before."""
    if isinstance(pipeline.blending.blend(pipeline.context(documents, QUESTION)), Refused):
        raise SystemExit("documents were not blended")


def asked_twice(sets: list[tuple[Document, ...]]) -> list[BatchQuestion]:
    """Questions over pairs of documents, those that share them far from each other."""
    pairs = [documents[:2] for documents in sets[:2]] + [(sets[0][0], sets[1][1])]
    return [BatchQuestion(f"{QUESTION} ({number})", pairs[number % len(pairs)]) for number in range(2 * len(pairs))]


def measure(pipeline: RagPipeline, sets: list[tuple[Document, ...]], folder: Path, model: str) -> Report:
    """A round for each set of documents; the first warms up and is not counted."""
    blender = Blender(pipeline.model, pipeline.layout)
    seconds: dict[str, list[float]] = {"full": [], "memory": [], "cold": [], "after": []}
    for number, documents in enumerate(sets):
        prompt = pipeline.template.prompt(QUESTION, documents)
        request = decoded(pipeline, prompt)
        cache = KvCache(pipeline.layout, len(prompt.token_ids) + limits.ANSWER_TOKENS_MAX)
        seconds["full"].append(timed(lambda c=cache, p=prompt: next_logits(pipeline.model, c, p.token_ids))[0])
        took, blended = timed(lambda r=request: blender.blend(r, pipeline.rule, room_tokens=limits.ANSWER_TOKENS_MAX))
        seconds["memory"].append(took)
        drop_caches(folder)
        answer = pipeline.generate(QUESTION, documents, tokens_max=1)
        if answer.blend is None or answer.load is None or answer.load.missed:
            raise SystemExit(f"documents were not blended: {answer.refusal or 'some were not stored'}")
        seconds["cold"].append(answer.ttft_seconds)
        drop_caches(folder)
        seconds["after"].append(timed(lambda d=documents: loaded_then_blended(pipeline, d))[0])
        print(number, *(f"{name} {found[-1]:.3f} s" for name, found in seconds.items()), flush=True)
    full, memory, cold, after = (median(found[1:]) for found in seconds.values())

    def quotient(name: str, other: str) -> float:
        return median(one / two for one, two in zip(seconds[name][1:], seconds[other][1:], strict=True))

    questions = asked_twice(sets)
    single_seconds, _ = timed(
        lambda: [pipeline.generate(item.question, item.documents, tokens_max=1) for item in questions]
    )
    batch_seconds, together = timed(lambda: pipeline.generate_batch(questions, tokens_max=1))
    return Report(
        model=model,
        threads=torch.get_num_threads(),
        rounds=len(sets) - 1,
        prompt_tokens=len(prompt.token_ids),
        recompute_ratio=blended.report.recompute_ratio,
        token_layer_cost=blended.report.token_layer_cost,
        full_s=full,
        memory_s=memory,
        cold_s=cold,
        after_s=after,
        full_over_memory=quotient("full", "memory"),
        full_over_cold=quotient("full", "cold"),
        cold_over_memory=quotient("cold", "memory"),
        after_over_memory=quotient("after", "memory"),
        loaded_bytes=answer.load.bytes_read,
        batch_uses=sum(len(item.load.loaded) for item in together if item.load),
        batch_decodes=sum(len(item.load.loaded) - item.load.resident for item in together if item.load),
        batch_s=batch_seconds,
        one_by_one_s=single_seconds,
    )


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help=".jsonl with a field 'text' or 'context'")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", type=Path, help="a codec profile; the generic one without it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        process = start_daemon(folder)
        try:
            with KvloomClient(data_dir=folder) as client:
                planning = PlanSettings(enabled=False)
                pipeline = RagPipeline(loaded.model, loaded.tokenizer, client, planning=planning, canary_every=0)
                report = run(pipeline, arguments, folder)
                pipeline.close()
        finally:
            process.terminate()
            process.wait()
    for name, value in asdict(report).items():
        print(f"{name:18} {value:.4g}" if isinstance(value, float) else f"{name:18} {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n")


def run(pipeline: RagPipeline, arguments: argparse.Namespace, folder: Path) -> Report:
    """Store all documents, then measure."""
    from kvloom.codec.profiles import parse_profile

    data = arguments.profile.read_bytes() if arguments.profile else None
    pipeline.use_profile(parse_profile(data) if data else generic_profile(pipeline.layout))
    sets = documents_of(arguments.text, pipeline, arguments.rounds + 1)
    pipeline.ingest([item for documents in sets for item in documents])
    print(f"{len(sets) * DOCUMENTS} documents are stored", flush=True)
    return measure(pipeline, sets, folder, arguments.model)


if __name__ == "__main__":
    main()
