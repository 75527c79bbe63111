"""Doing one thing for each of many, some at a time, and long things beside the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from ..errors import KvloomError

__all__ = ["HERE_BYTES_MAX", "each_in_order", "run_sized"]

T = TypeVar("T")
R = TypeVar("R")
HERE_BYTES_MAX: Final = 512 * 1024
"""A pass over so much memory takes about as long as the way to a thread and back."""


async def each_in_order(work: Callable[[T], Awaitable[R]], items: Sequence[T], *, at_once: int) -> list[R]:
    """``[await work(item) for item in items]`` with up to ``at_once`` under way.

    The first :class:`KvloomError` ends and cancels the rest, and is raised. Safe to cancel: nothing is left running.
    """
    results: dict[int, R] = {}
    failed: BaseException | None = None
    pending = iter(enumerate(items))

    async def keep_working() -> None:
        for index, item in pending:
            results[index] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(keep_working())
    except* KvloomError as failures:
        failed = failures.exceptions[0]
    if failed is not None:
        raise failed
    return [results[index] for index in range(len(items))]


async def run_sized(size_bytes: int, work: Callable[[], R], *, here_bytes_max: int = HERE_BYTES_MAX) -> R:
    """``work()``, which goes over ``size_bytes`` of memory: here up to ``here_bytes_max``, in a thread beyond."""
    return work() if size_bytes <= here_bytes_max else await asyncio.to_thread(work)
