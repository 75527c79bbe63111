"""A daemon that keeps silent costs an engine one wait in a while, not one for every request."""

import time
from collections.abc import Callable
from typing import Final

from .. import limits

__all__ = ["SILENT_SHARE", "Silence"]

SILENT_SHARE: Final = 0.9
"""A look-up that took this much of its time was not answered."""


class Silence:
    """For how long a daemon is not asked: longer each time that it keeps silent, until it answers."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        """Whether the daemon is not to be asked at the moment."""
        return self._clock() < self._until

    def note(self) -> None:
        """The daemon kept silent."""
        doubled = max(limits.ENGINE_PAUSE_SECONDS_MIN, 2 * self._seconds)
        self._seconds = min(limits.ENGINE_PAUSE_SECONDS_MAX, doubled)
        self._until = self._clock() + self._seconds

    def end(self) -> None:
        """The daemon answered."""
        self._seconds = 0.0
