"""Doing one thing for each of many, some at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ..errors import KvloomError

__all__ = ["each_in_order"]

T = TypeVar("T")
R = TypeVar("R")


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
