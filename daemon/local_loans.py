"""What one local client has been lent: leases by number, and the segments it was given the descriptors of."""

import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from ..clients.local_wire import Failed, GetReply, Granted, Mapped, Result
from ..codec.container import ByteRange
from ..errors import InvalidRequest, StorageUnavailable
from ..kvstore.memory.segment import Segment
from ..kvstore.sharing import Lease
from ..kvstore.tier import Buffer
from ..kvstore.tiered.lending import LentChunk

__all__ = ["Found", "LeaseBudget", "Loans"]

_COUNT: Final = struct.Struct("<Q")
_LOOKED_AT: Final = 4
"""How many of a client's segments each answer looks at, whether they are gone."""

Found = Result | LentChunk | None
"""What becomes of one key of a GET; None: it has to be read."""


class LeaseBudget:
    """How many bytes all clients together hold leased, and may."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.leased_bytes = 0

    @property
    def room_bytes(self) -> int:
        """How much more may be leased; less than nothing after a chunk that was larger than what was left."""
        return self.limit_bytes - self.leased_bytes


class Loans:
    """One client's. Belongs to one event loop; :meth:`abandon` when the client is gone."""

    def __init__(self, budget: LeaseBudget) -> None:
        self.budget = budget
        self._leases: dict[int, Lease] = {}
        self._next_lease = 1
        self._segments: dict[Segment, int] = {}
        self._next_segment = 1
        self._looked_at: deque[Segment] = deque()

    def __len__(self) -> int:
        return len(self._leases)

    def abandon(self) -> None:
        """Let go of all leases; the memory under them may still be read."""
        for lease in self._leases.values():
            self.budget.leased_bytes -= lease.payload_bytes
            lease.abandon()
        self._leases.clear()
        self._segments.clear()
        self._looked_at.clear()

    def encoded(self, found: Sequence[Found]) -> tuple[list[Buffer], list[int]]:
        """The body of the answer, and the descriptors that go with it; leases begin here.

        Some of the client's segments are looked at in turn: which of them are gone.
        """
        gone: list[int] = []
        for _ in range(min(_LOOKED_AT, len(self._looked_at))):
            segment = self._looked_at.popleft()
            if segment.closed:
                gone.append(self._segments.pop(segment))
            else:
                self._looked_at.append(segment)
        granted: list[Granted] = []
        descriptors: list[int] = []
        results: list[Result] = []
        for item in found:
            if isinstance(item, LentChunk):
                try:
                    results.append(self._mapped(item, granted, descriptors))
                except StorageUnavailable as error:
                    results.append(Failed(error))
            elif item is not None:
                results.append(item)
        return GetReply(tuple(results), tuple(granted), tuple(gone)).encode(), descriptors

    def _mapped(self, lent: LentChunk, granted: list[Granted], descriptors: list[int]) -> Mapped:
        """Register the lease, and pass the segment unless this client has it."""
        lease, segment = lent.lease, lent.lease.segment
        number = self._segments.get(segment)
        if number is None:
            if segment.descriptor is None:
                raise StorageUnavailable("the memory is not shared any more")
            number = self._next_segment
            self._next_segment += 1
            self._segments[segment] = number
            self._looked_at.append(segment)
            granted.append(Granted(number, segment.size_bytes))
            descriptors.append(segment.descriptor)
        self._leases[self._next_lease] = lease
        self._next_lease += 1
        self.budget.leased_bytes += lease.payload_bytes
        ranges = tuple([ByteRange(lease.offset + item.start, lease.offset + item.stop) for item in lent.ranges])
        total = lease.word_sum if lent.is_whole else None
        return Mapped(self._next_lease - 1, number, ranges, lent.tier, lent.header, total)

    def release(self, body: Buffer) -> None:
        """Let go of the leases whose numbers are in ``body``; numbers that are none are passed over."""
        if len(body) % _COUNT.size:
            raise InvalidRequest(f"RELEASE has {len(body)} bytes, not a multiple of {_COUNT.size}")
        for (number,) in _COUNT.iter_unpack(body):
            lease = self._leases.pop(number, None)
            if lease is not None:
                self.budget.leased_bytes -= lease.payload_bytes
                lease.release()
