"""The default: the chunk whose keeping promises least goes first, by what was learnt of the reuse of its like.

Chunks are classed by how often they were used, how often their parent was, whether they are a tail, and their recompute
cost per byte; :class:`~.reuse_model.ReuseModel` learns when chunks of a class are used again, evicted ones included,
and ranks every class at every age. Most blocks are used once, and a conversation is not continued before its
answer was read, so neither recency nor frequency alone tells what to keep.

Chunks of one class that were touched at about the same time form a *cohort*, which ages as one. Only leaves of the
tree of prefixes are evicted: a child is worthless without its parent. The last chunk touched is taken for a parent of
what comes next. docs/adr/0013 has the alternatives that were measured.

Where clients do not say how chunks hang together (:class:`~.placement.PlacementWatch`), no leaf is known as one and all
this does harm: then chunks that are touched join one class of their own, whose cohorts are given up oldest first, in
the order of their uses, which is LRU. They stay in it until they are used after clients have begun to say.
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
from .cohorts import NO_COHORT, Cohort, CohortTable
from .cost import RecomputeCost
from .ghosts import GhostTable
from .placement import PlacementWatch
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
_COHORTS_MAX: Final = 65536
"""Beyond as many, cohorts are of longer quanta: each takes about 160 bytes, and there is one per class and quantum."""
_QUANTUM_DOUBLINGS_MAX: Final = 16
_CLASSES_MAX: Final = 2048
_FIT_EVERY_MIN: Final = 100
_FIT_EVERY: Final = 2000
_FITS_PER_TURNOVER: Final = 8
_MEMORY_TURNOVERS: Final = 64
"""Counts are halved every so many times that as much was put and used as is resident."""


class GittinsPolicy(EvictionPolicy):
    """O(log) of the number of cells amortised per call, the ranking apart, which is done every 2,000 calls or more.

    Per resident about 75 bytes beside its key, up to 7.5 ghosts of 8 bytes, and cohorts: about 16 bytes at a million.
    """

    name = "gittins"
    resident_bytes = 176

    def __init__(self, cost: RecomputeCost | None = None) -> None:
        self._cost = cost or RecomputeCost()
        self._slots = PrefixSlots()
        self._cohorts = CohortTable()
        self._cohort_of = array("I")
        """By slot: the number of its cohort."""
        self._before = array("i")
        self._after = array("i")
        """Neighbours in the cohort's list of chunks that may be evicted."""
        self._parked = bytearray()
        """Whether a slot waits outside that list until its last child is gone."""
        self._model = ReuseModel()
        self._kinds: dict[tuple[int, int, int], int] = {}
        """By shape, uses and uses of the parent: the class in the model."""
        self._open: list[Cohort | None] = []
        """By class: the cohort that takes newcomers."""
        self._ageing: list[deque[Cohort]] = [deque() for _ in range(BUCKETS)]
        self._cells: dict[int, dict[Cohort, None]] = {}
        """By ``class * BUCKETS + bucket``: the cohorts that have something to evict, in the order they came."""
        self._rank: list[int] = []
        """By cell: its place in the order of eviction."""
        self._filled: list[tuple[int, int]] = []
        """A heap of rank and number of all cells that have something, and of some that had."""
        self._listed = bytearray()
        """By cell, whether it is in the heap."""
        self._ghosts = GhostTable()
        """Evicted keys and their cohorts."""
        self._watch = PlacementWatch()
        self._unplaced_kind: int | None = None
        """The class of all that is touched while the watch says that places are not said."""
        self._tip = NO_SLOT
        self._chunk_tokens = 0
        self._token_bytes = 1.0
        self._now = 0
        self._next_ageing = 0
        self._next_fit = 0
        self._next_halving = 0

    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """Enter with the history of its earlier stay, if that is remembered."""
        if self._watch.note(attributes):
            self._change_over()
        slots = self._slots
        slot = slots.find(key)
        if slot != NO_SLOT:
            attributes = slots.attributes(slot) if attributes == UNATTRIBUTED else attributes
            cohort: Cohort | None = self._remove(slot)
        else:
            cohort = self._forget_ghost(key)
        slot = slots.add(key, size_bytes, attributes)
        while len(self._cohort_of) < slots.slots:
            self._cohort_of.append(NO_COHORT)
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
            self._forget_ghost(key)

    def record_evict(self, key: StorageKey) -> None:
        """Take ``key`` out and remember its cohort, to learn whether it would have been used."""
        slot = self._slots.find(key)
        if slot == NO_SLOT:
            return
        forgotten = self._ghosts.expect(max(_GHOSTS_MIN, _GHOSTS_PER_RESIDENT * self._slots.residents))
        for number, chunks in enumerate(np.bincount(forgotten).tolist() if forgotten else ()):
            self._lose_ghosts(number, chunks)
        cohort = self._remove(slot)
        cohort.gone += 1
        self._lose_ghosts(self._ghosts.add(key, cohort.number), 1)

    def victim(self) -> StorageKey | None:
        """The youngest leaf of the oldest cohort in the lowest cell that has one; LRU's while places are not said."""
        slots, unplaced = self._slots, self._watch.unplaced
        tip = NO_SLOT if unplaced else self._tip
        while self._filled:
            cell = self._cells.get(self._filled[0][1])
            while cell:
                cohort = next(iter(cell))
                while cohort.last != NO_SLOT:
                    slot = cohort.first if unplaced else cohort.last
                    if not slots.children[slot] and slot != tip:
                        return slots.key(slot)
                    self._unlink(cohort, slot)
                    self._parked[slot] = 1
            self._listed[heappop(self._filled)[1]] = 0
        tip = self._tip
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
        return 2 * _weight(density) + tail

    def _touch(self, slot: int, cohort: Cohort | None) -> None:
        """Put or use of ``slot``, which was in ``cohort`` and is in none now."""
        self._now += 1
        if self._now >= self._next_ageing:
            self._age()
        uses = 1
        if cohort is not None:
            self._model.note_used(cohort.kind, bucket_of(self._now - cohort.born))
            uses = min(self._model.classes[cohort.kind].uses + 1, _USES_MAX)
        kind = self._kind(slot, uses)
        home = self._open[kind]
        if home is None or self._now - home.born >= self._quantum():
            home = self._open[kind] = self._cohorts.open(kind, self._now)
            self._ageing[0].append(home)
        self._cohort_of[slot] = home.number
        home.resident += 1
        self._model.note_entered(kind, home.bucket, 1)
        self._link(home, slot)
        tip, self._tip = self._tip, slot
        if tip != NO_SLOT:
            self._unpark(tip)

    def _kind(self, slot: int, uses: int) -> int:
        if self._watch.unplaced and self._unplaced_kind is not None:
            return self._unplaced_kind
        above = self._slots.parent[slot]
        home = None if above == NO_SLOT else self._cohorts.get(self._cohort_of[above])
        parent_uses = 0 if home is None else min(self._model.classes[home.kind].uses, _PARENT_USES_MAX)
        label = (self._slots.shape[slot], uses, parent_uses)
        kind = self._kinds.get(label)
        if kind is None:
            kind = self._kinds[label] = self._add_class(
                ReuseClass(uses, parent_uses, bool(label[0] & 1), label[0] >> 1)
            )
        return kind

    def _change_over(self) -> None:
        """Places are said from now on, or are not: another order of eviction, and nobody leaves."""
        if self._unplaced_kind is None:
            density = 1.0 / self._token_bytes
            self._unplaced_kind = self._add_class(ReuseClass(0, 0, False, _weight(density)))
        self._fit()

    def _add_class(self, kind: ReuseClass) -> int:
        """A new class, ranked at once; past the limit the last one of as many uses stands in for it."""
        classes = self._model.classes
        if len(classes) >= _CLASSES_MAX:
            return max(range(len(classes)), key=lambda number: (classes[number].uses == kind.uses, number))
        number = self._model.add(kind)
        self._open.append(None)
        self._fit()
        return number

    def _forget_ghost(self, key: StorageKey) -> Cohort | None:
        """The cohort in which ``key`` was when it was evicted, if that is remembered."""
        number = self._ghosts.take(key)
        cohort = self._cohorts.get(number)
        self._lose_ghosts(number, 1)
        return cohort

    def _lose_ghosts(self, number: int, chunks: int) -> None:
        cohort = self._cohorts.get(number)
        if cohort is not None:
            cohort.gone -= chunks

    def _quantum(self) -> int:
        quantum = max(_QUANTUM_MIN, self._slots.residents // _COHORTS_PER_RESIDENTS)
        eighths_too_many = 8 * len(self._cohorts) // _COHORTS_MAX - 8
        return quantum << min(max(eighths_too_many, 0), _QUANTUM_DOUBLINGS_MAX)

    def _age(self) -> None:
        """Move cohorts on that have reached the next bucket, and rank anew when enough has happened."""
        self._next_ageing = self._now + _QUANTUM_MIN
        for bucket in range(BUCKETS - 2, -1, -1):
            queue = self._ageing[bucket]
            while queue and self._now - queue[0].born >= EDGES[bucket + 1]:
                cohort = queue.popleft()
                if not cohort.size:
                    self._release(cohort)
                    continue
                self._uncell(cohort)
                cohort.bucket = bucket + 1
                self._model.note_entered(cohort.kind, bucket + 1, cohort.size)
                self._ageing[bucket + 1].append(cohort)
                self._offer(cohort)
        oldest = self._ageing[-1]
        while oldest and not oldest[0].size:
            self._release(oldest.popleft())
        if self._now >= self._next_halving:
            if self._next_halving:
                self._model.halve()
            self._next_halving = self._now + _MEMORY_TURNOVERS * max(self._slots.residents, 4 * _FIT_EVERY)
        if self._now >= self._next_fit and self._model.classes:
            self._fit()

    def _release(self, cohort: Cohort) -> None:
        """Nobody is in the cohort, and nobody shall be."""
        if self._open[cohort.kind] is cohort:
            self._open[cohort.kind] = None
        self._cohorts.release(cohort)

    def _fit(self) -> None:
        every = max(_FIT_EVERY, self._slots.residents // _FITS_PER_TURNOVER)
        self._next_fit = self._now + min(every, self._now // 2 + _FIT_EVERY_MIN)
        if self._watch.unplaced:  # the older the sooner, whatever the class
            worth = np.tile(np.arange(BUCKETS, 0.0, -1.0), len(self._model.classes))
        else:
            worth = self._model.indices().ravel()
        order = worth.argsort(kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        self._rank = rank.tolist()
        self._filled = sorted((self._rank[number], number) for number in self._cells)
        self._listed = bytearray(len(order))
        for number in self._cells:
            self._listed[number] = 1

    def _offer(self, cohort: Cohort) -> None:
        """Let the cohort be found if it has something to evict."""
        if cohort.last != NO_SLOT:
            number = cohort.kind * BUCKETS + cohort.bucket
            self._cells.setdefault(number, {})[cohort] = None
            if not self._listed[number]:
                self._listed[number] = 1
                heappush(self._filled, (self._rank[number], number))

    def _link(self, cohort: Cohort, slot: int) -> None:
        self._before[slot] = cohort.last
        self._after[slot] = NO_SLOT
        if cohort.last != NO_SLOT:
            self._after[cohort.last] = slot
        else:
            cohort.first = slot
        cohort.last = slot
        self._offer(cohort)

    def _unlink(self, cohort: Cohort, slot: int) -> None:
        before, after = self._before[slot], self._after[slot]
        if before != NO_SLOT:
            self._after[before] = after
        else:
            cohort.first = after
        if after != NO_SLOT:
            self._before[after] = before
        else:
            cohort.last = before
            if before == NO_SLOT:
                self._uncell(cohort)

    def _uncell(self, cohort: Cohort) -> None:
        """The cohort has nothing to evict, or is about to move on."""
        number = cohort.kind * BUCKETS + cohort.bucket
        cell = self._cells.get(number)
        if cell is not None:
            cell.pop(cohort, None)
            if not cell:
                del self._cells[number]

    def _unpark(self, slot: int) -> None:
        cohort = self._cohorts.get(self._cohort_of[slot])
        if cohort is not None and self._parked[slot] and not self._slots.children[slot]:
            self._parked[slot] = 0
            self._link(cohort, slot)

    def _leave(self, slot: int) -> Cohort:
        """Take a resident out of its cohort."""
        cohort = self._cohorts.get(self._cohort_of[slot])
        if cohort is None:
            raise KeyError(slot)
        if self._parked[slot]:
            self._parked[slot] = 0
        else:
            self._unlink(cohort, slot)
        cohort.resident -= 1
        self._cohort_of[slot] = NO_COHORT
        return cohort

    def _remove(self, slot: int) -> Cohort:
        cohort = self._leave(slot)
        if slot == self._tip:
            self._tip = NO_SLOT
        above = self._slots.remove(slot)
        if above != NO_SLOT:
            self._unpark(above)
        return cohort


def _weight(density: float) -> int:
    """Cost per byte in quarter octaves."""
    return max(-_WEIGHT_MAX, min(_WEIGHT_MAX, math.floor(math.log2(density) * WEIGHTS_PER_OCTAVE)))
