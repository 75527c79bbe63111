"""How a pool is registered with the daemon of this machine: one connection to its Unix socket, and reports over it.

The registration is the connection: it ends when either process does, and is made anew, with all that the pool holds,
when the daemon is there again.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import limits
from ..errors import InvalidRequest, KvloomError
from ..kvstore.gpu.journal import Changes
from ..kvstore.gpu.pool import DecodedPool
from ..kvstore.key import ContentKey, OwnerId
from ..kvstore.tier import UNOWNED
from . import wire
from .local_connection import LocalConnection
from .local_stream import LocalGone
from .local_wire import Kind
from .pool_wire import Held, PoolCounts, PoolIntroduction, PoolMatch, PoolMatches

__all__ = ["PoolRegistration", "resident_in_pools"]


class PoolRegistration:
    """Reports what is an owner's in a pool. Blocking; safe to use from several threads."""

    def __init__(self, path: Path, pool: DecodedPool, *, owner: OwnerId = UNOWNED) -> None:
        self._path, self._pool, self._owner = path, pool, owner
        self._connection: LocalConnection | None = None
        self._refused = False
        self._lock = threading.Lock()
        pool.watch(owner)

    def report(self) -> bool:
        """Tell the daemon what has changed since the last report; whether it knows now.

        Where there is none, or one that knows no pools, nothing is lost but its knowledge.
        """
        with self._lock:
            return not self._refused and self._report()

    def close(self) -> None:
        """End the registration. The next report makes it anew."""
        with self._lock:
            self._disconnect()

    def _report(self) -> bool:
        try:
            if self._connection is None:
                self._connection = LocalConnection(self._path)
                stats = self._pool.stats()
                about = PoolIntroduction(stats.device, stats.limit_bytes, os.getpid())
                self._connection.exchange(Kind.POOL, (wire.encode(about),))
                changes = self._pool.take_changes(self._owner, everything=True)
            else:
                changes = self._pool.take_changes(self._owner)
            for held in self._reports(changes):
                self._connection.exchange(Kind.HELD, (held.encode(),))
        except InvalidRequest:
            self._refused = True  # an older daemon: it would say the same each time
            self._disconnect()
            return False
        except (LocalGone, KvloomError):
            self._disconnect()
            return False
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reports(self, changes: Changes) -> list[Held]:
        stats = self._pool.stats()
        counts = PoolCounts(
            stats.used_bytes, stats.chunks, stats.hits, stats.misses, stats.evictions, stats.dirty_bytes
        )
        return [
            Held(counts),
            *(Held(counts, gone=part) for part in _parts(changes.gone)),
            *(Held(counts, added=part) for part in _parts(changes.added)),
            *(Held(counts, used=part) for part in _parts(changes.used)),
        ]


def resident_in_pools(path: Path, keys: Sequence[ContentKey]) -> tuple[PoolMatch, ...]:
    """How many of the leading ``keys`` each pool of this machine holds, best first: for whoever routes requests.

    ``path`` is the daemon's socket. Raises :class:`LocalGone` where nobody is there.
    """
    connection = LocalConnection(path)
    try:
        body = connection.exchange(Kind.RESIDENT, keys)
        return wire.decode(PoolMatches, body, strict=False).pools
    finally:
        connection.close()


def _parts(keys: frozenset[ContentKey]) -> Iterator[list[ContentKey]]:
    listed = list(keys)
    for start in range(0, len(listed), limits.POOL_REPORT_KEYS_MAX):
        yield listed[start : start + limits.POOL_REPORT_KEYS_MAX]
