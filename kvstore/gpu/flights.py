"""Single flight for batches: what is asked for together is worked on together, and who asks for part of it joins."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["BatchFlights", "until_done"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Batch(Generic[K, T]):
    keys: tuple[K, ...]
    task: asyncio.Task[Sequence[T]]
    waiters: int = 0

    def result_of(self, key: K) -> T:
        return self.task.result()[self.keys.index(key)]


class BatchFlights(Generic[K, T]):
    """The work on a batch belongs to those who wait for any of its keys: it ends, awaited, with the last of them.

    ``share`` makes what one waiter gets of a result, and ``end`` lets go of the result itself when the last waiter has
    had its share or was cancelled.
    """

    def __init__(self, share: Callable[[T], T], end: Callable[[T], None]) -> None:
        self._share, self._end = share, end
        self._batches: dict[K, _Batch[K, T]] = {}

    def __len__(self) -> int:
        return len(self._batches)

    async def run(
        self, keys: Sequence[K], work: Callable[[Sequence[K]], Coroutine[Any, Any, Sequence[T]]]
    ) -> dict[K, T]:
        """What each of ``keys`` came to: of the work under way for it, or of ``work`` on all that nobody works on.

        The error of any is raised. A cancelled caller leaves the others undisturbed.
        """
        new = tuple(dict.fromkeys(key for key in keys if key not in self._batches))
        if new:
            batch = _Batch[K, T](new, asyncio.create_task(_as_coroutine(work, new)))
            self._batches.update(dict.fromkeys(new, batch))
        joined = {key: self._batches[key] for key in keys}
        batches = list(dict.fromkeys(joined.values()))
        for batch in batches:
            batch.waiters += 1
        try:
            await asyncio.wait([batch.task for batch in batches])
            for batch in batches:
                batch.task.result()
            return {key: self._share(batch.result_of(key)) for key, batch in joined.items()}
        finally:
            await self._leave(batches)

    async def _leave(self, batches: Sequence[_Batch[K, T]]) -> None:
        """End what nobody waits for any more; even a waiter that is cancelled again stays until that is done."""
        ended: list[_Batch[K, T]] = []
        for batch in batches:
            batch.waiters -= 1
            if not batch.waiters:
                ended.append(batch)
                batch.task.cancel()
                for key in batch.keys:
                    if self._batches.get(key) is batch:
                        del self._batches[key]
        try:
            await until_done(asyncio.gather(*(batch.task for batch in ended), return_exceptions=True))
        finally:
            for batch in ended:
                if not batch.task.cancelled() and batch.task.exception() is None:
                    for result in batch.task.result():
                        self._end(result)


async def _as_coroutine(
    work: Callable[[Sequence[K]], Coroutine[Any, Any, Sequence[T]]], keys: Sequence[K]
) -> Sequence[T]:
    return await work(keys)


async def until_done(future: "asyncio.Future[Any]") -> None:
    """Wait for ``future`` however often the waiter is cancelled: somebody's memory depends on it. Then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
