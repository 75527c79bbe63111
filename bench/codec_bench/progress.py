"""What a long run is at, on stderr: tables are on stdout, and results in the file."""

import sys
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """Says what is done, with the seconds since the run began."""

    started: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        """One line."""
        print(f"[{self.seconds:5.0f} s] {what}", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started
