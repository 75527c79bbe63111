"""What the index tells whoever opens the log: which records were evicted, and in which order the others were used.

Hints only. The log says what there is; an entry that names no record of the log is passed over, and a record of which
the index knows nothing is kept. A place in the log is never used twice, for the seed of its segment is new each time,
and a record that has left it does not return to it. So what an index said once of a place stays true, and one that is
older than the log, or of another log, does no harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..key import StorageKey
from .frame import ALIGNMENT_BYTES
from .index_pipe import Loaded
from .recovery import Recovered
from .segment import Segment

__all__ = ["Hinted", "apply_hints", "last_frames", "location"]

_LENGTH_BITS: Final = 32
_OFFSET_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Hinted:
    """The residents, and how the index differs from them."""

    keys: list[StorageKey]
    """Least recently used first."""
    evicted: list[StorageKey]
    """Found in the log, and known to be resident no more."""
    unknown: list[StorageKey]
    """Of the residents those that the index does not have."""
    stray: list[int]
    """Packed places, without a length, that the index has and no resident."""


def location(packed: int) -> int:
    """A packed place without the length: the number of the segment, the offset in units of 64 bytes."""
    return packed >> _LENGTH_BITS


def apply_hints(found: Recovered, loaded: Loaded) -> Hinted:
    """What is resident of what was ``found``. Records of which the index has no use were used after all others."""
    keys = list(found.places)
    places = np.fromiter(map(location, found.places.values()), np.uint64, len(keys))
    listed, uses, stops = _of_this_log(found.segments, loaded)
    order = np.argsort(listed, kind="stable")
    listed, uses = listed[order], uses[order]
    at = np.minimum(np.searchsorted(listed, places), max(0, len(listed) - 1))
    known = listed[at] == places if len(listed) else np.zeros(len(keys), bool)
    offsets = places & np.uint64(2**_OFFSET_BITS - 1)
    gone = ~known & (offsets < stops[(places >> np.uint64(_OFFSET_BITS)).astype(np.intp)])
    used = np.where(known, uses[at], np.iinfo(np.uint64).max) if len(listed) else np.zeros(len(keys), np.uint64)
    by_use = np.argsort(used, kind="stable")
    stray = np.setdiff1d(listed, places[known])
    return Hinted(
        [keys[index] for index in by_use[~gone[by_use]].tolist()],
        [keys[index] for index in np.flatnonzero(gone).tolist()],
        [keys[index] for index in np.flatnonzero(~known & ~gone).tolist()],
        [place << _LENGTH_BITS for place in stray.tolist()],
    )


def last_frames(segments: Sequence[Segment]) -> dict[int, int]:
    """By ordinal, an offset that no frame of the segment lies beyond."""
    return {segment.ordinal: segment.end - ALIGNMENT_BYTES for segment in segments}


def _of_this_log(
    segments: Sequence[Segment], loaded: Loaded
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Of the entries in segments of this log: their locations and uses; and the stop of every segment, by ordinal."""
    stops = np.zeros(max((segment.ordinal for segment in segments), default=-1) + 1, np.uint64)
    claimed = dict(zip(loaded.claims["seed"].tolist(), loaded.claims["stop"].tolist(), strict=True))
    locations, uses = [], []
    by_seed = np.argsort(loaded.entries["seed"], kind="stable")
    seeds = loaded.entries["seed"][by_seed]
    for segment in segments:
        stops[segment.ordinal] = claimed.get(segment.seed, 0)
        seed = np.uint64(segment.seed)
        rows = loaded.entries[by_seed[np.searchsorted(seeds, seed) : np.searchsorted(seeds, seed, side="right")]]
        locations.append(rows["offset"].astype(np.uint64) | np.uint64(segment.ordinal << _OFFSET_BITS))
        uses.append(rows["use"].astype(np.uint64))
    if not locations:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64), stops
    return np.concatenate(locations), np.concatenate(uses), stops
