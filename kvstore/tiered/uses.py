"""Uses of chunks that the store does not see: by clients that hold them already, or that read what was lent to them."""

from collections.abc import Sequence

from ..key import ContentKey, check_count, storage_keys
from ..namespace import Namespace
from ..tier import Tier
from .lending import LentUses
from .roles import Roles
from .tally import Tally
from .tenants import Tenants

__all__ = ["Uses"]


class Uses:
    """Told of uses elsewhere, so that eviction and counters take them for uses here. Changes nothing else."""

    def __init__(self, roles: Roles, lender: Tier | None, tenants: Tenants, tally: Tally) -> None:
        """``lender`` is the tier whose memory is lent."""
        self._roles = roles
        self._lender = lender
        self._tenants = tenants
        self._tally = tally

    def note_elsewhere(self, namespace: Namespace, keys: Sequence[ContentKey]) -> None:
        """``keys`` were used where the store does not see it: in every tier that counts as a use."""
        check_count(keys)
        places = storage_keys(namespace.secret, keys)
        for tier in self._roles.all:
            tier.touch(places)

    def note_lent(self, namespace: Namespace, uses: Sequence[LentUses]) -> None:
        """Chunks that were lent were read again by whom they were lent to."""
        check_count(uses)
        if self._lender is None:
            return
        self._lender.touch(storage_keys(namespace.secret, [item.key for item in uses]))
        tenant = self._tenants.of(namespace)
        for item in uses:
            self._tally.note_hit(tenant, self._lender.name, item.size_bytes, item.reads)
