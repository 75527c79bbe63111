"""The columns that every part of the store benchmark has."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Row", "Timed"]


@dataclass(frozen=True, slots=True)
class Row:
    """One operation of one subject."""

    what: str
    subject: str
    value_bytes: int
    clients: int
    mb_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_gb: float


@dataclass(slots=True)
class Timed:
    """What one subject did in all of its turns."""

    what: str
    subject: str
    value_bytes: int
    clients: int
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    size_bytes: int = 0
    cpu_seconds: float = 0.0

    def add(self, latencies: Sequence[float], wall_seconds: float, cpu_seconds: float) -> None:
        """One turn."""
        moved_bytes = len(latencies) * self.value_bytes
        self.seconds += latencies
        self.rates.append(moved_bytes / wall_seconds / 1e6)
        self.size_bytes += moved_bytes
        self.cpu_seconds += cpu_seconds

    def row(self) -> Row:
        """All turns together; the rate is that of the median turn."""
        p50, p99 = np.percentile(self.seconds, (50, 99)) * 1e3
        return Row(
            self.what,
            self.subject,
            self.value_bytes,
            self.clients,
            round(float(np.median(self.rates)), 1),
            round(float(p50), 3),
            round(float(p99), 3),
            round(self.cpu_seconds / self.size_bytes * 1e9, 3),
        )
