"""All that a daemon remembers of its last minutes, and the task that samples it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ... import limits
from ...clients.wire import DaemonStats
from .recent_chunks import RecentChunks
from .samples import Samples
from .slow_requests import SlowRequests
from .tier_errors import TierErrors

__all__ = ["Journal", "sampling"]


@dataclass(frozen=True, slots=True)
class Journal:
    """Each part has a limit of its own. Belongs to one event loop."""

    samples: Samples = field(default_factory=Samples)
    requests: SlowRequests = field(default_factory=SlowRequests)
    errors: TierErrors = field(default_factory=TierErrors)
    chunks: RecentChunks = field(default_factory=RecentChunks)


@asynccontextmanager
async def sampling(samples: Samples, stats: Callable[[], DaemonStats]) -> AsyncIterator[None]:
    """Take a sample every :data:`limits.SAMPLE_SECONDS` while the context lasts."""

    async def run() -> None:
        while True:
            samples.take(stats())
            await asyncio.sleep(limits.SAMPLE_SECONDS)

    task = asyncio.create_task(run(), name="kvloom-samples")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
