"""A bounded number of places that tenants share: whoever is slow holds up itself.

A tenant may take a place while it holds fewer than three for each that is free (dynamic thresholds, Choudhury and
Hahne 1998). One alone may have three quarters of all, and some are always left for whoever comes next; where none is
free, the next one goes to the tenant that waits and holds fewest.
"""

import asyncio
from collections import deque
from typing import Final

__all__ = ["FairSlots", "Slot"]

_HELD_PER_FREE: Final = 3


class FairSlots:
    """``count`` places. Belongs to one event loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def free(self) -> int:
        """How many nobody holds."""
        return self._free

    def of(self, tenant: str) -> "Slot":
        """A place of ``tenant``, held while the context lasts; waits for one. Safe to cancel."""
        return Slot(self, tenant)

    async def acquire(self, tenant: str) -> None:
        """Wait for a place. Safe to cancel."""
        if tenant not in self._waiting and self._may_take(tenant):
            self._take(tenant)
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.release(tenant)  # it came in the same moment
            else:
                self._forget(tenant, given)
            raise

    def release(self, tenant: str) -> None:
        """Give a place back, to who waits and has fewest."""
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        while self._waiting:
            least = min(self._waiting, key=self._held_by)
            if not self._may_take(least):
                return
            given = self._waiting[least].popleft()
            if not self._waiting[least]:
                del self._waiting[least]
            if not given.done():
                self._take(least)
                given.set_result(None)

    def _may_take(self, tenant: str) -> bool:
        return self._held_by(tenant) < _HELD_PER_FREE * self._free

    def _take(self, tenant: str) -> None:
        self._free -= 1
        self._held[tenant] = self._held_by(tenant) + 1

    def _held_by(self, tenant: str) -> int:
        return self._held.get(tenant, 0)

    def _forget(self, tenant: str, given: "asyncio.Future[None]") -> None:
        waiting = self._waiting.get(tenant)
        if waiting is not None and given in waiting:
            waiting.remove(given)
            if not waiting:
                del self._waiting[tenant]


class Slot:
    """One place, to be entered once."""

    __slots__ = ("_slots", "_tenant")

    def __init__(self, slots: FairSlots, tenant: str) -> None:
        self._slots, self._tenant = slots, tenant

    async def __aenter__(self) -> None:
        await self._slots.acquire(self._tenant)

    async def __aexit__(self, *_: object) -> None:
        self._slots.release(self._tenant)
