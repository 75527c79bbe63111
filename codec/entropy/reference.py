"""The entropy coder in NumPy: the specification. Slow, short, and what every other execution must equal byte for byte.

A stream is the lanes' final states (uint32 each, little-endian) followed by 16-bit words. Symbol ``i`` belongs to
lane ``i % lanes``. The decoder takes symbols in order; a lane whose state falls below 2^16 shifts in the next word,
lower lanes first. The encoder runs backwards. All lanes start (in the encoder) and end (in the decoder) at 2^16, which
together with the words being used up exactly makes most damage visible even without a checksum.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidData
from .model import PROBABILITY_BITS, SLOTS
from .stream import DecodeJob, EncodeJob

__all__ = ["decode_streams", "encode_streams"]

STATE_LOW = 1 << 16


def decode_streams(jobs: Sequence[DecodeJob]) -> list[NDArray[np.uint8]]:
    """Decode each job; raises :class:`InvalidData` for the first stream that is not exactly its symbols."""
    return [_decode(job) for job in jobs]


def encode_streams(jobs: Sequence[EncodeJob]) -> list[bytes]:
    """Encode each job; a symbol without a code raises :class:`ValueError` (a defect of the caller, not of data)."""
    return [_encode(job) for job in jobs]


def _tables_of(job: DecodeJob | EncodeJob, error: type[Exception]) -> NDArray[np.int64]:
    """Every symbol's table: its run's plus its context. All that could be named must exist, whether used or not."""
    shifts = job.shifts if isinstance(job, DecodeJob) else None
    contexts = 1 if job.contexts is None and shifts is None else job.context_count
    if len(job.runs.tables) and int(job.runs.tables.max()) + contexts > len(job.tables.frequencies):
        raise error(f"table {int(job.runs.tables.max()) + contexts - 1} of {len(job.tables.frequencies)}")
    chosen = job.table_of_symbol.astype(np.int64)
    most = 0
    if job.contexts is not None and len(job.contexts):
        chosen += job.contexts
        most += int(job.contexts.max())
    if shifts is not None:
        chosen += np.resize(shifts, len(chosen))
        most += int(shifts.max())
    if most >= contexts:
        raise error(f"context {most} of {contexts}")
    return chosen


def _decode(job: DecodeJob) -> NDArray[np.uint8]:
    data, lanes, count = job.data, job.lanes, job.symbol_count
    if len(data) < 4 * lanes or len(data) % 2:
        raise InvalidData(f"entropy stream has {len(data)} bytes, {lanes} lanes need {4 * lanes}")
    state = np.frombuffer(data, dtype="<u4", count=lanes).astype(np.int64)
    words = np.frombuffer(data, dtype="<u2", offset=4 * lanes).astype(np.int64)
    table_of = _tables_of(job, InvalidData)
    symbols = np.empty(count, dtype=np.uint8)
    used = 0
    for start in range(0, count, lanes):
        stop = min(start + lanes, count)
        active = state[: stop - start]
        slot = job.tables.decoder[table_of[start:stop], active & (SLOTS - 1)].astype(np.int64)
        symbols[start:stop] = slot & 0xFF
        active[:] = (slot >> 8 & 0xFFF) * (active >> PROBABILITY_BITS) + (slot >> 20)
        low = np.flatnonzero(active < STATE_LOW)
        if used + len(low) > len(words):
            raise InvalidData(f"entropy stream ends after {len(words)} words, more were needed at symbol {start}")
        active[low] = active[low] << 16 | words[used : used + len(low)]
        used += len(low)
    if used != len(words):
        raise InvalidData(f"entropy stream has {len(words) - used} words left over")
    if not (state == STATE_LOW).all():
        raise InvalidData("entropy stream does not end in its starting state")
    if job.opened is not None:
        parents = False if job.contexts is None else job.contexts != 0
        job.opened[...] = (symbols != job.zero) | parents
    if job.places is not None:
        places = np.flatnonzero(symbols == 0)
        if len(places) != len(job.places):
            raise InvalidData(f"entropy stream has {len(places)} escapes, {len(job.places)} are listed")
        job.places[...] = places
    return symbols


def _encode(job: EncodeJob) -> bytes:
    lanes, symbols = job.lanes, job.symbols
    table_of = _tables_of(job, ValueError)
    state = np.full(lanes, STATE_LOW, dtype=np.int64)
    groups: list[NDArray[np.int64]] = []
    last = (len(symbols) - 1) // lanes * lanes
    for start in range(last, -1, -lanes):
        stop = min(start + lanes, len(symbols))
        active = state[: stop - start]
        entry = job.tables.encoder[table_of[start:stop], symbols[start:stop]].astype(np.int64)
        frequency, cumulative = entry & 0xFFFF, entry >> 16
        if (frequency == 0).any():
            raise ValueError(f"a symbol near {start} has no code in its table")
        full = active >> (32 - PROBABILITY_BITS) >= frequency
        groups.append(active[full] & 0xFFFF)
        active[full] >>= 16
        active[:] = (active // frequency << PROBABILITY_BITS) + active % frequency + cumulative
    words = np.concatenate(groups[::-1]) if groups else np.empty(0, dtype=np.int64)
    return state.astype("<u4").tobytes() + words.astype("<u2").tobytes()
