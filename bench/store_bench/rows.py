"""The columns that every benchmark of a store has, and how a table of them looks."""

import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields

import numpy as np

__all__ = ["Row", "Timed", "heading", "line", "say"]


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

    def add(
        self, latencies: Sequence[float], wall_seconds: float, cpu_seconds: float, moved_bytes: int | None = None
    ) -> None:
        """One turn, which moved a value per latency unless said otherwise."""
        moved_bytes = len(latencies) * self.value_bytes if moved_bytes is None else moved_bytes
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
            round(float(p50), 4),
            round(float(p99), 4),
            round(self.cpu_seconds / self.size_bytes * 1e9, 3),
        )


def say(what: str) -> None:
    """What is done now, beside the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def heading() -> str:
    """The names of the columns."""
    return _aligned([column.name for column in fields(Row)])


def line(row: Row) -> str:
    """One row below :func:`heading`."""
    return _aligned([str(value) for value in astuple(row)])


def _aligned(cells: Sequence[str]) -> str:
    return "".join(f"{cell:<22}" if index < 2 else f"{cell:>14}" for index, cell in enumerate(cells))
