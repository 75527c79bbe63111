"""Who may hold how much of a tier, and who gives way: eviction policies composed, one per owner. Pure.

Rules, in the order in which a tier applies them to a record that comes in:

1. An owner past its limit gives up its own records, whatever room the tier has.
2. A tier that is full takes from the owner that is furthest above its guaranteed bytes, as that owner's policy says.
   An owner within them is never made to give way to another. Where nobody is above, the owner of the incoming record
   gives way to itself.
3. A pinned record is never a victim. A pinned record that a policy names is taken out of it and set aside; it goes
   back, as if just used, when it is pinned no more. So policies know nothing of pins, and any policy can be asked.

Whose a record is stands in its storage key (:func:`.key.owner_of`), so nothing is kept per record here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from ..errors import ConfigError
from .attributes import UNATTRIBUTED, ChunkAttributes
from .eviction import EvictionPolicy, LruPolicy
from .key import OwnerId, StorageKey, owner_of
from .tier import UNOWNED, Holdings

__all__ = ["Quota", "QuotaPolicy", "Quotas"]


@dataclass(frozen=True, slots=True)
class Quota:
    """What one owner may hold of one tier, in bytes as the tier charges them: at most, and whatever others do."""

    limit_bytes: int | None = None
    guaranteed_bytes: int = 0

    def __post_init__(self) -> None:
        if self.guaranteed_bytes < 0 or (self.limit_bytes is not None and self.limit_bytes < self.guaranteed_bytes):
            raise ConfigError(
                f"quota guarantees {self.guaranteed_bytes} bytes and allows {self.limit_bytes}: "
                "the guarantee must be 0 or more and within the limit"
            )


@dataclass(frozen=True, slots=True)
class Quotas:
    """The quota of every owner of one tier; owners that are not named have ``default``, which guarantees nothing."""

    default: Quota = Quota()
    by_owner: Mapping[OwnerId, Quota] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.default.guaranteed_bytes:
            raise ConfigError("a default quota cannot guarantee bytes: nobody knows how many owners there will be")

    def of(self, owner: OwnerId) -> Quota:
        """The quota of ``owner``."""
        return self.by_owner.get(owner, self.default)

    def check_fits(self, tier: str, limit_bytes: int) -> None:
        """Raise :class:`ConfigError` unless a tier of ``limit_bytes`` can keep everything that is guaranteed."""
        total = sum(quota.guaranteed_bytes for quota in self.by_owner.values())
        if total > limit_bytes:
            raise ConfigError(f"{tier} tier guarantees {total} bytes in all and has {limit_bytes} for records")


@runtime_checkable
class _Hinted(Protocol):
    """A policy that takes hints."""

    def record_hint(self, key: StorageKey, *, discard: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class _Aside:
    size_bytes: int
    attributes: ChunkAttributes


class _Share:
    """One owner's policy, and its pinned records that the policy has named as victims."""

    __slots__ = ("_aside", "_aside_bytes", "evictions", "owner", "policy", "quota")

    def __init__(self, owner: OwnerId, quota: Quota, policy: EvictionPolicy) -> None:
        self.owner = owner
        self.quota = quota
        self.policy = policy
        self.evictions = 0
        self._aside: dict[StorageKey, _Aside] = {}
        self._aside_bytes = 0

    def __contains__(self, key: object) -> bool:
        return key in self.policy or key in self._aside

    def __len__(self) -> int:
        return len(self.policy) + len(self._aside)

    @property
    def total_bytes(self) -> int:
        return self.policy.total_bytes + self._aside_bytes

    @property
    def surplus_bytes(self) -> int:
        return self.total_bytes - self.quota.guaranteed_bytes

    def size_of(self, key: StorageKey) -> int:
        aside = self._aside.get(key)
        return self.policy.size_of(key) if aside is None else aside.size_bytes

    def take_back(self, key: StorageKey) -> None:
        """Forget that ``key`` was set aside."""
        aside = self._aside.pop(key, None)
        self._aside_bytes -= 0 if aside is None else aside.size_bytes

    def victim(self, pinned: Callable[[StorageKey], bool]) -> StorageKey | None:
        for free in [key for key in self._aside if not pinned(key)]:
            aside = self._aside[free]
            self.take_back(free)
            self.policy.record_put(free, aside.size_bytes, aside.attributes)
        while (key := self.policy.victim()) is not None and pinned(key):
            aside = _Aside(self.policy.size_of(key), self.policy.attributes_of(key))
            self.policy.record_delete(key)
            self._aside[key] = aside
            self._aside_bytes += aside.size_bytes
        return key


class QuotaPolicy(EvictionPolicy):
    """The policy that every tier of kvloom has; ``make`` gives the one of each owner. Not thread-safe."""

    def __init__(
        self,
        make: Callable[[], EvictionPolicy] = LruPolicy,
        quotas: Quotas | None = None,
        *,
        owner_of: Callable[[StorageKey], OwnerId] = owner_of,
    ) -> None:
        self.quotas = quotas or Quotas()
        self.pinned: Callable[[StorageKey], bool] = _never
        """Says which records are not to be evicted for now."""
        sample = make()
        self.name, self.resident_bytes = sample.name, sample.resident_bytes
        self.evicted: Callable[[StorageKey], None] = _ignore
        """Told of every record that was evicted."""
        self._make = make
        self._owner_of = owner_of
        self._shares: dict[OwnerId, _Share] = {}
        self._holding: dict[OwnerId, _Share] = {}
        """Of all owners ever seen those that have records, so that finding a victim costs nothing for the others."""
        self._total_bytes = 0

    def set_quotas(self, quotas: Quotas) -> None:
        """Put other quotas in force: limits from each owner's next put, guarantees from the next eviction."""
        self.quotas = quotas
        for share in self._shares.values():
            share.quota = quotas.of(share.owner)

    @classmethod
    def around(cls, policy: EvictionPolicy | None) -> "QuotaPolicy":
        """``policy`` as one: itself, or that policy for all owners together, or LRU per owner for ``None``."""
        if isinstance(policy, QuotaPolicy):
            return policy
        return cls() if policy is None else cls(lambda: policy, owner_of=_nobody)

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Tell the owner's policy."""
        owner = self._owner_of(key)
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = _Share(owner, self.quotas.of(owner), self._make())
        before_bytes = share.total_bytes
        share.take_back(key)
        share.policy.record_put(key, size_bytes, attributes)
        self._note_change(share, before_bytes)

    def record_use(self, key: StorageKey) -> None:
        """Tell the owner's policy."""
        share = self._share_of(key)
        if share is not None:
            share.policy.record_use(key)

    def record_delete(self, key: StorageKey) -> None:
        """Tell the owner's policy."""
        share = self._share_of(key)
        if share is not None:
            before_bytes = share.total_bytes
            share.take_back(key)
            share.policy.record_delete(key)
            self._note_change(share, before_bytes)

    def record_evict(self, key: StorageKey) -> None:
        """Tell the owner's policy, and count."""
        share = self._share_of(key)
        if share is not None and key in share:
            share.evictions += 1
            before_bytes = share.total_bytes
            share.take_back(key)
            share.policy.record_evict(key)
            self._note_change(share, before_bytes)
            self.evicted(key)

    def record_hint(self, key: StorageKey, *, discard: bool) -> None:
        """Tell the owner's policy, if it takes hints."""
        share = self._share_of(key)
        if share is not None and key in share and isinstance(share.policy, _Hinted):
            share.policy.record_hint(key, discard=discard)

    def victim(self, owner: OwnerId | None = None) -> StorageKey | None:
        """The record to evict to make room for one of ``owner``; ``None`` where everything is pinned or guaranteed."""
        for share in self._givers(owner):
            key = share.victim(self.pinned)
            if key is not None:
                return key
        return None

    def own_victim(self, owner: OwnerId) -> StorageKey | None:
        """The record that ``owner`` gives up first."""
        share = self._shares.get(owner)
        return None if share is None else share.victim(self.pinned)

    def may_evict(self, key: StorageKey, owner: OwnerId) -> bool:
        """Whether ``key`` may be evicted out of turn to make room for a record of ``owner``."""
        share = self._share_of(key)
        if share is None or self.pinned(key):
            return False
        return share.surplus_bytes > 0 or share is self._shares.get(owner)

    def excess_bytes(self, owner: OwnerId, incoming_bytes: int) -> int:
        """By how much ``owner`` would be past its limit with ``incoming_bytes`` more; 0 or less where it is not."""
        limit_bytes = self.quotas.of(owner).limit_bytes
        if limit_bytes is None:
            return 0
        share = self._shares.get(owner)
        return (0 if share is None else share.total_bytes) + incoming_bytes - limit_bytes

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What ``owner`` holds; ``None`` where one policy serves all owners and nobody can say."""
        if self._owner_of is _nobody:
            return None
        share, limit_bytes = self._shares.get(owner), self.quotas.of(owner).limit_bytes
        if share is None:
            return Holdings(0, 0, 0, limit_bytes)
        return Holdings(share.total_bytes, len(share), share.evictions, limit_bytes)

    def size_of(self, key: StorageKey) -> int:
        """What the record was put with."""
        share = self._share_of(key)
        return 0 if share is None else share.size_of(key)

    def attributes_of(self, key: StorageKey) -> ChunkAttributes:
        """What the owner's policy goes by."""
        share = self._share_of(key)
        return UNATTRIBUTED if share is None else share.policy.attributes_of(key)

    @property
    def total_bytes(self) -> int:
        """The sum over all owners."""
        return self._total_bytes

    def __contains__(self, key: object) -> bool:
        share = self._share_of(StorageKey(key)) if isinstance(key, bytes) else None
        return share is not None and key in share

    def __len__(self) -> int:
        return sum(len(share) for share in self._holding.values())

    def _givers(self, owner: OwnerId | None) -> Iterator[_Share]:
        """Whom to ask for a victim, in order."""
        above = [share for share in self._holding.values() if share.surplus_bytes > 0]
        yield from sorted(above, key=lambda share: share.surplus_bytes, reverse=True)
        own = None if owner is None else self._shares.get(owner)
        if own is not None:
            yield own

    def _note_change(self, share: _Share, before_bytes: int) -> None:
        self._total_bytes += share.total_bytes - before_bytes
        if len(share):
            self._holding[share.owner] = share
        else:
            self._holding.pop(share.owner, None)

    def _share_of(self, key: StorageKey) -> _Share | None:
        return self._shares.get(self._owner_of(key))


def _ignore(key: StorageKey) -> None:
    """Nobody watches."""


def _never(key: StorageKey) -> bool:
    return False


def _nobody(key: StorageKey) -> OwnerId:
    return UNOWNED
