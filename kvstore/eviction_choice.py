"""Which tier has which eviction policy, as a configuration says it; the policies themselves are not loaded for that."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ..errors import ConfigError

__all__ = ["DEFAULT_POLICY", "EvictionChoice", "PolicyName"]

_TIERS: Final = ("memory", "ssd")


class PolicyName(StrEnum):
    """The policies there are (:mod:`.eviction`)."""

    GITTINS = "gittins"
    LRU = "lru"
    S3_FIFO = "s3-fifo"
    W_TINYLFU = "w-tinylfu"
    GDSF = "gdsf"
    HINTED = "hinted"


DEFAULT_POLICY: Final = PolicyName.GITTINS
"""The one that saves most where chunks come with their attributes (docs/adr/0013)."""


@dataclass(frozen=True, slots=True)
class EvictionChoice:
    """The policy of each tier that evicts by itself."""

    memory: PolicyName = DEFAULT_POLICY
    ssd: PolicyName = DEFAULT_POLICY

    @classmethod
    def parse(cls, text: str) -> "EvictionChoice":
        """Of ``lru``, for all tiers, or ``memory=gittins,ssd=lru``; raises :class:`ConfigError`."""
        if "=" not in text:
            return cls(**dict.fromkeys(_TIERS, _named(text)))
        named: dict[str, PolicyName] = {}
        for item in text.split(","):
            tier, _, name = item.partition("=")
            if tier.strip() not in _TIERS or tier.strip() in named:
                raise ConfigError(f"eviction {text[:80]!r} does not name each tier once; tiers are {', '.join(_TIERS)}")
            named[tier.strip()] = _named(name)
        return cls(**named)

    def __str__(self) -> str:
        return self.memory if self.memory == self.ssd else f"memory={self.memory},ssd={self.ssd}"


def _named(text: str) -> PolicyName:
    try:
        return PolicyName(text.strip())
    except ValueError as error:
        raise ConfigError(f"eviction policy {text[:40]!r} is unknown; policies are {', '.join(PolicyName)}") from error
