"""Asking twice and taking the first answer: for reads whose slowest answers matter more than what they cost."""

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from .. import limits
from ..errors import ConfigError
from .patience import RetryBudget

__all__ = ["AsyncHedge", "Hedge", "check_hedge_seconds"]

T = TypeVar("T")


def check_hedge_seconds(seconds: float | None) -> float | None:
    """The same; :class:`ConfigError` for a wait that is none."""
    if seconds is not None and not 0 < seconds <= limits.PROGRESS_SECONDS_MAX:
        raise ConfigError(f"hedge_seconds is {seconds}, must be over 0 and up to {limits.PROGRESS_SECONDS_MAX}")
    return seconds


class Hedge:
    """For programs that block. What is asked runs on threads of its own; the slower answer is thrown away."""

    def __init__(self, seconds: float, budget: RetryBudget, *, threads: int) -> None:
        """A second question follows the first after ``seconds``, where ``budget`` has a token for it."""
        self._seconds, self._budget = seconds, budget
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="kvloom-hedge")

    def close(self) -> None:
        """Let go of the threads; those that still wait for an answer end when it comes or their time is up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def first(self, ask: Callable[[], T]) -> T:
        """The first answer to ``ask``; an error only where the other try has one too."""
        asked: set[Future[T]] = {self._threads.submit(copy_context().run, ask)}
        done, _ = concurrent.futures.wait(asked, timeout=self._seconds)
        if not done and self._budget.take():
            asked.add(self._threads.submit(copy_context().run, ask))
        while True:
            done, waiting = concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
            answered = next((item for item in done if item.exception() is None), None)
            if answered is not None:
                return answered.result()
            if not waiting:
                return done.pop().result()
            asked = waiting


class AsyncHedge:
    """The same for an event loop; the slower try is cancelled."""

    def __init__(self, seconds: float, budget: RetryBudget) -> None:
        self._seconds, self._budget = seconds, budget

    async def first(self, ask: Callable[[], Awaitable[T]]) -> T:
        """See :meth:`Hedge.first`. Safe to cancel."""
        asked: set[asyncio.Future[T]] = {asyncio.ensure_future(ask())}
        begun = set(asked)
        try:
            done, _ = await asyncio.wait(asked, timeout=self._seconds)
            if not done and self._budget.take():
                asked.add(asyncio.ensure_future(ask()))
                begun |= asked
            while True:
                done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                answered = next((item for item in done if item.exception() is None), None)
                if answered is not None:
                    return answered.result()
                if not waiting:
                    return done.pop().result()
                asked = waiting
        finally:
            for item in begun:
                item.cancel()
