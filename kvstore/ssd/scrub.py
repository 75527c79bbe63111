"""The background scrub: reads every record over and over at a bounded rate, and has damaged ones deleted.

Damage that nobody reads is found before the second copy is damaged too. Where it has come to is written down after
every step, so a restart goes on rather than begins again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ... import limits
from ...errors import StorageUnavailable
from ..atomic_file import replace_file
from ..tier import RecordInfo
from .tier import SsdTier
from .walk import LogPosition, Scrubbed

__all__ = ["ScrubCounts", "Scrubber"]

_log = logging.getLogger(__name__)
_POSITION_FILE: Final = "scrub"
_POSITION_CHARACTERS_MAX: Final = 64
_PAUSE_SECONDS: Final = 60.0
"""Between the end of the log and its start, and after a failure of the disk."""


@dataclass(slots=True)
class ScrubCounts:
    """What a scrubber has done since it was made."""

    records: int = 0
    size_bytes: int = 0
    damaged: int = 0
    rounds: int = 0
    failures: int = 0


class Scrubber:
    """Scrubs ``tier``, whose directory is ``directory``; :meth:`run` is its life and ends when it is cancelled.

    ``on_damaged`` is told of each record deleted. ``sleep`` and ``directory`` may be a test's.
    """

    def __init__(
        self,
        tier: SsdTier,
        directory: Path,
        *,
        bytes_per_second: int = limits.SCRUB_BYTES_PER_SECOND_DEFAULT,
        on_damaged: Callable[[RecordInfo], None] = lambda info: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._tier = tier
        self._path = directory / _POSITION_FILE
        self._bytes_per_second = bytes_per_second
        self._on_damaged = on_damaged
        self._sleep = sleep
        self.counts = ScrubCounts()

    async def run(self) -> None:
        """Scrub until cancelled or the tier is closed; a disk that fails is tried again later."""
        position = await asyncio.to_thread(self._read_position)
        while True:
            try:
                position = await self.step(position)
            except StorageUnavailable as error:
                self.counts.failures += 1
                _log.warning("the scrub waits: %s", error)
                await self._sleep(_PAUSE_SECONDS)
            else:
                if position == LogPosition():
                    await self._sleep(_PAUSE_SECONDS)

    async def once(self) -> ScrubCounts:
        """Scrub everything from the start, without a pause; what there was. :meth:`run` goes on where it was."""
        rounds = self.counts.rounds
        position = LogPosition()
        while self.counts.rounds == rounds:
            position = (await self._read(position)).position
        return self.counts

    async def step(self, position: LogPosition) -> LogPosition:
        """Scrub what a second allows, then wait until it is over; where to go on."""
        done = await self._read(position)
        with suppress(OSError):  # a position that is not written down is only work done twice
            await asyncio.to_thread(self._write_position, done.position)
        await self._sleep(done.size_bytes / self._bytes_per_second)
        return done.position

    async def _read(self, position: LogPosition) -> Scrubbed:
        done = await self._tier.scrub(position, bytes_max=self._bytes_per_second)
        counts = self.counts
        counts.records += done.records
        counts.size_bytes += done.size_bytes
        counts.damaged += len(done.damaged)
        counts.rounds += done.at_end
        for found in done.damaged:
            self._on_damaged(found.info)
        return done

    def _write_position(self, position: LogPosition) -> None:
        replace_file(self._path, f"{position.sequence} {position.offset}\n".encode())

    def _read_position(self) -> LogPosition:
        try:
            with self._path.open("rb") as file:
                words = file.read(_POSITION_CHARACTERS_MAX).split()
            return LogPosition(int(words[0]), int(words[1]))
        except (OSError, ValueError, IndexError):
            return LogPosition()
