"""The pools of decoded chunks that processes of this machine have registered: who holds what, not the memory itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import limits
from ..clients.pool_wire import Held, PoolCounts, PoolIntroduction, PoolMatch, PoolReport
from ..kvstore.key import ContentKey, OwnerId

__all__ = ["PoolRegistry", "RegisteredPool"]


@dataclass(slots=True, eq=False)
class RegisteredPool:
    """One tenant's pool and the chunks it has said it holds; beyond a limit they are counted, not known."""

    owner: OwnerId
    about: PoolIntroduction
    counts: PoolCounts = field(default_factory=PoolCounts)
    keys: set[ContentKey] = field(default_factory=set)


class PoolRegistry:
    """Belongs to the daemon's event loop. Whoever registers a pool removes it: the connection that brought it."""

    def __init__(self) -> None:
        self._pools: list[RegisteredPool] = []
        self._tracked = 0

    def register(self, owner: OwnerId, about: PoolIntroduction) -> RegisteredPool:
        """A pool of ``owner``'s is here, and empty so far."""
        pool = RegisteredPool(owner, about)
        self._pools.append(pool)
        return pool

    def remove(self, pool: RegisteredPool) -> None:
        """A pool is gone, and all that was in it."""
        self._pools.remove(pool)
        self._tracked -= len(pool.keys)

    def update(self, pool: RegisteredPool, held: Held) -> None:
        """Take note of what changed in a pool."""
        pool.counts = held.counts
        self._tracked -= len(pool.keys)
        pool.keys.difference_update(held.gone)
        room = max(0, limits.POOL_CHUNKS_REGISTERED_MAX - self._tracked - len(pool.keys))
        pool.keys.update(held.added[:room])
        self._tracked += len(pool.keys)

    def resident(self, owner: OwnerId, keys: Sequence[ContentKey]) -> tuple[PoolMatch, ...]:
        """For each of an owner's pools, how many of the leading keys it holds; those that hold more come first."""
        own = [pool for pool in self._pools if pool.owner == owner]
        matches = [PoolMatch(pool.about.device, pool.about.pid, _leading(pool.keys, keys)) for pool in own]
        return tuple(sorted(matches, key=lambda match: -match.matched))

    def reports(self) -> tuple[PoolReport, ...]:
        """Each pool as it was when it last reported."""
        return tuple(
            PoolReport(
                device=pool.about.device,
                pid=pool.about.pid,
                limit_bytes=pool.about.limit_bytes,
                used_bytes=pool.counts.used_bytes,
                chunks=pool.counts.chunks,
                tracked=len(pool.keys),
                hits=pool.counts.hits,
                misses=pool.counts.misses,
                evictions=pool.counts.evictions,
                dirty_bytes=pool.counts.dirty_bytes,
            )
            for pool in self._pools
        )


def _leading(held: set[ContentKey], keys: Sequence[ContentKey]) -> int:
    return next((count for count, key in enumerate(keys) if key not in held), len(keys))
