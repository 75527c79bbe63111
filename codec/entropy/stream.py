"""What the entropy coder is asked to do: one job per stream, the same for every execution of the coder."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .model import TableSet

__all__ = ["LANES_MAX", "DecodeJob", "EncodeJob", "Runs", "lanes_for"]

LANES_MAX = 32
CONTEXTS_MAX = 256
TABLES_MAX = 1 << 16
SYMBOLS_PER_LANE_LOW = 2048
"""A lane costs four bytes; it is worth them from about this many symbols on."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Consecutive symbols coded with one table: ``tables`` ``[runs]`` uint32, ``lengths`` ``[runs]`` uint32.

    ``symbol_count`` is the symbols of all runs.
    """

    tables: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    symbol_count: int = field(init=False)

    def __post_init__(self) -> None:
        if self.tables.shape != self.lengths.shape or self.tables.ndim != 1:
            raise ValueError(f"tables {self.tables.shape} for run lengths {self.lengths.shape}")
        object.__setattr__(self, "symbol_count", int(self.lengths.sum(dtype=np.int64)))

    @classmethod
    def equal(cls, tables: NDArray[np.uint32], symbols_each: int) -> "Runs":
        """As many symbols with each of ``tables``."""
        runs = cls.__new__(cls)
        object.__setattr__(runs, "tables", tables)
        object.__setattr__(runs, "lengths", np.full(len(tables), symbols_each, np.uint32))
        object.__setattr__(runs, "symbol_count", len(tables) * symbols_each)
        return runs

    @classmethod
    def of_channels(cls, table_of_channel: Sequence[int] | NDArray[np.integer], symbols_per_channel: int) -> "Runs":
        """One run per stretch of channels that share a table."""
        tables = np.asarray(table_of_channel, dtype=np.uint32)
        if not len(tables):
            return cls(tables, tables)
        changes = np.flatnonzero(tables[1:] != tables[:-1])
        ends = np.empty(len(changes) + 1, np.int64)
        ends[:-1], ends[-1] = changes, len(tables) - 1
        lengths = (ends + 1) * symbols_per_channel
        lengths[1:] -= lengths[:-1].copy()
        return cls(tables[ends], lengths.astype(np.uint32))


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Symbols ``[n]`` uint8 to code; ``contexts`` ``[n]`` uint8 are added to the run's table.

    Contexts are below ``context_count``, which says nothing where there are none.
    """

    symbols: NDArray[np.uint8]
    tables: TableSet
    runs: Runs
    lanes: int
    contexts: NDArray[np.uint8] | None = None
    context_count: int = 2

    def __post_init__(self) -> None:
        if self.runs.symbol_count != len(self.symbols):
            raise ValueError(f"{len(self.symbols)} symbols in runs of {self.runs.symbol_count}")
        _check(self)

    @property
    def table_of_symbol(self) -> NDArray[np.uint32]:
        """The run's table of every symbol."""
        return np.repeat(self.runs.tables, self.runs.lengths)


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """A stream to decode, described as it was for :class:`EncodeJob`.

    ``shifts`` ``[period]`` uint8 are added to the contexts, over and over. Where ``opened`` ``[n]`` uint8 is given, it
    is written: 1 where a symbol is not ``zero`` or its context, shifts aside, is not 0; it may be ``contexts``. Where
    ``places`` uint32 is given, the places of the symbols 0 are written; there must be as many.
    """

    data: bytes | memoryview
    tables: TableSet
    runs: Runs
    lanes: int
    contexts: NDArray[np.uint8] | None = None
    context_count: int = 2
    shifts: NDArray[np.uint8] | None = None
    opened: NDArray[np.uint8] | None = None
    zero: int = 0
    places: NDArray[np.uint32] | None = None

    def __post_init__(self) -> None:
        _check(self)
        if self.shifts is not None and not (
            self.shifts.dtype == np.uint8 and self.shifts.ndim == 1 and len(self.shifts)
        ):
            raise ValueError(f"shifts {self.shifts.dtype} {self.shifts.shape}")
        if self.opened is not None and not _is_of(self.opened, self.runs.symbol_count):
            raise ValueError(f"opened {self.opened.dtype} {self.opened.shape} for {self.runs.symbol_count} symbols")

    @property
    def symbol_count(self) -> int:
        """Symbols the stream must hold."""
        return self.runs.symbol_count

    @property
    def table_of_symbol(self) -> NDArray[np.uint32]:
        """The run's table of every symbol."""
        return np.repeat(self.runs.tables, self.runs.lengths)


def _is_of(array: NDArray[np.uint8], count: int) -> bool:
    return array.dtype == np.uint8 and array.shape == (count,) and array.flags.c_contiguous


def _check(job: EncodeJob | DecodeJob) -> None:
    if not 1 <= job.lanes <= LANES_MAX:
        raise ValueError(f"{job.lanes} lanes, must be 1 to {LANES_MAX}")
    if not 1 <= job.context_count <= CONTEXTS_MAX:
        raise ValueError(f"{job.context_count} contexts, must be 1 to {CONTEXTS_MAX}")
    if len(job.tables.frequencies) > TABLES_MAX:
        raise ValueError(f"{len(job.tables.frequencies)} tables, at most {TABLES_MAX}")
    if job.contexts is not None and (job.contexts.dtype != np.uint8 or job.contexts.shape != (job.runs.symbol_count,)):
        raise ValueError(f"contexts {job.contexts.dtype} {job.contexts.shape} for {job.runs.symbol_count} symbols")


def lanes_for(symbol_count: int) -> int:
    """Lanes of a stream: a power of two that grows with its length, so that short streams pay for few states."""
    lanes = 1
    while lanes < LANES_MAX and 2 * lanes * SYMBOLS_PER_LANE_LOW <= symbol_count:
        lanes *= 2
    return lanes
