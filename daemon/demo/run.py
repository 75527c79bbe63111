"""The demo's main job, step by step. It prints nothing: progress goes to the observer it is given."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from transformers.utils.logging import disable_progress_bar

from ...clients.client import KvloomClient
from ...clients.rag import Document
from ...clients.rag.pipeline import Answer, RagPipeline, Strategy
from ...clients.transformers import load_smollm2
from ...errors import DaemonUnavailable, StorageUnavailable
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Hit
from .corpus import QUESTIONS, Retriever, calibration_texts, documents
from .daemon_process import DaemonProcess
from .result import FIRST_TOKENS, DemoResult, KillReport, QuestionRow, TierRow

__all__ = ["DemoSize", "Observer", "run_demo"]

DOCUMENT_TOKENS_MAX = 340
DOCUMENTS_PER_QUESTION = 4
MODEL = "SmolLM2-135M-Instruct"


class DemoSize:
    """How much the demo does: by default at least 40 documents and 10 questions."""

    def __init__(self, *, documents_max: int = 60, questions_max: int = len(QUESTIONS)) -> None:
        self.documents_max = documents_max
        self.questions_max = questions_max


class Observer(Protocol):
    """Who watches the demo."""

    def step(self, text: str, total: int = 0) -> None:
        """A step begins; ``total`` is how many parts it has, 0 where that is not known."""

    def advance(self, text: str = "") -> None:
        """One part of the step is done."""


def run_demo(
    work_dir: Path, observer: Observer, *, size: DemoSize | None = None, clock: Callable[[], float] = time.perf_counter
) -> DemoResult:
    """Run the main job in ``work_dir`` (empty; the daemon's data lies there afterwards); what was measured."""
    size = size or DemoSize()
    started = clock()
    observer.step("Loading the model")
    disable_progress_bar()
    loaded = load_smollm2()
    daemon = DaemonProcess(work_dir / "data")
    try:
        observer.step("Starting the daemon")
        pipeline = RagPipeline(loaded.model, loaded.tokenizer, daemon.start())
        corpus = documents(lambda text: len(pipeline.template.tokenise(text)), tokens_max=DOCUMENT_TOKENS_MAX)
        corpus = corpus[: size.documents_max]
        observer.step("Calibrating the codec on other text")
        pipeline.calibrate(calibration_texts())
        stored_bytes, tokens, kill = _ingest_with_a_crash(pipeline, daemon, corpus, observer)
        observer.step("Restarting the daemon")
        daemon.stop()
        client = daemon.start()
        pipeline.use_client(client)
        rows = _ask(pipeline, corpus, size, observer)
        tiers = _tiers(client)
        pipeline.close()
    finally:
        daemon.stop()
    return DemoResult(
        rows=tuple(rows),
        documents=len(corpus),
        document_tokens=tokens,
        stored_bytes=stored_bytes,
        values_per_token=pipeline.layout.values_per_token,
        daemon_pids=tuple(daemon.pids),
        kill=kill,
        tiers=tiers,
        model=MODEL,
        seconds=clock() - started,
    )


def _ingest_with_a_crash(
    pipeline: RagPipeline, daemon: DaemonProcess, corpus: list[Document], observer: Observer
) -> tuple[int, int, KillReport]:
    """Ingest; half-way the daemon is killed between two acknowledgements, and the ingest goes on where it was."""
    observer.step("Ingesting documents", len(corpus))
    acknowledged: list[Document] = []

    def on_document(document: Document) -> None:
        acknowledged.append(document)
        observer.advance(document.title)
        if len(acknowledged) == len(corpus) // 2:
            daemon.kill()

    try:
        pipeline.ingest(corpus, on_document=on_document)
    except (DaemonUnavailable, StorageUnavailable):
        observer.step("Daemon killed; checking what was acknowledged", len(acknowledged))
    client = daemon.start()
    pipeline.use_client(client)
    keys = [key for document in acknowledged for key in pipeline.document_keys(document)]
    kill = KillReport(acknowledged=len(keys), found=sum(_is_intact(client, key, observer) for key in keys))
    rest = [document for document in corpus if document not in set(acknowledged)]
    observer.step("Ingesting the rest", len(rest))
    pipeline.ingest(rest, on_document=lambda document: observer.advance(document.title))
    sizes = [client.info(key) for document in corpus for key in pipeline.document_keys(document)]
    return sum(item.chunk.payload_bytes for item in sizes), sum(item.tokens for item in sizes), kill


def _is_intact(client: KvloomClient, key: ContentKey, observer: Observer) -> bool:
    observer.advance(key.hex()[:12])
    return isinstance(client.get(key), Hit)


def _ask(pipeline: RagPipeline, corpus: list[Document], size: DemoSize, observer: Observer) -> list[QuestionRow]:
    """Every question three ways, interleaved; which of recompute and blend goes first alternates."""
    retriever = Retriever(corpus)
    questions = QUESTIONS[: size.questions_max]
    observer.step("Warming up")
    warm_up = retriever.top(questions[-1], DOCUMENTS_PER_QUESTION)
    for strategy in (Strategy.RECOMPUTE, Strategy.BLEND, Strategy.PREFIX):
        pipeline.generate("What is this about?", warm_up, strategy=strategy, tokens_max=1)
    observer.step("Asking questions, three ways each", len(questions))
    rows: list[QuestionRow] = []
    for number, question in enumerate(questions):
        found = retriever.top(question, DOCUMENTS_PER_QUESTION)
        order = [Strategy.RECOMPUTE, Strategy.BLEND] if number % 2 else [Strategy.BLEND, Strategy.RECOMPUTE]
        answers: dict[Strategy, Answer] = {}
        for strategy in (*order, Strategy.PREFIX):
            answers[strategy] = pipeline.generate(
                question,
                found,
                strategy=strategy,
                tokens_max=FIRST_TOKENS,
                remember=strategy is Strategy.RECOMPUTE,
            )
        rows.append(
            QuestionRow(question, answers[Strategy.RECOMPUTE], answers[Strategy.BLEND], answers[Strategy.PREFIX])
        )
        observer.advance(question)
    return rows


def _tiers(client: KvloomClient) -> tuple[TierRow, ...]:
    return tuple(TierRow(tier.name, tier.records, tier.used_bytes, tier.limit_bytes) for tier in client.stats().tiers)
