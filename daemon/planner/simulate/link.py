"""A link that transfers share: each gets the same part of the bandwidth that there is. Pure.

Processor sharing, exactly: in *shared bytes*, the bytes that each transfer on the link has got since the link began,
every transfer ends at a number that is known when it starts, so the transfer that ends next is the head of a heap,
and when that is follows from the cumulative sum of the bandwidth.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from .bandwidth import Bandwidth

__all__ = ["SharedLink", "Transfer"]


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way, for whoever ``owner`` names."""

    owner: int
    size_bytes: float
    started_s: float
    ends_at_share: float
    alive: bool = True


class SharedLink:
    """One link; ``offset_s`` is where in its bandwidth the simulation begins. Moments passed in never go back."""

    __slots__ = ("_bandwidth", "_delivered", "_ending", "_share", "_turn", "active", "changes", "offset_s", "version")

    def __init__(self, bandwidth: Bandwidth, offset_s: float = 0.0, *, logged: bool = False) -> None:
        self._bandwidth = bandwidth
        self.offset_s = offset_s
        self._ending: list[tuple[float, int, Transfer]] = []
        self._delivered = bandwidth.delivered(offset_s)
        self._share = 0.0
        self._turn = 0
        self.active = 0
        """How many transfers there are now."""
        self.version = 0
        """Changes whenever :meth:`next_s` may."""
        self.changes: list[tuple[float, int]] | None = [] if logged else None
        """When the number of transfers changed, and to what, if that was asked for."""

    def start(self, owner: int, size_bytes: float, now_s: float) -> Transfer:
        """Begin a transfer."""
        self._advance(now_s)
        transfer = Transfer(owner, size_bytes, now_s, self._share + size_bytes)
        self._turn += 1
        heappush(self._ending, (transfer.ends_at_share, self._turn, transfer))
        self._count(1, now_s)
        return transfer

    def cancel(self, transfer: Transfer, now_s: float) -> float:
        """Give a transfer up; how many of its bytes had come."""
        self._advance(now_s)
        transfer.alive = False
        self._count(-1, now_s)
        return transfer.size_bytes - max(transfer.ends_at_share - self._share, 0.0)

    def left_bytes(self, transfer: Transfer, now_s: float) -> float:
        """What of a transfer is still to come."""
        self._advance(now_s)
        return max(transfer.ends_at_share - self._share, 0.0)

    def next_s(self) -> float:
        """When the next transfer ends if nothing else starts; infinite where there is none."""
        ending = self._ending
        while ending and not ending[0][2].alive:
            heappop(ending)
        if not ending:
            return inf
        left = (ending[0][0] - self._share) * self.active
        return self._bandwidth.when(self._delivered + left) - self.offset_s

    def finish(self, now_s: float) -> Transfer:
        """The transfer that ends now: call it at :meth:`next_s`."""
        share, _, transfer = heappop(self._ending)
        self._delivered = self._bandwidth.delivered(now_s + self.offset_s)
        self._share = share
        transfer.alive = False
        self._count(-1, now_s)
        return transfer

    def _advance(self, now_s: float) -> None:
        delivered = self._bandwidth.delivered(now_s + self.offset_s)
        if self.active:
            self._share += (delivered - self._delivered) / self.active
        self._delivered = delivered

    def _count(self, change: int, now_s: float) -> None:
        self.active += change
        self.version += 1
        if self.changes is not None:
            self.changes.append((now_s, self.active))
