"""Reading many chunks one after the other: while one is being sent, a few are read ahead, and no more are held."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from .. import limits
from ..codec.level import Level
from ..errors import KvloomError
from ..kvstore.key import ContentKey
from ..kvstore.tiered.store import ChunkRead
from .caller import Caller
from .service import Service

__all__ = ["Found", "reading_in_turn"]


@dataclass(frozen=True, slots=True)
class Found:
    """One chunk of a batch, or the reason why it is not sent."""

    chunk: ChunkRead | None
    error: KvloomError | None = None


@dataclass(frozen=True, slots=True)
class _Ready:
    found: Found
    held: AsyncExitStack


@asynccontextmanager
async def reading_in_turn(
    service: Service,
    caller: Caller,
    keys: Sequence[ContentKey],
    *,
    level: Level | None = None,
    layers: range | None = None,
) -> AsyncIterator[AsyncIterator[Found]]:
    """What is stored under each of ``keys``, in their order.

    A chunk is held, and counted as in flight, until the next one is asked for; up to
    :data:`limits.BATCH_READ_AHEAD_MAX` more may be. An error of one chunk is found in its place, and the others go on.
    Leaving the context lets go of everything.
    """
    reads: dict[int, asyncio.Task[_Ready]] = {}

    async def read(key: ContentKey) -> _Ready:
        held = AsyncExitStack()
        try:
            chunk = await held.enter_async_context(service.reading(caller, key, level=level, layers=layers))
            return _Ready(Found(chunk), held)
        except KvloomError as error:
            return _Ready(Found(None, error), held)

    async def each() -> AsyncGenerator[Found, None]:
        for index in range(len(keys)):
            for ahead in range(index, min(len(keys), index + 1 + limits.BATCH_READ_AHEAD_MAX)):
                if ahead not in reads:
                    reads[ahead] = asyncio.create_task(read(keys[ahead]))
            ready = await reads[index]
            try:
                yield ready.found
            finally:
                del reads[index]
                await ready.held.aclose()

    turn = each()
    try:
        yield turn
    finally:
        await turn.aclose()
        for task in reads.values():
            task.cancel()
        for outcome in await asyncio.gather(*reads.values(), return_exceptions=True):
            if isinstance(outcome, _Ready):
                await outcome.held.aclose()
