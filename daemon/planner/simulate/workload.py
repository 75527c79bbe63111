"""Requests as they arrive: each a path of blocks, and the blocks that they share. Pure.

A block is what stands at one place behind one prefix, so equal blocks have equal KV. All of it is in flat arrays: a
million requests of twenty blocks take 200 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....errors import InvalidData, TooManyItems
from . import limits

__all__ = ["NO_BLOCK", "RequestClass", "Workload", "WorkloadBuilder", "classify"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SmallInts = NDArray[np.int32]

NO_BLOCK = -1
_REUSE_HIGH = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """``requests`` arrive at ``arrivals_s``, ascending; request ``r`` has ``blocks[first[r] : first[r + 1]]``."""

    name: str
    arrivals_s: Floats
    """[requests]"""
    first: Ints
    """[requests + 1]"""
    blocks: SmallInts
    """[uses], block numbers, front to back."""
    tokens: SmallInts
    """[blocks]"""
    starts: SmallInts
    """[blocks], tokens before the block."""
    parents: SmallInts
    """[blocks], the block before it, or ``NO_BLOCK``."""

    def __len__(self) -> int:
        return len(self.arrivals_s)

    def path(self, request: int) -> SmallInts:
        """The blocks of one request."""
        return self.blocks[self.first[request] : self.first[request + 1]]

    def prompt_tokens(self) -> Ints:
        """[requests]"""
        sums = np.concatenate(([0], np.cumsum(self.tokens[self.blocks], dtype=np.int64)))
        return sums[self.first[1:]] - sums[self.first[:-1]]

    def head(self, requests: int) -> "Workload":
        """The first ``requests`` of them."""
        count = min(requests, len(self))
        first = self.first[: count + 1]
        tables = self.tokens, self.starts, self.parents
        return Workload(self.name, self.arrivals_s[:count], first, self.blocks[: first[-1]], *tables)

    def paced(self, factor: float) -> "Workload":
        """The same requests, ``factor`` times as fast after one another."""
        tables = self.blocks, self.tokens, self.starts, self.parents
        return Workload(self.name, self.arrivals_s / factor, self.first, *tables)


class WorkloadBuilder:
    """Numbers blocks by their parent and a name of any kind, and collects requests."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers: dict[tuple[int, object], int] = {}
        self._tokens: list[int] = []
        self._starts: list[int] = []
        self._parents: list[int] = []
        self._arrivals: list[float] = []
        self._first = [0]
        self._blocks: list[int] = []

    def add(self, arrival_s: float, names: Sequence[object], tokens: Sequence[int]) -> None:
        """A request: its blocks by name and length, front to back.

        Raises :class:`InvalidData` and :class:`TooManyItems`.
        """
        if not names or len(names) != len(tokens) or min(tokens) < 1:
            raise InvalidData(f"request {len(self._arrivals)} has no blocks, or blocks without tokens")
        if len(self._arrivals) >= limits.SIMULATED_REQUESTS_MAX:
            raise TooManyItems(f"more than {limits.SIMULATED_REQUESTS_MAX} requests, which is the limit")
        if len(self._blocks) + len(names) > limits.SIMULATED_BLOCK_USES_MAX:
            raise TooManyItems(f"more than {limits.SIMULATED_BLOCK_USES_MAX} blocks in all, which is the limit")
        parent, start = NO_BLOCK, 0
        for name, length in zip(names, tokens, strict=True):
            number = self._numbers.setdefault((parent, (name, length)), len(self._tokens))
            if number == len(self._tokens):
                self._tokens.append(length)
                self._starts.append(start)
                self._parents.append(parent)
            self._blocks.append(number)
            parent, start = number, start + length
        self._arrivals.append(arrival_s)
        self._first.append(len(self._blocks))

    def build(self) -> Workload:
        """All requests in the order of their arrival, the first at 0. Raises :class:`InvalidData` for none."""
        if not self._arrivals:
            raise InvalidData(f"trace {self._name} has no requests")
        arrivals = np.array(self._arrivals)
        if not np.all(np.isfinite(arrivals)):
            raise InvalidData(f"trace {self._name} has an arrival that is no moment")
        order = np.argsort(arrivals, kind="stable")
        first, blocks = np.array(self._first), np.array(self._blocks, dtype=np.int32)
        if np.any(np.diff(order) != 1):
            lengths = np.diff(first)[order]
            blocks = np.concatenate([blocks[first[r] : first[r + 1]] for r in order])
            first = np.concatenate(([0], np.cumsum(lengths)))
        tables = (np.array(table, dtype=np.int32) for table in (self._tokens, self._starts, self._parents))
        return Workload(self._name, arrivals[order] - arrivals.min(), first, blocks, *tables)


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests of a kind: by the length of the prompt and by how much of it an earlier request had."""

    name: str
    members: Ints


def classify(workload: Workload) -> list[RequestClass]:
    """Six classes, empty ones left out: prompts below the median length or not; of which none, less than half, or more
    tokens stand in blocks that an earlier request had (whether a cache kept them or not).
    """
    lengths = workload.prompt_tokens()
    owner = np.repeat(np.arange(len(workload)), np.diff(workload.first))
    seen = np.ones(len(workload.blocks), dtype=bool)
    seen[np.unique(workload.blocks, return_index=True)[1]] = False
    again = np.bincount(owner, weights=workload.tokens[workload.blocks] * seen, minlength=len(workload))
    share = again / lengths
    long = lengths >= np.median(lengths)
    found: list[RequestClass] = []
    for size, is_long in (("short", False), ("long", True)):
        for reuse, chosen in (
            ("new", share == 0),
            ("partly seen", (share > 0) & (share < _REUSE_HIGH)),
            ("mostly seen", share >= _REUSE_HIGH),
        ):
            members = np.flatnonzero(chosen & (long == is_long))
            if len(members):
                found.append(RequestClass(f"{size}, {reuse}", members))
    return found
