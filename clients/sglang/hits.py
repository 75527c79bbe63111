"""How much of a prefix can be restored, where several pools must have their pages of it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["PoolPages", "PoolPolicy", "PrefixHits", "leading", "restorable_prefix"]


class PoolPolicy(StrEnum):
    """Which pages of a prefix a pool must have: SGLang's PoolHitPolicy, as far as it limits a hit."""

    ALL_PAGES = "all_pages"
    TRAILING_PAGES = "trailing_pages"


@dataclass(frozen=True, slots=True)
class PoolPages:
    """What is stored of a pool beside the KV: for each page of the prefix, whether it is there."""

    stored: Sequence[bool]
    policy: PoolPolicy
    trailing: int = 1


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """The pages of the longest prefix that all pools can restore, of each pool alone, and every length that works."""

    pages: int
    by_pool: Mapping[str, int]
    lengths: list[int]


def leading(stored: Sequence[bool]) -> int:
    """How many come before the first that is missing."""
    return next((index for index, there in enumerate(stored) if not there), len(stored))


def restorable_prefix(kv: Sequence[bool], pools: Mapping[str, PoolPages]) -> PrefixHits:
    """How long a prefix comes back whole: ``kv`` says which of its pages are stored."""
    kv_pages = leading(kv)
    lengths = set(range(1, kv_pages + 1))
    by_pool: dict[str, int] = {}
    for name, pool in pools.items():
        works = {length for length in range(1, kv_pages + 1) if _restores(pool, length)}
        by_pool[name] = max(works, default=0)
        lengths &= works
    return PrefixHits(max(lengths, default=0), by_pool, sorted(lengths))


def _restores(pool: PoolPages, length: int) -> bool:
    first = max(0, length - pool.trailing) if pool.policy is PoolPolicy.TRAILING_PAGES else 0
    return all(pool.stored[first:length])
