"""What a store does by itself from time to time: free what has expired, end leases, follow erasures, keep quotas."""

from collections.abc import Awaitable, Callable, Sequence

from ... import limits
from ...errors import KvloomError
from ..concurrency import each_in_order
from ..key import OwnerId, StorageKey
from ..key_locks import KeyLocks
from ..tier import Tier
from .erasure import Erasure
from .pins import Pins
from .roles import Roles
from .shared_quota import SharedQuota
from .tally import Tally
from .tenants import Tenants
from .watching import watch_evictions

__all__ = ["Upkeep"]


class Upkeep:
    """One round after another until cancelled; each is bounded, and :meth:`round` may be called at any time."""

    def __init__(
        self,
        roles: Roles,
        locks: KeyLocks,
        pins: Pins,
        erasure: Erasure,
        shared_quotas: Sequence[SharedQuota],
        tenants: Tenants,
        tally: Tally,
        *,
        clock_ms: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._roles = roles
        self._locks = locks
        self._pins = pins
        self._erasure = erasure
        self._shared_quotas = tuple(shared_quotas)
        self._tenants = tenants
        self._tally = tally
        self._clock_ms = clock_ms
        self._sleep = sleep

    async def run(self) -> None:
        """A round every :data:`limits.SWEEP_SECONDS`, quotas of shared tiers at every sixth; evictions are watched."""
        watch_evictions(self._roles.all, self._tally.observer)
        rounds = 0
        while True:
            await self._sleep(limits.SWEEP_SECONDS)
            rounds += 1
            await self.round(count_shared=rounds % limits.SHARED_COUNT_ROUNDS_DEFAULT == 0)

    async def round(self, *, count_shared: bool = True) -> int:
        """Do what is due; how many records that freed."""
        self._pins.end_due()
        freed = 0
        for tier in self._roles.local:
            freed += await self._sweep(tier)
        for namespace in self._tenants.namespaces() if self._roles.shared else ():
            freed += await self._erasure.follow(namespace)
            for quota in self._shared_quotas if count_shared else ():
                freed += await self._enforce(quota, namespace.owner)
        return freed

    async def _sweep(self, tier: Tier) -> int:
        """Delete what has expired in one tier; a shared one does that by itself."""

        async def delete(key: StorageKey) -> bool:
            async with self._locks.hold(key):
                if (await tier.contains_live([key], self._clock_ms()))[0]:
                    return False  # replaced meanwhile
                deleted = await tier.delete(key)
            if deleted:
                self._tally.observer.on_removed(tier.name, key)
            return deleted

        try:
            due = await tier.expired(self._clock_ms(), limits.SWEEP_RECORDS_MAX)
            freed = sum(await each_in_order(delete, due, at_once=limits.DELETIONS_AT_ONCE_MAX))
        except KvloomError as error:
            self._tally.note_error(tier.name, "sweep", str(error))
            return 0
        self._tally.expired += freed
        return freed

    async def _enforce(self, quota: SharedQuota, owner: OwnerId) -> int:
        try:
            return await quota.enforce(owner)
        except KvloomError as error:
            self._tally.note_error(quota.tier.name, "quota", str(error))
            return 0
