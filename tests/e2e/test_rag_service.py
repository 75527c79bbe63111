"""The service over a real daemon: many callers, streams, ingests that are interrupted, documents by name."""

import asyncio
import threading
import time
from contextlib import closing

import pytest

from kvloom.clients.rag import (
    AsyncRagService,
    Decoding,
    Document,
    IngestCancelled,
    Library,
    RagService,
    Sampler,
    Strategy,
)
from kvloom.errors import InvalidRequest, NotFound, Overloaded

WAIT_SECONDS = 120
QUESTION = "which number follows?"


@pytest.fixture
def library(tmp_path):
    with closing(Library(tmp_path / "library", clock=time.time, versions_max=1)) as library:
        yield library


@pytest.fixture
def service(tiny_pipeline, daemon, library):
    with RagService(tiny_pipeline, daemon.client(), library=library) as service:
        yield service


@pytest.fixture
def documents(seed):
    return [Document(f"Number {n} follows {n - 1}, says {seed}. " * 5, title=f"number {n}") for n in range(1, 6)]


def test_an_interrupted_ingest_goes_on_where_it_stopped(service, documents):
    told = []

    def stop(progress):
        told.append((progress.done, progress.total, progress.document))
        if progress.done == 2:
            raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        service.ingest([*documents, *documents], on_progress=stop)
    assert told == [(1, 5, documents[0]), (2, 5, documents[1])]
    summary = service.ingest([*documents, *documents])
    assert (summary.documents, summary.duplicates, summary.already_stored) == (5, 5, 2)
    assert summary.stored_tokens > 0
    assert service.ingest(documents[::-1]).already_stored == 5
    assert service.ingest([]).documents == 0
    assert service.warm(documents) == sum(len(service.pipeline.document_keys(item)) for item in documents)
    assert service.warm([]) == 0


def test_a_stream_says_what_the_answer_says_and_what_it_cost(service, documents):
    service.ingest(documents)
    chosen = [documents[3], documents[1]]
    plain = service.answer(QUESTION, chosen, tokens_max=12)
    with service.stream(QUESTION, chosen, tokens_max=12) as stream:
        with pytest.raises(RuntimeError, match="to its end"):
            _ = stream.answered
        pieces = list(stream)
    assert "".join(pieces) == plain.answer.text == stream.answered.answer.text
    assert list(stream) == []
    metrics = stream.answered.metrics
    assert metrics.answer_tokens == 12
    assert metrics.loaded_tokens == sum(place.ref.tokens for place in plain.answer.load.loaded) > 0
    assert metrics.missed_chunks == 0
    assert 0 < metrics.ttft_seconds <= metrics.total_seconds
    assert metrics.tokens_per_second > 0
    assert metrics.bytes_read == plain.metrics.bytes_read > 0
    recomputed = service.answer(QUESTION, chosen, strategy=Strategy.RECOMPUTE, tokens_max=1).metrics
    assert (recomputed.strategy, recomputed.loaded_tokens, recomputed.tokens_per_second) == ("recompute", 0, 0)


def test_a_stream_that_nobody_reads_on_frees_the_model(service, documents):
    tokens = []
    with service.stream(QUESTION, documents, tokens_max=1000, decoding=Decoding(on_token=tokens.append)) as stream:
        next(stream)
    assert len(tokens) < 1000
    assert service.answer(QUESTION, documents[:1], tokens_max=1).answer.token_ids
    with service.stream(QUESTION, documents, tokens_max=0) as stream, pytest.raises(InvalidRequest, match="tokens_max"):
        list(stream)


def test_answers_go_before_ingests(service, documents):
    """While an ingest is under way an answer is given between two of its documents."""
    order, first_done, answered = [], threading.Event(), threading.Event()

    def note(progress):
        order.append(progress.done)
        if progress.done == 1:
            first_done.set()
            with service._turns._changed:  # until the answer has queued up
                assert service._turns._changed.wait_for(lambda: service._turns._waiting, WAIT_SECONDS)

    def ask():
        assert first_done.wait(WAIT_SECONDS)
        service.answer(QUESTION, documents[:1], tokens_max=2)
        order.append("answer")
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def notify():
        while not answered.is_set():
            with service._turns._changed:
                service._turns._changed.notify_all()
            answered.wait(0.02)

    waker = threading.Thread(target=notify, daemon=True)
    waker.start()
    service.ingest(documents, on_progress=note)
    thread.join(WAIT_SECONDS)
    waker.join(WAIT_SECONDS)
    assert order.index("answer") < order.index(5)


def test_background_jobs_by_priority_cancelled_and_told_of(service, documents, monkeypatch):
    jobs = []
    with service._turns.take():  # nothing is ingested yet
        jobs = [
            service.ingest_later(documents[n : n + 1], priority=priority) for n, priority in ((0, 9), (1, 8), (2, 5))
        ]
        assert jobs[0].progress is None
        jobs[1].cancel()
    assert jobs[2].wait(WAIT_SECONDS).documents == 1
    assert jobs[0].wait(WAIT_SECONDS).documents == 1
    assert jobs[0].progress.done == jobs[0].progress.total == 1
    with pytest.raises(IngestCancelled):
        jobs[1].wait(WAIT_SECONDS)
    wrong = service.ingest_later([Document("  ")])
    with pytest.raises(InvalidRequest, match="no text"):
        wrong.wait(WAIT_SECONDS)
    service.close()
    with pytest.raises(Overloaded, match="closed"):
        service.ingest_later(documents)


def test_documents_by_name_only_what_changed_is_prefilled(service, daemon, documents):
    client, pipeline = daemon.client(), service.pipeline
    named = {f"file-{n}": item for n, item in enumerate(documents)}
    change = service.sync_documents(named)
    assert (change.summary.stored_tokens > 0, change.deleted_chunks) == (True, 0)
    assert all(version.is_new for version in change.versions)
    changed = {**named, "file-2": Document(documents[2].text + "It was changed.", title="number 3")}
    gone = changed.pop("file-4")
    change = service.sync_documents(changed)
    assert [version.name for version in change.versions if version.is_new] == ["file-2"]
    assert (change.summary.already_stored, change.summary.documents) == (3, 4)
    before, after = (pipeline.document_keys(item) for item in (documents[2], changed["file-2"]))
    assert change.deleted_chunks == len({*before, *pipeline.document_keys(gone)} - {*after})
    assert not any(client.exists([*pipeline.document_keys(gone), *(set(before) - set(after))]))
    assert all(client.exists(after))
    assert service.documents(["file-2", "file-0"]) == [changed["file-2"], documents[0]]
    assert service.delete_document("file-2") == 1
    assert not any(client.exists(after))
    with pytest.raises(NotFound, match="file-2"):
        service.documents(["file-2"])
    nameless = RagService(pipeline, client)
    with pytest.raises(InvalidRequest, match="no library"):
        nameless.delete_document("file-0")


def test_sampled_answers_are_those_of_their_seed(service, documents):
    def sampled(seed, **options):
        decoding = Decoding(choose=Sampler(seed=seed, **options))
        return service.answer(QUESTION, documents[:2], tokens_max=16, decoding=decoding).answer.token_ids

    greedy = service.answer(QUESTION, documents[:2], tokens_max=16).answer.token_ids
    assert sampled(1) == sampled(1) != sampled(2)
    assert sampled(1, temperature=0.01, top_p=0.0001) == greedy
    with pytest.raises(InvalidRequest, match="temperature is 0"):
        Sampler(temperature=0)
    with pytest.raises(InvalidRequest, match=r"top_p is 1\.5"):
        Sampler(top_p=1.5)


async def test_the_async_twin(service, documents):
    rag = AsyncRagService(service)
    ingested, answered = await asyncio.gather(
        rag.ingest(documents), rag.answer(QUESTION, documents[:1], strategy=Strategy.RECOMPUTE, tokens_max=3)
    )
    assert ingested.documents == 5
    assert len(answered.answer.token_ids) == 3
    async with rag.stream(QUESTION, documents[:2], tokens_max=8) as stream:
        text = "".join([piece async for piece in stream])
    assert text == stream.answered.answer.text
    async with rag.stream(QUESTION, documents[:2], tokens_max=1000) as stream:
        await anext(stream)
    assert (await rag.put_documents({"one": documents[0]})).summary.already_stored == 1
    assert await rag.documents(["one"]) == documents[:1]
    assert await rag.warm(documents[:1]) > 0
    assert await rag.delete_document("one") == 1
    cancelled = asyncio.ensure_future(rag.ingest([Document(f"{documents[0].text} {n}") for n in range(200)]))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await rag.close()
