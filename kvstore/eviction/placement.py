"""Whether an owner's clients say where their chunks stand, by what they said last."""

from typing import Final

from ..attributes import UNATTRIBUTED, ChunkAttributes

__all__ = ["PlacementWatch"]

_PUTS: Final = 256
"""The share is over about as many puts."""
_PUTS_MIN: Final = 32
_SHARE_HIGH: Final = 0.5
_SHARE_LOW: Final = 0.25


class PlacementWatch:
    """The share of puts that leave a chunk's place in the tree unsaid, and a decision that does not flutter with it.

    Unsaid is the place of a chunk of which nothing is known, and of one that stands behind others and names none of
    them. ``unplaced`` becomes true above a half and false below a quarter; it begins as false.
    """

    __slots__ = ("_puts", "_share", "unplaced")

    def __init__(self) -> None:
        self._puts = 0
        self._share = 0.0
        self.unplaced = False

    def note(self, attributes: ChunkAttributes) -> bool:
        """Count a put; whether ``unplaced`` has changed."""
        unsaid = attributes.parent is None and (attributes.start > 0 or attributes == UNATTRIBUTED)
        self._puts = min(self._puts + 1, _PUTS)
        self._share += (unsaid - self._share) / self._puts
        before = self.unplaced
        if self._puts >= _PUTS_MIN:
            self.unplaced = self._share > (_SHARE_LOW if before else _SHARE_HIGH)
        return self.unplaced != before
