"""Eviction policies by name: one file per policy, all behind :class:`EvictionPolicy`."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from ...errors import ConfigError
from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..eviction_choice import DEFAULT_POLICY
from .base import EvictionPolicy
from .cost import RecomputeCost
from .gdsf import GdsfPolicy
from .gittins import GittinsPolicy
from .hinted import HintedPolicy
from .lru import LruPolicy
from .s3fifo import S3FifoPolicy
from .wtinylfu import WTinyLfuPolicy

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "UNATTRIBUTED",
    "ChunkAttributes",
    "EvictionPolicy",
    "GdsfPolicy",
    "GittinsPolicy",
    "HintedPolicy",
    "LruPolicy",
    "RecomputeCost",
    "S3FifoPolicy",
    "WTinyLfuPolicy",
    "make_policy",
]

POLICIES: Final = MappingProxyType[str, Callable[[], EvictionPolicy]](
    {kind.name: kind for kind in (GittinsPolicy, LruPolicy, S3FifoPolicy, WTinyLfuPolicy, GdsfPolicy, HintedPolicy)}
)


def make_policy(name: str) -> EvictionPolicy:
    """A new policy called ``name``; :class:`ConfigError` names the ones there are."""
    make = POLICIES.get(name)
    if make is None:
        raise ConfigError(f"eviction policy {name[:40]!r} is unknown; policies are {', '.join(POLICIES)}")
    return make()
