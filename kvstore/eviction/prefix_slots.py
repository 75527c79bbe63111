"""The residents of a policy as numbered slots in flat arrays, each with its place in the tree of prefixes.

A slot costs about 48 bytes, and 15 in the index that finds it. A key that is not resident has a slot for as long as
resident chunks name it as their parent, so that it finds its children when it comes back. Parents are what clients say:
there may be circles, and at worst one such slot per resident.
"""

from array import array

from ..attributes import ChunkAttributes
from ..key import StorageKey
from ..key_index import ABSENT, KeyIndex

__all__ = ["NO_SLOT", "PrefixSlots"]

NO_SLOT = ABSENT


class PrefixSlots:
    """Key to slot, and by slot: key, attributes, number of resident children, size, and one number of the user's."""

    def __init__(self) -> None:
        self._keys: list[StorageKey | None] = []
        self._slots = KeyIndex(self._keys)
        self._free = array("i")
        self._resident = bytearray()
        self.parent = array("i")
        self.children = array("i")
        self.size_bytes = array("q")
        self.shape = array("h")
        self.start = array("I")
        self.tokens = array("I")
        self._looked = 0
        self.residents = 0
        self.total_bytes = 0

    @property
    def slots(self) -> int:
        """Slots there are, free ones included."""
        return len(self._keys)

    def find(self, key: object) -> int:
        """The slot of a resident key, else ``NO_SLOT``."""
        slot = self._slots.find(key) if isinstance(key, bytes) else NO_SLOT
        return slot if slot != NO_SLOT and self._resident[slot] else NO_SLOT

    def key(self, slot: int) -> StorageKey:
        """The key of a slot in use."""
        key = self._keys[slot]
        if key is None:
            raise KeyError(slot)
        return key

    def add(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes) -> int:
        """Make ``key``, which is not resident, resident below its parent; its slot."""
        parent = attributes.parent
        slot = self._slot(key)
        above = NO_SLOT if parent is None or parent == key else self._slot(parent)
        self._resident[slot] = 1
        self.start[slot] = attributes.start
        self.tokens[slot] = attributes.tokens
        self.parent[slot] = above
        self.size_bytes[slot] = size_bytes
        self.residents += 1
        self.total_bytes += size_bytes
        if above != NO_SLOT:
            self.children[above] += 1
        return slot

    def remove(self, slot: int) -> int:
        """Take a resident out; the slot of its parent where that is resident, else ``NO_SLOT``."""
        above = self.parent[slot]
        self._resident[slot] = 0
        self.residents -= 1
        self.total_bytes -= self.size_bytes[slot]
        self._release(slot)
        if above == NO_SLOT:
            return NO_SLOT
        self.children[above] -= 1
        if self._resident[above]:
            return above
        self._release(above)
        return NO_SLOT

    def attributes(self, slot: int) -> ChunkAttributes:
        """What the chunk was put with."""
        above = self.parent[slot]
        return ChunkAttributes(None if above == NO_SLOT else self.key(above), self.start[slot], self.tokens[slot])

    def any(self) -> int:
        """A resident slot, the same one while it is resident; ``NO_SLOT`` where there is none.

        It looks on from where it found the last one, so that asking again and again costs little.
        """
        self._looked = max(self._resident.find(1, self._looked), self._looked)
        if self._looked >= len(self._resident) or not self._resident[self._looked]:
            self._looked = max(self._resident.find(1), 0)
        return self._looked if self.residents else NO_SLOT

    def _slot(self, key: StorageKey) -> int:
        slot = self._slots.find(key)
        if slot != NO_SLOT:
            return slot
        if self._free:
            slot = self._free.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
            self._resident.append(0)
            self.parent.append(NO_SLOT)
            self.children.append(0)
            self.size_bytes.append(0)
            self.shape.append(0)
            self.start.append(0)
            self.tokens.append(0)
        self._slots.add(key, slot)
        return slot

    def _release(self, slot: int) -> None:
        """Free a slot that is neither resident nor anybody's parent."""
        if not self._resident[slot] and not self.children[slot]:
            self._slots.remove(slot)
            self._keys[slot] = None
            self._free.append(slot)
