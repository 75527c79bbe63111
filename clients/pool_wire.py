"""What pools of decoded chunks say of themselves over the Unix socket, and what is asked about them: no I/O."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .. import limits
from ..errors import InvalidRequest, TooManyItems
from ..kvstore.key import KEY_BYTES, ContentKey

__all__ = ["Held", "PoolCounts", "PoolIntroduction", "PoolMatch", "PoolMatches", "PoolReport"]

_COUNTS: Final = struct.Struct("<6Q")
_KEY_COUNTS: Final = struct.Struct("<3I")


@dataclass(frozen=True, slots=True)
class PoolIntroduction:
    """A pool: the place it is in (``cuda:0``, ``host``), its size, and the process that has it."""

    device: str
    limit_bytes: int
    pid: int

    def __post_init__(self) -> None:
        if len(self.device) > limits.POOL_NAME_CHARACTERS_MAX or not self.device.isprintable():
            raise InvalidRequest(f"pool device {self.device[:40]!r} is not a short name")
        if not 0 < self.limit_bytes < 2**63 or not 0 <= self.pid < 2**31:
            raise InvalidRequest(f"pool has {self.limit_bytes} bytes and process {self.pid}")


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """A pool now, and what has happened in it since it was made."""

    used_bytes: int = 0
    chunks: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    dirty_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PoolReport:
    """A registered pool as ``stats`` has it; ``tracked`` is how many of its chunks the daemon knows by key."""

    device: str
    pid: int
    limit_bytes: int
    used_bytes: int
    chunks: int
    tracked: int
    hits: int
    misses: int
    evictions: int
    dirty_bytes: int


@dataclass(frozen=True, slots=True)
class PoolMatch:
    """How many of the leading keys of a question a pool holds."""

    device: str
    pid: int
    matched: int


@dataclass(frozen=True, slots=True)
class PoolMatches:
    """The answer, best pool first."""

    pools: tuple[PoolMatch, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """What came into a pool, went from it, and was used in it since its last report."""

    counts: PoolCounts
    added: Sequence[ContentKey] = ()
    gone: Sequence[ContentKey] = ()
    used: Sequence[ContentKey] = ()

    def encode(self) -> bytes:
        """The report as a body."""
        counts = self.counts
        head = _COUNTS.pack(
            counts.used_bytes, counts.chunks, counts.hits, counts.misses, counts.evictions, counts.dirty_bytes
        )
        numbers = _KEY_COUNTS.pack(len(self.added), len(self.gone), len(self.used))
        return b"".join((head, numbers, *self.added, *self.gone, *self.used))

    @classmethod
    def decode(cls, body: bytes) -> "Held":
        """The report in a body; :class:`InvalidRequest` where it does not hold."""
        start = _COUNTS.size + _KEY_COUNTS.size
        if len(body) < start:
            raise InvalidRequest(f"HELD has {len(body)} bytes, needs {start}")
        numbers = _KEY_COUNTS.unpack_from(body, _COUNTS.size)
        if sum(numbers) > limits.POOL_REPORT_KEYS_MAX:
            raise TooManyItems(f"HELD names {sum(numbers)} keys, the limit is {limits.POOL_REPORT_KEYS_MAX}")
        if len(body) != start + sum(numbers) * KEY_BYTES:
            raise InvalidRequest(f"HELD declares {sum(numbers)} keys and has {len(body) - start} bytes of them")
        lists: list[list[ContentKey]] = []
        for number in numbers:
            stop = start + number * KEY_BYTES
            lists.append([ContentKey(body[at : at + KEY_BYTES]) for at in range(start, stop, KEY_BYTES)])
            start = stop
        return cls(PoolCounts(*_COUNTS.unpack_from(body)), *lists)
