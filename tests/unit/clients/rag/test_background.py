"""Ingests in the background: their order, their end, and the places they hold."""

import threading

import pytest

from kvloom import limits
from kvloom.clients.rag import Document
from kvloom.clients.rag.background import IngestQueue
from kvloom.clients.rag.progress import IngestCancelled
from kvloom.errors import Overloaded
from kvloom.kvstore.tier import Ack

SECONDS_MAX = 60.0


class Held:
    """An ingest that waits to be let go; ``done`` has the texts of what was ingested, in order."""

    def __init__(self):
        self.begun, self.let_go, self.done = threading.Event(), threading.Event(), []

    def __call__(self, documents, ack, priority, note):
        self.begun.set()
        assert self.let_go.wait(SECONDS_MAX)
        self.done.append(documents[0].text)


@pytest.fixture
def held():
    return Held()


@pytest.fixture
def queue(held):
    queue = IngestQueue(held)
    yield queue
    held.let_go.set()
    queue.close()


def submit(queue, text, priority=0):
    return queue.submit([Document(text)], Ack.MEMORY, priority)


def test_the_smallest_priority_is_first_and_equal_ones_in_their_order(queue, held):
    submit(queue, "running")
    assert held.begun.wait(SECONDS_MAX)
    jobs = [submit(queue, text, priority) for text, priority in (("late", 5), ("a", 1), ("b", 1))]
    held.let_go.set()
    for job in jobs:
        job.wait(SECONDS_MAX)
    assert held.done == ["running", "a", "b", "late"]


def test_one_that_waits_ends_at_once_when_it_is_cancelled(queue, held):
    running = submit(queue, "running")
    assert held.begun.wait(SECONDS_MAX)
    waiting = submit(queue, "waiting")
    waiting.cancel()
    waiting.cancel()
    with pytest.raises(IngestCancelled):
        waiting.wait(0)
    nobody_waits = submit(queue, "nobody waits")
    assert nobody_waits.ended.cancel()
    nobody_waits.cancel()
    held.let_go.set()
    running.wait(SECONDS_MAX)
    submit(queue, "after").wait(SECONDS_MAX)
    assert held.done == ["running", "after"]


def test_cancelled_ones_hold_no_place(queue, held, monkeypatch):
    monkeypatch.setattr(limits, "INGESTS_QUEUED_MAX", 2)
    submit(queue, "running")
    assert held.begun.wait(SECONDS_MAX)
    first, second = submit(queue, "first"), submit(queue, "second")
    with pytest.raises(Overloaded, match="2 ingests wait, the limit is 2"):
        submit(queue, "third")
    first.cancel()
    third = submit(queue, "third")
    held.let_go.set()
    second.wait(SECONDS_MAX)
    third.wait(SECONDS_MAX)
    assert held.done == ["running", "second", "third"]


def test_closing_ends_what_waits(queue, held):
    running = submit(queue, "running")
    assert held.begun.wait(SECONDS_MAX)
    waiting = submit(queue, "waiting")
    held.let_go.set()
    queue.close()
    assert running.ended.done()
    assert waiting.ended.done()
    with pytest.raises(Overloaded, match="closed"):
        submit(queue, "late")


def test_what_went_wrong_is_raised_to_whoever_waits():
    def failing(*_):
        raise ValueError("of the model")

    queue = IngestQueue(failing)
    with pytest.raises(ValueError, match="of the model"):
        submit(queue, "x").wait(SECONDS_MAX)
    queue.close()
