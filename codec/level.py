"""Level names: the quality steps of one stored encoding, and which of them a reader of one needs.

A lossy stream of ours holds its levels from coarse to fine; each is a byte prefix of the next and halves the quantiser
step. CacheGen's levels have the same names and each stands alone. ``standard`` is the one that quality targets speak
of. ``exact`` is an independent lossless stream.
"""

from dataclasses import dataclass
from enum import StrEnum

from ..errors import ConfigError, LevelNotStored, UnknownLevel

__all__ = [
    "DRAFT",
    "ECONOMY",
    "EXACT",
    "FINE",
    "LOSSY_LEVELS",
    "STANDARD",
    "Level",
    "LossyCodec",
    "parse_level",
    "parse_lossy_codec",
    "require_level",
]


@dataclass(frozen=True, slots=True, order=True)
class Level:
    """``code`` is what containers store: 0, 1, … for lossy levels from coarse to fine, 255 for ``exact``."""

    code: int
    name: str

    def __str__(self) -> str:
        return self.name


DRAFT = Level(0, "draft")
ECONOMY = Level(1, "economy")
STANDARD = Level(2, "standard")
FINE = Level(3, "fine")
EXACT = Level(255, "exact")
LOSSY_LEVELS = (DRAFT, ECONOMY, STANDARD, FINE)


class LossyCodec(StrEnum):
    """What the lossy levels of a container are coded with; ``exact`` is the same beside either."""

    KVLOOM = "kvloom"
    """Embedded levels: each refines the coarser ones and needs them."""
    CACHEGEN = "cachegen"
    """Liu et al. 2024: every level is an encoding of its own, so any subset may be stored."""

    def needed_for(self, level: Level) -> tuple[Level, ...]:
        """The levels whose segments decoding ``level`` takes, coarse to fine."""
        if level == EXACT or self is LossyCodec.CACHEGEN:
            return (level,)
        return LOSSY_LEVELS[: level.code + 1]


_BY_NAME = {level.name: level for level in (*LOSSY_LEVELS, EXACT)}


def parse_level(name: str) -> Level:
    """The level called ``name``; :class:`UnknownLevel` names the ones there are."""
    level = _BY_NAME.get(name)
    if level is None:
        raise UnknownLevel(f"level {name[:40]!r} is unknown; levels are {', '.join(_BY_NAME)}")
    return level


def parse_lossy_codec(name: str) -> LossyCodec:
    """The codec called ``name``; :class:`ConfigError` names the ones there are."""
    try:
        return LossyCodec(name)
    except ValueError as error:
        raise ConfigError(f"codec {name[:40]!r} is not one of {', '.join(LossyCodec)}") from error


def require_level(level: Level, stored: tuple[Level, ...]) -> Level:
    """``level`` itself when it is among those ``stored``, else :class:`LevelNotStored`."""
    if level not in stored:
        names = ", ".join(str(item) for item in stored) or "none"
        raise LevelNotStored(f"level {level} is not stored for this chunk; stored: {names}")
    return level
