"""Having chunks copied into memory before they are asked for."""

from collections.abc import Sequence

from ..key import ContentKey, StorageKey
from .copies import Copies
from .listing import Listing
from .promotion import Promoter
from .roles import Roles

__all__ = ["Prefetch"]


class Prefetch:
    """The prefetches of a store: looks what is in memory, and offers the rest to the promoter."""

    def __init__(self, roles: Roles, listing: Listing, copies: Copies, promoter: Promoter) -> None:
        self._roles = roles
        self._listing = listing
        self._copies = copies
        self._promoter = promoter

    async def start(self, keys: Sequence[ContentKey], places: Sequence[StorageKey]) -> int:
        """For how many of ``keys``, which belong at ``places``, it is under way or not needed."""
        volatile = self._roles.volatile
        if not volatile:
            return 0
        near = await self._listing.ask(volatile[0], places)
        slower = (*volatile[1:], *self._roles.durable, *self._roles.shared)
        taken = 0
        for key, place, is_near in zip(keys, places, near, strict=True):
            taken += is_near or self._promoter.fetch(
                place,
                [
                    (self._copies.in_tier(tier, place, key), tuple(item for item in volatile if item is not tier))
                    for tier in slower
                ],
            )
        return taken
