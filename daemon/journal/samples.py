"""How a daemon went in the last minutes: its rates every few seconds, the oldest given up for the newest. Pure."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ... import limits
from ...clients.wire import DaemonStats
from ..rates import DaemonRates, rates_between

__all__ = ["Sample", "Samples"]


@dataclass(frozen=True, slots=True)
class Sample:
    """The rates between two reports. Samples are numbered from 0 in the order in which they were taken.

    Of the tenants it has those that did something in that time, the busiest of them where there are too many.
    """

    number: int
    rates: DaemonRates


class Samples:
    """The last ``samples_max`` samples, each with at most ``tenants_max`` tenants."""

    def __init__(self, *, samples_max: int = limits.SAMPLES_MAX, tenants_max: int = limits.SAMPLE_TENANTS_MAX) -> None:
        self._ring: deque[Sample] = deque(maxlen=samples_max)
        self._tenants_max = tenants_max
        self._before: DaemonStats | None = None
        self._next = 0

    @property
    def next_number(self) -> int:
        """The number that the next sample gets."""
        return self._next

    def take(self, stats: DaemonStats) -> None:
        """Note how the daemon went since the last call; the first has no rates."""
        rates = rates_between(self._before, stats)
        busy = tuple(row for row in rates.tenants if row.gets_per_second or row.puts_per_second)
        self._ring.append(Sample(self._next, replace(rates, tenants=busy[: self._tenants_max])))
        self._before = stats
        self._next += 1

    def since(self, number: int) -> Sequence[Sample]:
        """The samples from ``number`` on that are still there; all of them for a number that none has had yet."""
        if number > self._next:
            number = 0
        return tuple(sample for sample in self._ring if sample.number >= number)

    def last(self, seconds: float) -> Sequence[Sample]:
        """The samples of the last ``seconds``, at least one where there is any."""
        if not self._ring:
            return ()
        newest = self._ring[-1]
        oldest = newest.rates.uptime_seconds - seconds
        return tuple(sample for sample in self._ring if sample.rates.uptime_seconds > oldest or sample is newest)
