"""The most urgent first, and an ingest that gives way."""

import threading

import pytest

from kvloom.clients.rag.turns import ANSWER_PRIORITY, INGEST_PRIORITY, Turns

WAIT_SECONDS = 30


def wait_until_waiting(turns, count):
    with turns._changed:
        assert turns._changed.wait_for(lambda: len(turns._waiting) >= count, WAIT_SECONDS)


class Noticing(threading.Condition):
    """Tells everybody when somebody begins to wait, so that a test need not sleep."""

    def wait(self, timeout=None):
        self.notify_all()
        return super().wait(timeout)


@pytest.fixture
def turns(monkeypatch):
    turns = Turns()
    turns._changed = Noticing()
    return turns


def start(turns, priority, said, name):
    def work():
        with turns.take(priority):
            said.append(name)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_most_urgent_goes_first_and_equals_in_order(turns):
    said = []
    with turns.take():
        threads = []
        for number, (name, priority) in enumerate((("c", 10), ("a", 0), ("d", 10), ("b", 0)), 1):
            threads.append(start(turns, priority, said, name))
            wait_until_waiting(turns, number)
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert said == ["a", "b", "c", "d"]


def test_an_ingest_gives_way_to_answers_only(turns):
    said = []
    with turns.take(INGEST_PRIORITY):
        other = start(turns, INGEST_PRIORITY, said, "another ingest")
        wait_until_waiting(turns, 1)
        turns.give_way(INGEST_PRIORITY)
        assert said == []
        answer = start(turns, ANSWER_PRIORITY, said, "answer")
        wait_until_waiting(turns, 2)
        turns.give_way(INGEST_PRIORITY)
        assert said[:1] == ["answer"]
        answer.join(WAIT_SECONDS)
    other.join(WAIT_SECONDS)
    assert said[-1] == "another ingest"


def test_what_goes_wrong_gives_the_turn_back(turns):
    with pytest.raises(ZeroDivisionError), turns.take():
        raise ZeroDivisionError
    with turns.take():
        pass
