"""Eviction policies by name: one file per policy, all behind :class:`EvictionPolicy`."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from ...errors import ConfigError
from .base import EvictionPolicy
from .lru import LruPolicy

__all__ = ["POLICIES", "EvictionPolicy", "LruPolicy", "make_policy"]

POLICIES: Final = MappingProxyType[str, Callable[[], EvictionPolicy]]({"lru": LruPolicy})


def make_policy(name: str) -> EvictionPolicy:
    """A new policy called ``name``; :class:`ConfigError` names the ones there are."""
    make = POLICIES.get(name)
    if make is None:
        raise ConfigError(f"eviction policy {name[:40]!r} is unknown; policies are {', '.join(POLICIES)}")
    return make()
