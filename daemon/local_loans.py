"""What one local client has been lent: leases by number, and the segments it was given the descriptors of."""

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from .. import limits
from ..clients.local_replies import Failed, GetReply, Granted, Mapped, Result
from ..clients.local_wire import USE_BYTES
from ..codec.container import ByteRange
from ..errors import InvalidRequest, StorageUnavailable
from ..kvstore.memory.segment import Segment
from ..kvstore.sharing import Lease
from ..kvstore.tier import NEVER, Buffer
from ..kvstore.tiered.lending import LentChunk, LentUses
from .local_board import KeptBoard

__all__ = ["Found", "LeaseBudget", "Loans"]

_COUNT: Final = struct.Struct("<Q")
_USE: Final = struct.Struct("<QQ")
_LOOKED_AT: Final = 4
"""How many of a client's segments each answer looks at, whether they are gone."""
_COUNTED_AGAIN: Final = 64
"""How many kept leases an answer looks at, whether they are read by, where room becomes short."""

Found = Result | LentChunk | None
"""What becomes of one key of a GET; None: it has to be read."""


class LeaseBudget:
    """How many bytes all clients together hold leased, and may."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.leased_bytes = 0
        self.kept: deque[tuple[Loans, int]] = deque()
        """Kept leases that are counted, the oldest first; some have ended."""

    @property
    def room_bytes(self) -> int:
        """How much more may be leased; less than nothing after a chunk that was larger than what was left."""
        return self.limit_bytes - self.leased_bytes

    def make_room(self) -> None:
        """Count some of the kept leases no more: those by which nobody reads, since they hold nothing."""
        for _ in range(min(_COUNTED_AGAIN, len(self.kept))):
            loans, number = self.kept.popleft()
            if loans.must_count(number):
                self.kept.append((loans, number))


@dataclass(slots=True)
class _Loan:
    """A lease, whether it is counted, and what its record's segment calls when it stands on the board."""

    lease: Lease
    counted: bool = True
    gone: Callable[[], None] | None = None


class Loans:
    """One client's. Belongs to one event loop; :meth:`abandon` when the client is gone."""

    def __init__(self, budget: LeaseBudget) -> None:
        self.budget = budget
        self._loans: dict[int, _Loan] = {}
        self._counted = 0
        self._next_lease = 1
        self._segments: dict[Segment, int] = {}
        self._next_segment = 1
        self._looked_at: deque[Segment] = deque()
        self._board: KeptBoard | None = None

    def open_board(self) -> int | None:
        """Let the client keep leases from now on; the descriptor for it, None where the system has none to give."""
        if self._board is not None:
            raise InvalidRequest("this connection has a board already")
        try:
            self._board = KeptBoard()
        except OSError:
            return None
        return self._board.descriptor

    def rooms(self) -> tuple[int, int]:
        """How many leases more this client may have, and how many bytes more all clients together."""
        near = self._counted > limits.LOCAL_LEASES_MAX // 2 or 2 * self.budget.room_bytes < self.budget.limit_bytes
        if near and self.budget.kept:
            self.budget.make_room()
        return limits.LOCAL_LEASES_MAX - self._counted, self.budget.room_bytes

    def abandon(self) -> None:
        """Let go of all leases; the memory under them may still be read, but by kept ones that nobody has locked."""
        for number, loan in self._loans.items():
            self._uncount(loan)
            if self._unwatched(loan) and self._board is not None and self._board.take_off(number):
                loan.lease.release()
            else:
                loan.lease.abandon()
        self._loans.clear()
        self._segments.clear()
        self._looked_at.clear()
        if self._board is not None:
            self._board.close()
            self._board = None

    def encoded(self, found: Sequence[Found], *, keep: bool = False) -> tuple[list[Buffer], list[int]]:
        """The body of the answer, and the descriptors that go with it; leases begin here.

        ``keep``: the client may keep those of whole chunks that do not expire. Some of its segments are looked at in
        turn: which of them are gone.
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
                    results.append(self._mapped(item, granted, descriptors, keep=keep))
                except StorageUnavailable as error:
                    results.append(Failed(error))
            elif item is not None:
                results.append(item)
        return GetReply(tuple(results), tuple(granted), tuple(gone)).encode(), descriptors

    def _mapped(self, lent: LentChunk, granted: list[Granted], descriptors: list[int], *, keep: bool) -> Mapped:
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
        lease_number = self._next_lease
        self._next_lease += 1
        loan = self._loans[lease_number] = _Loan(lease)
        self._counted += 1
        self.budget.leased_bytes += lease.payload_bytes
        ranges = tuple([ByteRange(lease.offset + item.start, lease.offset + item.stop) for item in lent.ranges])
        total = lease.word_sum if lent.is_whole else None
        kept = keep and total is not None and lease.expires_at_ms == NEVER and self._keep(lease_number, loan)
        return Mapped(lease_number, number, ranges, lent.tier, lent.header, total, kept)

    def _keep(self, number: int, loan: _Loan) -> bool:
        """Put a lease on the board; whether there is one. The lease whose place it takes is kept no more."""
        if self._board is None:
            return False
        self._take_back(self._board.keep(number))
        loan.gone = partial(self._take_back, number)
        loan.lease.segment.watch(loan.lease.offset, loan.gone)
        self.budget.kept.append((self, number))
        return True

    def _take_back(self, number: int) -> None:
        """End a kept lease: now, or where it is being read by, as soon as the client releases it."""
        loan = self._loans.get(number)
        if loan is not None and self._board is not None and self._board.take_off(number):
            self._end(number)

    def must_count(self, number: int) -> bool:
        """Whether a kept lease holds memory, since somebody reads by it; otherwise it is counted no more."""
        loan = self._loans.get(number)
        if loan is None or self._board is None:
            return False
        if not self._board.is_idle(number):
            return True
        self._uncount(loan)
        return False

    def used(self, body: Buffer) -> list[LentUses]:
        """What was read by the leases in ``body`` that have not ended, and how often."""
        if len(body) % USE_BYTES:
            raise InvalidRequest(f"USED has {len(body)} bytes, not a multiple of {USE_BYTES}")
        found: list[LentUses] = []
        for number, reads in _USE.iter_unpack(body):
            loan = self._loans.get(number)
            if loan is not None:
                reads = min(reads, limits.LOCAL_USES_DEFERRED_MAX)
                found.append(LentUses(loan.lease.content_key, loan.lease.payload_bytes, reads))
        return found

    def release(self, body: Buffer) -> None:
        """Let go of the leases whose numbers are in ``body``; numbers that are none are passed over."""
        if len(body) % _COUNT.size:
            raise InvalidRequest(f"RELEASE has {len(body)} bytes, not a multiple of {_COUNT.size}")
        for (number,) in _COUNT.iter_unpack(body):
            if number in self._loans:
                if self._loans[number].gone is not None and self._board is not None:
                    self._board.release(number)
                self._end(number)

    def _end(self, number: int) -> None:
        loan = self._loans.pop(number)
        self._unwatched(loan)
        self._uncount(loan)
        loan.lease.release()

    def _uncount(self, loan: _Loan) -> None:
        if loan.counted:
            loan.counted = False
            self._counted -= 1
            self.budget.leased_bytes -= loan.lease.payload_bytes

    def _unwatched(self, loan: _Loan) -> bool:
        """Hear no more of the record; whether this was a kept lease."""
        gone, loan.gone = loan.gone, None
        if gone is not None:
            loan.lease.segment.unwatch(loan.lease.offset, gone)
        return gone is not None
