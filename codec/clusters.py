"""Which channels of a segment share a frequency table at the exact level, and how a table is written.

Channels differ far more than tokens do: a table per channel would save 7 % over one for all, and cost more than that.
So channels are clustered by what coding them costs (k-means with code lengths for distances), clusters are joined as
long as that pays, the tables' own bits counted. Which clustering an encoder finds is its own affair: a decoder reads
the tables and who uses which. All arithmetic is on integers, so that the compiled core finds the same.

A table is written as a code of six bits per group of symbols: 0 is absent, code ``c`` weighs
``(4 + (c - 1) mod 4) * 2 ** ((c - 1) div 4)``, which is within 1/8 of any count.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .entropy import native, native_planes
from .entropy.model import SLOTS
from .entropy.native_planes import ClusterResult

__all__ = ["CLUSTERS_MAX", "CODE_BITS", "ClusterResult", "choose", "codes_of", "frequencies_of"]

CLUSTERS_MAX = 16
CODE_BITS = 6
CODE_TOP = 61
"""The code of a table's most frequent group."""
UNIT = 64
"""Costs are in 64ths of a bit."""
COST_MAX, COST_ABSENT = 12 * UNIT, 13 * UNIT
TABLE_BITS = 16
ROUNDS_BEFORE, ROUNDS_AFTER = 3, 2

LOG2 = np.array([round(UNIT * float(np.log2(1 + i / 256))) for i in range(256)], dtype=np.uint16)
WEIGHTS = np.array([0, *((4 + c % 4) << c // 4 for c in range(63))], dtype=np.int64)


def choose(counts: Sequence[NDArray[np.uint16]]) -> list[ClusterResult]:
    """Cluster each segment's channels, of which ``counts`` ``[channels, 256]`` says how often each group occurs."""
    if native.AVAILABLE:
        return native_planes.cluster(counts, LOG2, clusters_max=CLUSTERS_MAX)
    return [_choose(item.astype(np.int64)) for item in counts]


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


def _log2(x: NDArray[np.int64]) -> NDArray[np.int64]:
    bits = np.maximum(x, 1).astype(np.float64).view(np.int64)
    return ((bits >> 52) - 1023) * UNIT + LOG2[bits >> 44 & 0xFF]


def _choose(counts: NDArray[np.int64]) -> ClusterResult:
    channels = len(counts)
    used = min(CLUSTERS_MAX, channels)
    order = np.argsort(counts @ (np.arange(256) >> 1), kind="stable")
    labels = np.empty(channels, dtype=np.int64)
    labels[order] = np.arange(channels) * used // channels
    for _ in range(ROUNDS_BEFORE):
        labels = _reassign(counts, labels, used)
    labels, used = _drop_empty(labels)
    labels, used = _merge(counts, labels, used)
    for _ in range(ROUNDS_AFTER):
        labels = _reassign(counts, labels, used)
    labels, used = _drop_empty(labels)
    return ClusterResult(labels.astype(np.uint8), _tables(counts, labels, used))


def _tables(counts: NDArray[np.int64], labels: NDArray[np.int64], used: int) -> NDArray[np.int64]:
    tables = np.zeros((used, 256), dtype=np.int64)
    np.add.at(tables, labels, counts)
    return tables


def _reassign(counts: NDArray[np.int64], labels: NDArray[np.int64], used: int) -> NDArray[np.int64]:
    tables = _tables(counts, labels, used)
    costs = np.minimum(_log2(tables.sum(axis=1, keepdims=True)) - _log2(tables), COST_MAX)
    costs[tables == 0] = COST_ABSENT
    # Exact: products and sums stay far below 2^53.
    sums = counts.astype(np.float64) @ costs.T.astype(np.float64)
    return sums.argmin(axis=1)


def _drop_empty(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    kept, renamed = np.unique(labels, return_inverse=True)
    return renamed.reshape(-1).astype(np.int64), len(kept)


def _table_cost(tables: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the symbols of each table ``[..., 256]`` cost with it, and what it costs itself."""
    total = tables.sum(axis=-1)
    present = tables > 0
    width = 256 - present[..., ::-1].argmax(axis=-1) - present.argmax(axis=-1)
    own = UNIT * (TABLE_BITS + CODE_BITS * width)
    return total * _log2(total) - (tables * _log2(tables)).sum(axis=-1) + own


def _merge(counts: NDArray[np.int64], labels: NDArray[np.int64], used: int) -> tuple[NDArray[np.int64], int]:
    """Join the two tables that lose least, again and again; the state that is cheapest in all is what is kept."""
    tables = _tables(counts, labels, used)
    label_of = np.arange(used)
    states = []
    while True:
        costs = _table_cost(tables)
        count = len(tables)
        states.append((int(costs.sum()) + UNIT * len(labels) * (count - 1).bit_length(), label_of.copy(), count))
        if count == 1:
            break
        left, right = np.triu_indices(count, 1)
        losses = _table_cost(tables[left] + tables[right]) - costs[left] - costs[right]
        best = int(losses.argmin())
        i, j = int(left[best]), int(right[best])
        tables[i] += tables[j]
        tables = np.delete(tables, j, axis=0)
        label_of[label_of == j] = i
        label_of[label_of > j] -= 1
    _, label_of, used = min(states, key=lambda state: state[0])
    return label_of[labels], used
