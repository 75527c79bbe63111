"""Whose turn it is: one model, many that want it, the most urgent first."""

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ANSWER_PRIORITY", "INGEST_PRIORITY", "Turns"]

ANSWER_PRIORITY = 0
"""Somebody waits for an answer."""
INGEST_PRIORITY = 10
"""Nobody waits. Smaller numbers go first."""


class Turns:
    """A lock that goes to the smallest priority number waiting, first come first served among equals.

    Safe to use from several threads. Not reentrant.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []
        self._numbers = itertools.count()
        self._taken = False

    @contextmanager
    def take(self, priority: int = ANSWER_PRIORITY) -> Iterator[None]:
        """Have the turn for as long as the ``with`` block lasts."""
        self._begin(priority)
        try:
            yield
        finally:
            self._end()

    def give_way(self, priority: int) -> None:
        """In the middle of a turn: let everybody go first whose number is smaller than ``priority``."""
        with self._changed:
            urgent = bool(self._waiting) and self._waiting[0][0] < priority
        if urgent:
            self._end()
            try:
                self._begin(priority)
            except BaseException:
                self._begin(priority)  # whoever took the turn gives it back, so it must be had
                raise

    def _begin(self, priority: int) -> None:
        with self._changed:
            ticket = (priority, next(self._numbers))
            heapq.heappush(self._waiting, ticket)
            try:
                self._changed.wait_for(lambda: not self._taken and self._waiting[0] == ticket)
                self._taken = True
            finally:  # interrupted, too: the others must not wait for this one
                self._waiting.remove(ticket)
                heapq.heapify(self._waiting)
                self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()
