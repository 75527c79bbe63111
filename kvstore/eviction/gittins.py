"""The default: the chunk whose keeping promises least goes first, by what was learnt of the reuse of its like.

Chunks are classed by how often they were used, how often their parent was, whether they are a tail, and their recompute
cost per byte; :class:`~.reuse_model.ReuseModel` learns when chunks of a class are used again, evicted ones included,
and ranks every class at every age. Most blocks are used once, and a conversation is not continued before its
answer was read, so neither recency nor frequency alone tells what to keep.

Chunks of one class that were touched at about the same time form a *cohort*, which ages as one. Only leaves of the
tree of prefixes are evicted: a child is worthless without its parent. The last chunk touched is taken for a parent of
what comes next. docs/adr/0013 has the alternatives that were measured.
"""

import math
from array import array
from collections import deque
from heapq import heappop, heappush
from typing import Final

import numpy as np

from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey
from .base import EvictionPolicy
from .cost import RecomputeCost
from .ghosts import GhostTable
from .prefix_slots import NO_SLOT, PrefixSlots
from .reuse_model import BUCKETS, EDGES, WEIGHTS_PER_OCTAVE, ReuseClass, ReuseModel, bucket_of

__all__ = ["GittinsPolicy"]

_USES_MAX: Final = 12
_PARENT_USES_MAX: Final = 3
_WEIGHT_MAX: Final = 240
_GHOSTS_PER_RESIDENT: Final = 6
_GHOSTS_MIN: Final = 64
_QUANTUM_MIN: Final = 32
_COHORTS_PER_RESIDENTS: Final = 1024
_CLASSES_MAX: Final = 2048
_FIT_EVERY_MIN: Final = 100
_FIT_EVERY: Final = 2000
_FITS_PER_TURNOVER: Final = 8
_MEMORY_TURNOVERS: Final = 64
"""Counts are halved every so many times that as much was put and used as is resident."""


class _Cohort:
    """Chunks of one class touched within one quantum; ``last`` heads the list of those that may be evicted."""

    __slots__ = ("born", "bucket", "gone", "last", "number", "resident")

    def __init__(self, number: int, born: int) -> None:
        self.number = number
        self.born = born
        self.bucket = 0
        self.resident = 0
        self.gone = 0
        """Evicted, still remembered, and not asked for since."""
        self.last = NO_SLOT


class GittinsPolicy(EvictionPolicy):
    """O(log) of the number of cells amortised per call, the ranking apart, which is done every 2,000 calls or more.

    Per resident about 130 bytes beside its key, and six ghosts of 12 bytes.
    """

    name = "gittins"
    resident_bytes = 240

    def __init__(self, cost: RecomputeCost | None = None) -> None:
        self._cost = cost or RecomputeCost()
        self._slots = PrefixSlots()
        self._cohort_of: list[_Cohort | None] = []
        self._before = array("i")
        self._after = array("i")
        """Neighbours in the cohort's list of chunks that may be evicted."""
        self._parked = bytearray()
        """Whether a slot waits outside that list until its last child is gone."""
        self._model = ReuseModel()
        self._numbers: dict[tuple[int, int, int], int] = {}
        """By shape, uses and uses of the parent: the class in the model."""
        self._open: list[_Cohort | None] = []
        """By class: the cohort that takes newcomers."""
        self._ageing: list[deque[_Cohort]] = [deque() for _ in range(BUCKETS)]
        self._cells: dict[int, dict[_Cohort, None]] = {}
        """By ``class * BUCKETS + bucket``: the cohorts that have something to evict, in the order they came."""
        self._rank: list[int] = []
        """By cell: its place in the order of eviction."""
        self._filled: list[tuple[int, int]] = []
        """A heap of rank and number of all cells that have something, and of some that had."""
        self._listed = bytearray()
        """By cell, whether it is in the heap."""
        self._ghosts: GhostTable[_Cohort] = GhostTable()
        self._tip = NO_SLOT
        self._chunk_tokens = 0
        self._token_bytes = 1.0
        self._now = 0
        self._next_ageing = 0
        self._next_fit = 0
        self._next_halving = 0

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Enter with the history of its earlier stay, if that is remembered."""
        slots = self._slots
        slot = slots.find(key)
        if slot != NO_SLOT:
            attributes = slots.attributes(slot) if attributes == UNATTRIBUTED else attributes
            cohort: _Cohort | None = self._remove(slot)
        else:
            cohort = self._ghosts.take(key)
            if cohort is not None:
                cohort.gone -= 1
        slot = slots.add(key, size_bytes, attributes)
        while len(self._cohort_of) < slots.slots:
            self._cohort_of.append(None)
            self._before.append(NO_SLOT)
            self._after.append(NO_SLOT)
            self._parked.append(0)
        slots.shape[slot] = self._shape(size_bytes, attributes)
        self._touch(slot, cohort)

    def record_use(self, key: StorageKey) -> None:
        """Move to the class of chunks with one use more."""
        slot = self._slots.find(key)
        if slot != NO_SLOT:
            self._touch(slot, self._leave(slot))

    def record_delete(self, key: StorageKey) -> None:
        """Take ``key`` out."""
        slot = self._slots.find(key)
        if slot != NO_SLOT:
            self._remove(slot)
        else:
            cohort = self._ghosts.take(key)
            if cohort is not None:
                cohort.gone -= 1

    def record_evict(self, key: StorageKey) -> None:
        """Take ``key`` out and remember its cohort, to learn whether it would have been used."""
        slot = self._slots.find(key)
        if slot == NO_SLOT:
            return
        for lost in self._ghosts.expect(max(_GHOSTS_MIN, _GHOSTS_PER_RESIDENT * self._slots.residents)):
            lost.gone -= 1
        cohort = self._remove(slot)
        cohort.gone += 1
        pushed_out = self._ghosts.add(key, cohort)
        if pushed_out is not None:
            pushed_out.gone -= 1

    def victim(self) -> StorageKey | None:
        """The youngest leaf of the oldest cohort in the lowest cell that has one."""
        slots, tip = self._slots, self._tip
        while self._filled:
            cell = self._cells.get(self._filled[0][1])
            while cell:
                cohort = next(iter(cell))
                while cohort.last != NO_SLOT:
                    slot = cohort.last
                    if not slots.children[slot] and slot != tip:
                        return slots.key(slot)
                    self._unlink(cohort, slot)
                    self._parked[slot] = 1
            self._listed[heappop(self._filled)[1]] = 0
        if tip != NO_SLOT and not slots.children[tip]:
            return slots.key(tip)
        slot = slots.any()  # parents in a circle: keys that no honest client computes
        return None if slot == NO_SLOT else slots.key(slot)

    def size_of(self, key: StorageKey) -> int:
        """The size ``key`` was last put with."""
        slot = self._slots.find(key)
        return 0 if slot == NO_SLOT else self._slots.size_bytes[slot]

    def attributes_of(self, key: StorageKey) -> ChunkAttributes:
        """All of them."""
        slot = self._slots.find(key)
        return UNATTRIBUTED if slot == NO_SLOT else self._slots.attributes(slot)

    @property
    def remembered(self) -> int:
        """Evicted keys that are remembered."""
        return len(self._ghosts)

    @property
    def total_bytes(self) -> int:
        """The sum of all sizes."""
        return self._slots.total_bytes

    def __contains__(self, key: object) -> bool:
        return self._slots.find(key) != NO_SLOT

    def __len__(self) -> int:
        return self._slots.residents

    def _shape(self, size_bytes: int, attributes: ChunkAttributes) -> int:
        """Quarter octaves of cost per byte, times two, plus one for a tail: a chunk shorter than the longest seen.

        Tails have any length and are seldom used again, so all of them count as one first chunk's: learnt soon.
        """
        self._chunk_tokens = max(self._chunk_tokens, attributes.tokens)
        tail = attributes.tokens < self._chunk_tokens
        density = 1.0 / self._token_bytes
        if not tail:
            self._token_bytes = max(size_bytes, 1) / max(attributes.tokens, 1)
            density = max(self._cost.of(attributes), 1.0) / max(size_bytes, 1)
        weight = math.floor(math.log2(density) * WEIGHTS_PER_OCTAVE)
        return 2 * max(-_WEIGHT_MAX, min(_WEIGHT_MAX, weight)) + tail

    def _touch(self, slot: int, cohort: _Cohort | None) -> None:
        """Put or use of ``slot``, which was in ``cohort`` and is in none now."""
        self._now += 1
        if self._now >= self._next_ageing:
            self._age()
        uses = 1
        if cohort is not None:
            self._model.note_used(cohort.number, bucket_of(self._now - cohort.born))
            uses = min(self._model.classes[cohort.number].uses + 1, _USES_MAX)
        number = self._number(slot, uses)
        home = self._open[number]
        if home is None or self._now - home.born >= self._quantum():
            home = self._open[number] = _Cohort(number, self._now)
            self._ageing[0].append(home)
        self._cohort_of[slot] = home
        home.resident += 1
        self._model.note_entered(number, home.bucket, 1)
        self._link(home, slot)
        tip, self._tip = self._tip, slot
        if tip != NO_SLOT:
            self._unpark(tip)

    def _number(self, slot: int, uses: int) -> int:
        above = self._slots.parent[slot]
        home = None if above == NO_SLOT else self._cohort_of[above]
        parent_uses = 0 if home is None else min(self._model.classes[home.number].uses, _PARENT_USES_MAX)
        label = (self._slots.shape[slot], uses, parent_uses)
        number = self._numbers.get(label)
        if number is None:
            number = self._numbers[label] = self._add_class(
                ReuseClass(uses, parent_uses, bool(label[0] & 1), label[0] >> 1)
            )
        return number

    def _add_class(self, kind: ReuseClass) -> int:
        """A new class, ranked at once; past the limit the last one of as many uses stands in for it."""
        classes = self._model.classes
        if len(classes) >= _CLASSES_MAX:
            return max(range(len(classes)), key=lambda number: (classes[number].uses == kind.uses, number))
        number = self._model.add(kind)
        self._open.append(None)
        self._fit()
        return number

    def _quantum(self) -> int:
        return max(_QUANTUM_MIN, self._slots.residents // _COHORTS_PER_RESIDENTS)

    def _age(self) -> None:
        """Move cohorts on that have reached the next bucket, and rank anew when enough has happened."""
        self._next_ageing = self._now + _QUANTUM_MIN
        for bucket in range(BUCKETS - 2, -1, -1):
            queue = self._ageing[bucket]
            while queue and self._now - queue[0].born >= EDGES[bucket + 1]:
                cohort = queue.popleft()
                alive = cohort.resident + cohort.gone
                if not alive:
                    continue
                self._uncell(cohort)
                cohort.bucket = bucket + 1
                self._model.note_entered(cohort.number, bucket + 1, alive)
                self._ageing[bucket + 1].append(cohort)
                self._offer(cohort)
        if self._now >= self._next_halving:
            if self._next_halving:
                self._model.halve()
            self._next_halving = self._now + _MEMORY_TURNOVERS * max(self._slots.residents, 4 * _FIT_EVERY)
        if self._now >= self._next_fit and self._model.classes:
            self._fit()

    def _fit(self) -> None:
        every = max(_FIT_EVERY, self._slots.residents // _FITS_PER_TURNOVER)
        self._next_fit = self._now + min(every, self._now // 2 + _FIT_EVERY_MIN)
        order = self._model.indices().ravel().argsort(kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        self._rank = rank.tolist()
        self._filled = sorted((self._rank[number], number) for number in self._cells)
        self._listed = bytearray(len(order))
        for number in self._cells:
            self._listed[number] = 1

    def _offer(self, cohort: _Cohort) -> None:
        """Let the cohort be found if it has something to evict."""
        if cohort.last != NO_SLOT:
            number = cohort.number * BUCKETS + cohort.bucket
            self._cells.setdefault(number, {})[cohort] = None
            if not self._listed[number]:
                self._listed[number] = 1
                heappush(self._filled, (self._rank[number], number))

    def _link(self, cohort: _Cohort, slot: int) -> None:
        self._before[slot] = cohort.last
        self._after[slot] = NO_SLOT
        if cohort.last != NO_SLOT:
            self._after[cohort.last] = slot
        cohort.last = slot
        self._offer(cohort)

    def _unlink(self, cohort: _Cohort, slot: int) -> None:
        before, after = self._before[slot], self._after[slot]
        if before != NO_SLOT:
            self._after[before] = after
        if after != NO_SLOT:
            self._before[after] = before
        else:
            cohort.last = before
            if before == NO_SLOT:
                self._uncell(cohort)

    def _uncell(self, cohort: _Cohort) -> None:
        """The cohort has nothing to evict, or is about to move on."""
        number = cohort.number * BUCKETS + cohort.bucket
        cell = self._cells.get(number)
        if cell is not None:
            cell.pop(cohort, None)
            if not cell:
                del self._cells[number]

    def _unpark(self, slot: int) -> None:
        cohort = self._cohort_of[slot]
        if cohort is not None and self._parked[slot] and not self._slots.children[slot]:
            self._parked[slot] = 0
            self._link(cohort, slot)

    def _leave(self, slot: int) -> _Cohort:
        """Take a resident out of its cohort."""
        cohort = self._cohort_of[slot]
        if cohort is None:
            raise KeyError(slot)
        if self._parked[slot]:
            self._parked[slot] = 0
        else:
            self._unlink(cohort, slot)
        cohort.resident -= 1
        self._cohort_of[slot] = None
        return cohort

    def _remove(self, slot: int) -> _Cohort:
        cohort = self._leave(slot)
        if slot == self._tip:
            self._tip = NO_SLOT
        above = self._slots.remove(slot)
        if above != NO_SLOT:
            self._unpark(above)
        return cohort
