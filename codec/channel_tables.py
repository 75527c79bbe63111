"""The frequency tables of an exact segment, which channel uses which, and how both are written.

=========  ==================================================================================================
bytes      field
=========  ==================================================================================================
2 each     per table: the first group that occurs, and the number of groups from there to the last one, less one
...        per channel its table, in as few bits as the tables need (none for one table)
...        per table the codes of those groups, six bits each, all tables in one run
=========  ==================================================================================================

Bit fields begin on a byte each, lowest bits first. A group is ``2 ** span_log2`` neighbouring magnitudes of one sign;
group ``2 * (magnitude >> span_log2) + sign``. Code 0 is absent, code ``c`` weighs ``(4 + (c - 1) mod 4) * 2 ** ((c - 1)
div 4)``, which is within 1/8 of any count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .clusters import CLUSTERS_MAX, CODE_BITS, LOG2, LOG2_MANTISSA, choose, choose_span, grouped
from .entropy import native, native_planes
from .entropy.model import SLOTS, TableSet, table_set
from .entropy.native_planes import PackedTables, UnpackedTables

__all__ = ["PackedTables", "UnpackedTables", "WrittenTables", "codes_of", "frequencies_of", "pack", "unpack"]

WEIGHTS = np.array([0, *((4 + c % 4) << c // 4 for c in range(63))], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class WrittenTables:
    """Where tables are written (``data``, with what follows), and what was declared of them."""

    data: memoryview
    channels: int
    tokens: int
    tables: int
    span_log2: int


def pack(symbols: Sequence[NDArray[np.uint8]], counts: Sequence[NDArray[np.uint16]]) -> list[PackedTables]:
    """Choose and write the tables of segments with ``symbols`` ``[channels, tokens]``.

    ``counts`` ``[channels, 256]`` says how often each occurs.
    """
    if native.AVAILABLE:
        return native_planes.pack_tables(
            symbols,
            counts,
            log2=LOG2,
            log2_mantissa=LOG2_MANTISSA,
            tables_max=CLUSTERS_MAX,
        )
    return [_pack(*item) for item in zip(symbols, counts, strict=True)]


def unpack(written: Sequence[WrittenTables]) -> tuple[TableSet, list[UnpackedTables]]:
    """Read the tables of segments, all into one set, each segment's after those of the one before.

    Raises :class:`InvalidData` where there are too few bytes, or a table or a channel that cannot be.
    """
    if native.AVAILABLE:
        return native_planes.unpack_tables(written)
    read = [_unpack(item) for item in written]
    return table_set(np.concatenate([frequencies for frequencies, _ in read])), [item for _, item in read]


def codes_of(tables: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The codes ``[tables, 256]`` nearest to counts ``[tables, 256]``; a group that occurs has one above 0."""
    target = (tables << 17) // np.maximum(tables.max(axis=1, keepdims=True), 1)
    exponent = np.maximum(np.frexp(target.astype(np.float64))[1] - 3, 0)
    mantissa = target + (1 << exponent >> 1) >> exponent
    return np.where(tables > 0, np.maximum(4 * exponent + mantissa - 3, 1), 0).astype(np.uint8)


def frequencies_of(codes: NDArray[np.uint8], span_log2: int) -> NDArray[np.uint16]:
    """Frequencies ``[tables, 256]`` of symbols from the codes ``[tables, 256]`` of groups; each row sums to 4,096.

    Every symbol of a group has the group's weight; it gets 1 and its share, rounded down, of what is left, and the
    remainder goes to the first of the most frequent ones. Where one symbol is all there is, the same magnitude with
    the other sign gets 1. A row needs a code above 0.
    """
    symbols = np.arange(256)
    weights = WEIGHTS[codes[:, 2 * (symbols >> 1 + span_log2) + (symbols & 1)]]
    room = SLOTS - (weights > 0).sum(axis=1, keepdims=True)
    total = weights.sum(axis=1, keepdims=True)
    shares = np.where(weights > 0, 1 + weights * room // total, 0)
    rows, top = np.arange(len(codes)), shares.argmax(axis=1)
    shares[rows, top] += SLOTS - shares.sum(axis=1)
    lonely = rows[shares[rows, top] == SLOTS]
    shares[lonely, top[lonely]] -= 1
    shares[lonely, top[lonely] ^ 1] = 1
    return shares.astype(np.uint16, order="C")


def _pack(symbols: NDArray[np.uint8], counts: NDArray[np.uint16]) -> PackedTables:
    wide = counts.astype(np.int64)
    span_log2 = choose_span(wide.sum(axis=0))
    clusters = choose(grouped(wide, span_log2))
    codes = codes_of(clusters.tables)
    present = codes > 0
    first, last = present.argmax(axis=1), 255 - present[:, ::-1].argmax(axis=1)
    groups = np.arange(256)
    written = codes[(groups >= first[:, None]) & (groups <= last[:, None])]
    data = [
        np.stack([first, last - first], axis=1).astype(np.uint8).tobytes(),
        _pack_bits(clusters.labels, _label_bits(len(codes))),
        _pack_bits(written, CODE_BITS),
    ]
    return PackedTables(
        b"".join(data),
        span_log2,
        frequencies_of(codes, span_log2),
        (np.bincount(clusters.labels, minlength=len(codes)) * symbols.shape[1]).astype(np.uint32),
        symbols[np.argsort(clusters.labels, kind="stable")].reshape(-1),
    )


def _unpack(written: WrittenTables) -> tuple[NDArray[np.uint16], UnpackedTables]:
    labels_at = 2 * written.tables
    bits = _label_bits(written.tables)
    codes_at = labels_at + -(-written.channels * bits // 8)
    if len(written.data) < codes_at:
        raise InvalidData(f"exact segment ends before its tables do, {codes_at} bytes behind its head")
    ranges = np.frombuffer(written.data, np.uint8, labels_at).reshape(-1, 2).astype(np.int64)
    first, widths = ranges[:, 0], ranges[:, 1] + 1
    code_count = int(widths.sum())
    end = codes_at + -(-code_count * CODE_BITS // 8)
    if len(written.data) < end:
        raise InvalidData(f"exact segment ends before its tables do, {end} bytes behind its head")
    labels = _unpack_bits(written.data[labels_at:codes_at], written.channels, bits)
    groups = 256 >> written.span_log2
    if int((first + widths).max()) > groups or int(labels.max()) >= written.tables:
        raise InvalidData("exact segment has tables of groups, or channels with tables, that there are not")
    codes = np.zeros((written.tables, 256), dtype=np.uint8)
    place = np.arange(256)
    within = (place >= first[:, None]) & (place < (first + widths)[:, None])
    codes[within] = _unpack_bits(written.data[codes_at:end], code_count, CODE_BITS)
    if not codes.any(axis=1).all():
        raise InvalidData("exact segment has a table without symbols")
    order = np.argsort(labels, kind="stable")
    places = np.empty(written.channels, dtype=np.uint32)
    places[order] = np.arange(written.channels, dtype=np.uint32)
    run_lengths = np.bincount(labels, minlength=written.tables) * written.tokens
    return frequencies_of(codes, written.span_log2), UnpackedTables(end, places, run_lengths.astype(np.uint32))


def _label_bits(tables: int) -> int:
    return (tables - 1).bit_length()


def _pack_bits(numbers: NDArray[np.uint8], bits: int) -> bytes:
    wide = np.unpackbits(np.ascontiguousarray(numbers)[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(wide, bitorder="little").tobytes()


def _unpack_bits(data: memoryview, count: int, bits: int) -> NDArray[np.uint8]:
    if bits == 0:
        return np.zeros(count, dtype=np.uint8)
    flags = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(flags, axis=1, bitorder="little").reshape(-1)
