"""Many questions over shared documents: in which order, so that each chunk is decoded once (BatchLLM, 2024, §3).

Questions that share chunks are put beside each other, and a chunk is held decoded from the first that needs it to the
last. Where memory is short the chunk whose next use is furthest away is let go (Belady) and decoded again.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ... import limits
from ...errors import InvalidRequest, TooManyItems
from .documents import Document

__all__ = ["BYTES_DEFAULT", "BatchPlan", "BatchQuestion", "BatchStep", "plan_batch"]

K = TypeVar("K", bound=Hashable)
BYTES_DEFAULT: Final = 4 * 1024 * 1024 * 1024
"""Decoded chunks that are held between the questions of a batch."""


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """One question of a batch, over its documents in this order."""

    question: str
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class BatchStep(Generic[K]):
    """Answer the question numbered ``index``: decode some chunks before it, and let some go before these, and after."""

    index: int
    release_before: tuple[K, ...]
    decode: tuple[K, ...]
    release_after: tuple[K, ...]


@dataclass(frozen=True, slots=True)
class BatchPlan(Generic[K]):
    """Every question once. ``uses`` counts chunks over all questions, ``distinct`` each one once; sizes are in bytes.

    ``decodes`` equals ``distinct`` where memory reaches.
    """

    steps: tuple[BatchStep[K], ...]
    uses: int
    distinct: int
    decodes: int
    peak_bytes: int


def plan_batch(needs: Sequence[Mapping[K, int]], *, bytes_max: int = BYTES_DEFAULT) -> BatchPlan[K]:
    """Order questions by what each ``needs``: chunks, and the bytes of each when it is decoded.

    At most ``bytes_max`` are held decoded, the chunks of one question at the least. Raises :class:`TooManyItems` for
    more than ``limits.BATCH_QUESTIONS_MAX`` questions, and :class:`InvalidRequest` where one alone needs more bytes.
    """
    if len(needs) > limits.BATCH_QUESTIONS_MAX:
        raise TooManyItems(f"batch has {len(needs)} questions, the limit is {limits.BATCH_QUESTIONS_MAX}")
    sizes: dict[K, int] = {}
    for index, chunks in enumerate(needs):
        alone = sum(chunks.values())
        if alone > bytes_max:
            raise InvalidRequest(f"question {index} needs {alone} bytes of decoded chunks, the limit is {bytes_max}")
        sizes.update(chunks)
    steps, peak_bytes = _steps(_order(needs, sizes), needs, sizes, bytes_max)
    return BatchPlan(steps, sum(map(len, needs)), len(sizes), sum(len(step.decode) for step in steps), peak_bytes)


def _order(needs: Sequence[Mapping[K, int]], sizes: Mapping[K, int]) -> list[int]:
    """The next question is always the one with the least to decode; of several, the one that lets most go."""
    askers: defaultdict[K, list[int]] = defaultdict(list)
    for index, chunks in enumerate(needs):
        for key in chunks:
            askers[key].append(index)
    missing = [sum(chunks.values()) for chunks in needs]
    left_uses = Counter({key: len(found) for key, found in askers.items()})
    held: set[K] = set()
    left = dict.fromkeys(range(len(needs)))
    order = []
    while left:
        least = min(missing[index] for index in left)
        tied = [index for index in left if missing[index] == least]
        index = max(tied, key=lambda one: sum(sizes[key] for key in needs[one] if left_uses[key] == 1))
        del left[index]
        order.append(index)
        for key in needs[index]:
            left_uses[key] -= 1
            if key not in held:
                held.add(key)
                for asker in askers[key]:
                    missing[asker] -= sizes[key]
    return order


def _steps(
    order: Sequence[int], needs: Sequence[Mapping[K, int]], sizes: Mapping[K, int], bytes_max: int
) -> tuple[tuple[BatchStep[K], ...], int]:
    """What to decode and let go at each step of ``order``, and the most bytes held."""
    uses: defaultdict[K, list[int]] = defaultdict(list)
    for step in reversed(range(len(order))):
        for key in needs[order[step]]:
            uses[key].append(step)  # the next use stands last
    held: dict[K, None] = {}
    held_bytes = peak_bytes = 0
    found = []
    for index in order:
        wanted = needs[index]
        decode = tuple(key for key in wanted if key not in held)
        room = bytes_max - sum(sizes[key] for key in decode)
        before: list[K] = []
        if held_bytes > room:
            for key in sorted((key for key in held if key not in wanted), key=lambda one: -uses[one][-1]):
                if held_bytes <= room:
                    break
                before.append(key)
                del held[key]
                held_bytes -= sizes[key]
        held.update(dict.fromkeys(decode))
        held_bytes += sum(sizes[key] for key in decode)
        peak_bytes = max(peak_bytes, held_bytes)
        for key in wanted:
            uses[key].pop()
        after = tuple(key for key in wanted if not uses[key])
        for key in after:
            del held[key]
            held_bytes -= sizes[key]
        found.append(BatchStep(index, tuple(before), decode, after))
    return tuple(found), peak_bytes
