"""What each tier of a store is for, decided once: near and volatile, near and durable, or shared with other daemons."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ..tier import Tier

__all__ = ["Roles"]


@dataclass(frozen=True, slots=True)
class Roles:
    """The tiers of a store, from fast to slow within each role; the roles are asked in this order too.

    ``volatile`` tiers take a put at once. The first of the ``durable`` ones is what ``ack=disk`` means; they are
    written behind otherwise. ``shared`` ones are always written behind and never waited for, durable or not.
    """

    volatile: tuple[Tier, ...]
    durable: tuple[Tier, ...]
    shared: tuple[Tier, ...]

    @classmethod
    def of(cls, tiers: Sequence[Tier]) -> "Roles":
        """The roles of ``tiers``, given from fast to slow; :class:`ConfigError` where that order cannot be kept."""
        near = [tier for tier in tiers if not tier.shared]
        roles = cls(
            tuple(tier for tier in near if not tier.durable),
            tuple(tier for tier in near if tier.durable),
            tuple(tier for tier in tiers if tier.shared),
        )
        if not tiers or roles.all != tuple(tiers):
            raise ConfigError(
                "a store needs at least one tier, and its tiers in order: volatile tiers before durable ones, "
                "shared tiers after both"
            )
        names = [tier.name for tier in tiers]
        if len(set(names)) != len(names):
            raise ConfigError(f"tiers need names of their own, these are {names}")
        return roles

    @property
    def local(self) -> tuple[Tier, ...]:
        """The tiers that are this store's alone."""
        return self.volatile + self.durable

    @property
    def all(self) -> tuple[Tier, ...]:
        """All tiers, from fast to slow."""
        return self.volatile + self.durable + self.shared

    def named(self, name: str) -> Tier | None:
        """The tier called ``name``."""
        return next((tier for tier in self.all if tier.name == name), None)

    def faster_than(self, tier: Tier) -> tuple[Tier, ...]:
        """The local tiers before ``tier``."""
        return tuple(item for item in self.all[: self.all.index(tier)] if not item.shared)
