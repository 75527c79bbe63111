"""Level names: the quality steps of one stored encoding.

A lossy stream holds its levels from coarse to fine; each is a byte prefix of the next and halves the quantiser step.
``standard`` is the one that quality targets speak of. ``exact`` is an independent lossless stream.
"""

from dataclasses import dataclass

from ..errors import LevelNotStored, UnknownLevel

__all__ = ["DRAFT", "ECONOMY", "EXACT", "FINE", "LOSSY_LEVELS", "STANDARD", "Level", "parse_level", "require_level"]


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
_BY_NAME = {level.name: level for level in (*LOSSY_LEVELS, EXACT)}


def parse_level(name: str) -> Level:
    """The level called ``name``; :class:`UnknownLevel` names the ones there are."""
    level = _BY_NAME.get(name)
    if level is None:
        raise UnknownLevel(f"level {name[:40]!r} is unknown; levels are {', '.join(_BY_NAME)}")
    return level


def require_level(level: Level, stored: tuple[Level, ...]) -> Level:
    """``level`` itself when it is among those ``stored``, else :class:`LevelNotStored`."""
    if level not in stored:
        names = ", ".join(str(item) for item in stored) or "none"
        raise LevelNotStored(f"level {level} is not stored for this chunk; stored: {names}")
    return level
