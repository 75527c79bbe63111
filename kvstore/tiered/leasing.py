"""Pinning chunks where they are: finds what there is to pin, and keeps to what an owner may pin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ... import limits
from ...errors import InvalidRequest
from ..key import OwnerId, StorageKey
from .copies import Copies
from .pins import LeaseId, Pins
from .roles import Roles

__all__ = ["Leasing", "PinnedChunks"]


@dataclass(frozen=True, slots=True)
class PinnedChunks:
    """A lease: until when, and for each key asked for whether it is pinned; what is not stored here is not."""

    lease: LeaseId
    until_ms: int
    pinned: tuple[bool, ...]


class Leasing:
    """The pins of a store; its local tiers are told of them here."""

    def __init__(self, roles: Roles, copies: Copies, clock_ms: Callable[[], int]) -> None:
        self._roles = roles
        self._copies = copies
        self._clock_ms = clock_ms
        smallest_bytes = min((tier.capacity().limit_bytes for tier in roles.local), default=0)
        self.pins = Pins(
            clock_ms,
            bytes_max=smallest_bytes // 2,
            owner_bytes_max=lambda owner: self._quota_bytes(owner) // limits.PINNED_SHARE_MAX,
        )
        for tier in roles.local:
            tier.protect(self.pins.is_pinned)

    async def pin(self, owner: OwnerId, places: Sequence[StorageKey], lease_seconds: float) -> PinnedChunks:
        """Pin those of ``places``, all of ``owner``, that are here. See :meth:`.TieredStore.pin`."""
        if not 0.001 <= lease_seconds <= limits.LEASE_SECONDS_MAX:
            raise InvalidRequest(f"lease is {lease_seconds} s, must be 0.001 to {limits.LEASE_SECONDS_MAX}")
        sizes = {place: size for place in places if (size := await self._copies.local_bytes(place)) is not None}
        until_ms = self._clock_ms() + round(lease_seconds * 1000)
        lease = self.pins.add(owner, sizes, until_ms)
        try:
            # What was evicted between being found and being pinned is not pinned.
            for place in sizes:
                if await self._copies.local_bytes(place) is None:
                    self.pins.drop(lease, place)
        except BaseException:
            self.pins.release(owner, lease)
            raise
        return PinnedChunks(lease, until_ms, tuple(self.pins.holds(lease, place) for place in places))

    def _quota_bytes(self, owner: OwnerId) -> int:
        """What ``owner`` may have on the local tier where that is least."""
        bounds: list[int] = []
        for tier in self._roles.local:
            bounds.append(tier.capacity().limit_bytes)
            held = tier.holdings(owner)
            if held is not None and held.limit_bytes is not None:
                bounds.append(held.limit_bytes)
        return min(bounds, default=0)
