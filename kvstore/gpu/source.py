"""Where a pool gets chunks that are not resident, and where it puts those that are nowhere else."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...codec.container import Container
from ...codec.level import EXACT, Level
from ...codec.profiles import AnyProfile
from ...errors import InvalidRequest
from ..eviction import UNATTRIBUTED, ChunkAttributes
from ..key import ContentKey, OwnerId, StorageKey
from ..outcome import Outcome
from ..tier import UNOWNED

__all__ = ["AS_STORED", "ChunkSource", "ChunkWanted", "Encoding"]

AS_STORED = None
"""For a position: wherever the chunk was computed, or stands already."""


@dataclass(frozen=True, slots=True)
class ChunkWanted:
    """A decoded chunk, by what its numbers depend on: content key, level, and position of its first token.

    A prefix chunk's key fixes its position. One that is to be blended has one for every prompt; who copies it out of
    the pool anyway leaves ``first_position`` open and has the keys rotated on the way. ``attributes`` are for eviction.
    """

    content_key: ContentKey
    level: Level = EXACT
    first_position: int | None = AS_STORED
    owner: OwnerId = UNOWNED
    attributes: ChunkAttributes = field(default=UNATTRIBUTED, compare=False)

    @property
    def family(self) -> bytes:
        """Owner, content key and level: what is the same for all positions."""
        return self.owner + self.content_key + bytes((self.level.code,))

    def place(self, first_position: int) -> StorageKey:
        """The name that policies know the chunk by: all of its identity, beginning with the owner."""
        return StorageKey(self.family + first_position.to_bytes(4, "little"))


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a chunk that an engine has computed is to be stored."""

    levels: Collection[Level] = (EXACT,)
    profile: AnyProfile | None = None
    parent: ContentKey | None = None
    """The chunk before it, which the store's eviction goes by."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise InvalidRequest("0 levels asked for, at least 1 is needed")


class ChunkSource(Protocol):
    """The store beneath a pool; for an engine's process, a client of the daemon.

    Methods block; they are called from the pool's threads, several at once.
    """

    def load(self, keys: Sequence[ContentKey], level: Level) -> Sequence[Outcome[Container]]:
        """Read chunks at a level, verified; outcomes stand in the order of ``keys``. Raises nothing for what fails."""
        ...

    def profile(self, digest: bytes) -> AnyProfile | None:
        """The profile of that digest; None where it cannot be had."""
        ...

    def store(self, key: ContentKey, container: bytes, parent: ContentKey | None) -> None:
        """Keep a container, and whose child it is; raises :class:`KvloomError` where that is not possible."""
        ...
