"""What a daemon takes over time, and whether that grows: samples, a robust slope, a verdict."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path

import psutil

from kvloom.clients import KvloomClient
from kvloom.clients.wire import DaemonStats

__all__ = ["GROWS", "Fit", "Sample", "Sampler", "as_table", "fit"]

GROWS = ("memory_mb", "descriptors", "threads", "tasks")
"""What must not grow while the load stays the same."""
_ROOM = {"memory_mb": 8.0, "descriptors": 16.0, "threads": 4.0, "tasks": 16.0}
"""Growth over the window fitted that says nothing: an allocator's arena, a connection more or less."""
_SHARE = 0.02
_POINTS_MAX = 400
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at one moment. ``memory_mb`` is what is its own (RssAnon): chunks in the memory tier are not in it."""

    seconds: float
    memory_mb: float
    shared_mb: float
    descriptors: int
    threads: int
    tasks: int
    requests: int
    inflight_mb: float
    dirty_mb: float
    leases: int
    pinned_mb: float
    memory_tier_mb: float
    ssd_mb: float
    hits: int
    misses: int
    puts: int
    evictions: int


@dataclass(frozen=True, slots=True)
class Fit:
    """How one figure went over the window: its level, its slope (Theil-Sen), and whether that is growth."""

    what: str
    first: float
    last: float
    most: float
    per_hour: float
    grown: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it grew by less over the window than says nothing."""
        return self.grown <= self.allowed


class Sampler:
    """Looks at one daemon: its process, its own figures, its event loop."""

    def __init__(self, process: psutil.Process, client: KvloomClient, metrics: Callable[[], str]) -> None:
        self._process, self._client, self._metrics = process, client, metrics
        self._began = time.monotonic()

    def take(self) -> Sample:
        """One sample, now."""
        status = _status(self._process.pid)
        stats: DaemonStats = self._client.stats()
        tiers = {tier.name: tier for tier in stats.tiers}
        tasks = next(line for line in self._metrics().splitlines() if line.startswith("kvloom_tasks "))
        return Sample(
            seconds=round(time.monotonic() - self._began, 1),
            memory_mb=round(status["RssAnon"] / 1e6, 2),
            shared_mb=round((status["RssShmem"] + status["RssFile"]) / 1e6, 2),
            descriptors=self._process.num_fds(),
            threads=self._process.num_threads(),
            tasks=int(float(tasks.split()[1])),
            requests=stats.requests_inflight,
            inflight_mb=round(stats.bytes_inflight / 1e6, 2),
            dirty_mb=round(stats.dirty_bytes / 1e6, 2),
            leases=stats.leases,
            pinned_mb=round(stats.pinned_bytes / 1e6, 2),
            memory_tier_mb=round(tiers["memory"].used_bytes / 1e6, 1),
            ssd_mb=round(tiers["ssd"].used_bytes / 1e6, 1),
            hits=stats.hits,
            misses=stats.misses,
            puts=stats.puts,
            evictions=sum(tier.evictions for tier in stats.tiers),
        )


def fit(samples: Sequence[Sample], what: str) -> Fit:
    """How ``what`` went: the median slope of all pairs of (thinned) samples, times the length of the window."""
    thinned = samples[:: max(1, math.ceil(len(samples) / _POINTS_MAX))]
    points = [(item.seconds, float(getattr(item, what))) for item in thinned]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    slope = statistics.median(slopes) if slopes else 0.0
    values = [value for _, value in points]
    part = max(1, len(values) // 10)
    return Fit(
        what,
        first=round(statistics.median(values[:part]), 2),
        last=round(statistics.median(values[-part:]), 2),
        most=max(values),
        per_hour=round(slope * _HOUR, 2),
        grown=round(slope * (points[-1][0] - points[0][0]), 2),
        allowed=round(_ROOM[what] + _SHARE * statistics.median(values), 2),
    )


def as_table(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Samples by column, as they are written down."""
    rows = [asdict(item) for item in samples]
    return {item.name: [row[item.name] for row in rows] for item in fields(Sample)}


def _status(pid: int) -> dict[str, int]:
    """The sizes in ``/proc/PID/status``, in bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}
