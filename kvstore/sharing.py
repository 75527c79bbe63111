"""Tiers whose records a local client may read where they lie, and the leases that keep them lying there.

What guards what: the container in a record was verified whole, with BLAKE3, before it was put. From then on it lies in
memory that nobody can write, so what is left to find is memory that fails and software that errs; for that the tier
notes a **word sum** when it takes the record in, and a reader compares it. Any damage within one 64-bit word changes
the sum for certain, any other with all but one chance in 2^64, at the speed of reading (``docs/adr/0012``).
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from .key import ContentKey, StorageKey
from .memory.segment import Segment
from .tier import Buffer

__all__ = ["Lease", "SharesMemory", "word_sum"]

_WORD = np.dtype("<u8")
_WORD_BYTES = _WORD.itemsize


def word_sum(data: Buffer) -> int:
    """The sum modulo 2^64 of the little-endian 64-bit words of ``data``, a last short one filled up with zeros.

    Lets other threads run while it reads much.
    """
    size_bytes = memoryview(data).nbytes
    count, rest_bytes = divmod(size_bytes, _WORD_BYTES)
    total = int(np.add.reduce(np.frombuffer(data, _WORD, count))) if count else 0
    if rest_bytes:
        total += int.from_bytes(memoryview(data).cast("B")[-rest_bytes:], "little")
    return total % 2**64


@dataclass(slots=True, eq=False)
class Lease:
    """A record in a shared segment that stays where it is, unchanged, until the lease ends.

    The payload lies at ``offset`` of the segment, whose descriptor is the tier's own: send it while the lease lasts.
    """

    segment: Segment
    offset: int
    content_key: ContentKey
    payload_bytes: int
    expires_at_ms: int
    word_sum: int
    payload: memoryview = field(repr=False)
    """The payload as this process sees it; holding it, or a slice of it, is what keeps the memory."""

    def release(self) -> None:
        """End the lease: nobody reads the memory any more. Idempotent."""
        self.payload = memoryview(b"")

    def abandon(self) -> None:
        """End the lease of somebody who went away and may be reading still: the memory is never written again."""
        self.segment.abandoned = True
        self.release()


@runtime_checkable
class SharesMemory(Protocol):
    """A tier that can lend a record as memory which another process maps."""

    name: str

    def lease(self, key: StorageKey) -> Lease | None:
        """Lend a record, at once; counts as a use. None for one that cannot be shared: read it with ``get``."""
