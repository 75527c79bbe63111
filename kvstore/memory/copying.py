"""Copying payloads into segments, and records from one segment to another, without holding up other threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..concurrency import run_sized
from ..key import StorageKey
from ..sharing import word_sum
from ..tier import Buffer
from .resident import Place

__all__ = ["Move", "copy_in", "copy_moves"]


@dataclass(frozen=True, slots=True)
class Move:
    """A record to be copied from ``source`` to where it will lie in the target."""

    key: StorageKey
    source: Place
    target: Place
    size_bytes: int


async def copy_in(target: memoryview, source: Buffer) -> int:
    """Copy ``source``, and return its word sum; a large one in a thread."""
    return await run_sized(len(source), partial(_copy_blocking, target, source))


def copy_moves(sources: dict[int, memoryview], target: memoryview, moves: Sequence[Move]) -> None:
    """Copy each record, header and all; the word sum in it goes with it, so that a reader notices a bad copy."""
    with target:
        for move in moves:
            origin = sources[move.source.segment][move.source.offset : move.source.offset + move.size_bytes]
            with origin, target[move.target.offset : move.target.offset + move.size_bytes] as place:
                np.copyto(np.frombuffer(place, np.uint8), np.frombuffer(origin, np.uint8))


def _copy_blocking(target: memoryview, source: Buffer) -> int:
    """Copy through NumPy, which lets other threads run meanwhile; a slice assignment does not.

    ``target`` is released here: a worker thread may hold its arguments a little longer than its caller waits.
    """
    with target:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
    return word_sum(source)
