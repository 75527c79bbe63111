"""A scrub that somebody asked for: one pass over the SSD tier, as fast as it goes, while the daemon serves.

The background scrub (:mod:`..kvstore.ssd.scrub`) goes on beside it at its own rate.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from ..clients.scrubs import ScrubReport
from ..errors import StorageUnavailable
from ..kvstore.ssd.scrub import Scrubber, ScrubCounts
from ..kvstore.ssd.tier import SsdTier
from ..kvstore.tier import RecordInfo

__all__ = ["AskedScrub"]


class AskedScrub:
    """At most one pass at a time over ``tier``. Belongs to one event loop; :meth:`close` before the tier is closed.

    ``on_damaged`` is told of each record deleted.
    """

    def __init__(
        self,
        tier: SsdTier,
        directory: Path,
        on_damaged: Callable[[RecordInfo], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier, self._directory, self._on_damaged, self._clock = tier, directory, on_damaged, clock
        self._task: asyncio.Task[None] | None = None
        self._counts = ScrubCounts()
        self._number = 0
        self._total_bytes = 0
        self._began = self._ended = 0.0
        self._failure: str | None = None

    @property
    def running(self) -> bool:
        """Whether a pass is under way."""
        return self._task is not None and not self._task.done()

    def start(self) -> ScrubReport:
        """Begin a pass, unless one is under way; how it stands."""
        if not self.running:
            scrubber = Scrubber(self._tier, self._directory, on_damaged=self._on_damaged)
            self._number += 1
            self._counts, self._failure = scrubber.counts, None
            self._total_bytes = self._tier.capacity().used_bytes
            self._began = self._clock()
            self._task = asyncio.create_task(self._run(scrubber))
        return self.report()

    def report(self) -> ScrubReport:
        """How the pass that was begun last stands; all zero where there was none."""
        counts = self._counts
        return ScrubReport(
            self._number,
            self.running,
            counts.records,
            counts.size_bytes,
            self._total_bytes,
            counts.damaged,
            (self._clock() if self.running else self._ended) - self._began,
            self._failure,
        )

    async def close(self) -> None:
        """Give up the pass under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self, scrubber: Scrubber) -> None:
        try:
            await scrubber.once()
        except StorageUnavailable as error:
            self._failure = str(error)
        finally:
            self._ended = self._clock()
