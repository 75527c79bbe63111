"""Which channels of a segment share a frequency table at the exact level.

Channels differ far more than tokens do: a table per channel would save 7 % over one for all, and cost more than that.
So channels are clustered by what coding them costs (k-means with code lengths for distances), clusters are joined as
long as that pays, the tables' own bits counted. Which clustering an encoder finds is its own affair: a decoder reads
the tables and who uses which. All arithmetic is on integers, so that the compiled core finds the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLUSTERS_MAX",
    "CODE_BITS",
    "LOG2",
    "LOG2_MANTISSA",
    "SPAN_LOG2_MAX",
    "Clusters",
    "choose",
    "choose_span",
    "grouped",
]

CLUSTERS_MAX = 16
SPAN_LOG2_MAX = 3
CODE_BITS = 6
"""What a group of symbols costs in a written table (``channel_tables``)."""
UNIT = 64
"""Costs are in 64ths of a bit."""
COST_MAX, COST_ABSENT = 12 * UNIT, 13 * UNIT
TABLE_BITS = 16
"""What a table costs beside that."""
ROUNDS_BEFORE, ROUNDS_AFTER = 2, 1

LOG2_MANTISSA = np.array([round(UNIT * float(np.log2(1 + i / 256))) for i in range(256)], dtype=np.uint16)


@dataclass(frozen=True, slots=True)
class Clusters:
    """Which table each channel uses (``labels`` ``[channels]``), and the counts of each table ``[tables, 256]``."""

    labels: NDArray[np.uint8]
    tables: NDArray[np.int64]


def choose(counts: NDArray[np.int64]) -> Clusters:
    """Cluster a segment's channels, of which ``counts`` ``[channels, 256]`` says how often each group occurs."""
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
    return Clusters(labels.astype(np.uint8), _tables(counts, labels, used))


def _log2(x: NDArray[np.int64]) -> NDArray[np.int64]:
    bits = np.maximum(x, 1).astype(np.float64).view(np.int64)
    return np.asarray(((bits >> 52) - 1023) * UNIT + LOG2_MANTISSA[bits >> 44 & 0xFF], dtype=np.int64)


def choose_span(counts: NDArray[np.int64]) -> int:
    """How many magnitudes (log2) a code of a table is best for, where symbols occur ``counts`` ``[256]`` times.

    What is compared is the cost if all channels shared one distribution, written as often as there may be tables.
    """
    values = int(counts.sum())
    tables = 1 + min(CLUSTERS_MAX - 1, values >> 14)
    costs = []
    for span_log2 in range(SPAN_LOG2_MAX + 1):
        symbols, width = _symbol_cost(grouped(counts, span_log2))
        costs.append(int(symbols) + UNIT * (span_log2 * values + tables * CODE_BITS * int(width)))
    return costs.index(min(costs))


def grouped(counts: NDArray[np.int64], span_log2: int) -> NDArray[np.int64]:
    """Counts ``[..., 256]`` of groups from those of symbols: ``2 ** span_log2`` neighbouring magnitudes of one sign."""
    members = counts.reshape(*counts.shape[:-1], 128 >> span_log2, 1 << span_log2, 2)
    sums = np.zeros_like(counts)
    sums[..., : 256 >> span_log2] = members.sum(axis=-2).reshape(*counts.shape[:-1], -1)
    return sums


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
    return np.asarray(sums.argmin(axis=1), dtype=np.int64)


def _drop_empty(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    kept, renamed = np.unique(labels, return_inverse=True)
    return renamed.reshape(-1).astype(np.int64), len(kept)


def _symbol_cost(tables: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the symbols of each table ``[..., 256]`` cost with it, and how many groups its codes span."""
    total = tables.sum(axis=-1)
    present = tables > 0
    width = 256 - present[..., ::-1].argmax(axis=-1) - present.argmax(axis=-1)
    return total * _log2(total) - (tables * _log2(tables)).sum(axis=-1), width


def _table_cost(tables: NDArray[np.int64]) -> NDArray[np.int64]:
    symbols, width = _symbol_cost(tables)
    return symbols + UNIT * (TABLE_BITS + CODE_BITS * width)


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


LOG2 = _log2(np.arange(4096)).astype(np.uint16)
"""Logarithms of small counts, for who would rather look them up."""
