"""The residents of a policy as numbered slots in flat arrays, each with its place in the tree of prefixes.

A slot costs about 40 bytes beside the dictionary that finds it. A key that is not resident has a slot for as long as
resident chunks name it as their parent, so that it finds its children when it comes back.
"""

from array import array

from ..key import StorageKey

__all__ = ["NO_SLOT", "PrefixSlots"]

NO_SLOT = -1


class PrefixSlots:
    """Key to slot, and by slot: key, parent, number of resident children, size, and one small number of the owner's."""

    def __init__(self) -> None:
        self._slots: dict[StorageKey, int] = {}
        self._keys: list[StorageKey | None] = []
        self._free: list[int] = []
        self._resident = bytearray()
        self.parent = array("i")
        self.children = array("i")
        self.size_bytes = array("q")
        self.shape = array("h")
        self.residents = 0
        self.total_bytes = 0

    @property
    def slots(self) -> int:
        """Slots there are, free ones included."""
        return len(self._keys)

    def find(self, key: object) -> int:
        """The slot of a resident key, else ``NO_SLOT``."""
        slot = self._slots.get(key, NO_SLOT)  # type: ignore[call-overload]
        return slot if slot != NO_SLOT and self._resident[slot] else NO_SLOT

    def key(self, slot: int) -> StorageKey:
        """The key of a slot in use."""
        key = self._keys[slot]
        if key is None:
            raise KeyError(slot)
        return key

    def add(self, key: StorageKey, size_bytes: int, parent: StorageKey | None) -> int:
        """Make ``key``, which is not resident, resident below ``parent``; its slot."""
        slot = self._slot(key)
        above = NO_SLOT if parent is None or parent == key else self._slot(parent)
        self._resident[slot] = 1
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

    def is_resident(self, slot: int) -> bool:
        """Whether the slot's key is resident."""
        return bool(self._resident[slot])

    def first(self) -> int:
        """Any resident slot; ``NO_SLOT`` where there is none."""
        return next((slot for slot in self._slots.values() if self._resident[slot]), NO_SLOT)

    def _slot(self, key: StorageKey) -> int:
        slot = self._slots.get(key, NO_SLOT)
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
        self._slots[key] = slot
        return slot

    def _release(self, slot: int) -> None:
        """Free a slot that is neither resident nor anybody's parent."""
        if not self._resident[slot] and not self.children[slot]:
            del self._slots[self.key(slot)]
            self._keys[slot] = None
            self._free.append(slot)
