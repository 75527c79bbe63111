"""What lies inside the LMDB environment of the SSD tier: three named databases, and the value of the index.

* ``records`` storage key → record header and payload (:mod:`.record`)
* ``index`` storage key → :class:`IndexEntry`, so that opening and scanning touch no payload page
* ``meta`` ``format`` → 2 as text; ``sequence`` → a counter that every maintenance transaction moves on

Kept free of imports beyond the standard library: the child process that checks a directory starts with it.
"""

import struct
from dataclasses import dataclass
from typing import Final

__all__ = ["DATABASES_MAX", "FORMAT_KEY", "FORMAT_VALUE", "INDEX", "META", "RECORDS", "SEQUENCE_KEY", "IndexEntry"]

RECORDS: Final = b"records"
INDEX: Final = b"index"
META: Final = b"meta"
DATABASES_MAX: Final = 3
FORMAT_KEY: Final = b"format"
FORMAT_VALUE: Final = b"2"
SEQUENCE_KEY: Final = b"sequence"

_ENTRY = struct.Struct("<32s16sQQQQ")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One record as the index knows it; ``used_sequence`` orders records by last use."""

    content_key: bytes
    owner: bytes
    record_bytes: int
    stored_at_ms: int
    expires_at_ms: int
    used_sequence: int

    def to_bytes(self) -> bytes:
        """The 80 bytes of the index value: content key, owner, then four little-endian 64-bit integers."""
        return _ENTRY.pack(
            self.content_key,
            self.owner,
            self.record_bytes,
            self.stored_at_ms,
            self.expires_at_ms,
            self.used_sequence,
        )

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "IndexEntry":
        """Parse :meth:`to_bytes`; :class:`ValueError` for any other length."""
        if len(data) != _ENTRY.size:
            raise ValueError(f"index entry has {len(data)} bytes, must have {_ENTRY.size}")
        return cls(*_ENTRY.unpack(data))
