"""Whole containers from a daemon on this machine: verified by the word sum that it names (docs/adr/0019).

A word sum (:func:`kvloom.kvstore.sharing.word_sum`) takes a twentieth of the time that hashing does. It finds what
goes wrong in memory and not every exchange of words, which only hardware on the way could make: what comes over a
network is hashed.
"""

import re
from collections.abc import Mapping
from typing import Final

from ..codec.container import Container, parse_header
from ..codec.header import named_key
from ..errors import InvalidData, KeyMismatch
from ..kvstore.key import ContentKey
from .http_message import Buffer

__all__ = [
    "HEADER_VERIFIES",
    "HEADER_WORD_SUM",
    "Summing",
    "format_sum",
    "receive_buffer",
    "summed_container",
    "word_sum_of",
]

HEADER_WORD_SUM: Final = "Kvloom-Word-Sum"
HEADER_VERIFIES: Final = "Kvloom-Verifies"
"""On a get: the caller verifies every byte that comes, so that the daemon need not."""
_SUM: Final = re.compile("[0-9a-f]{16}")
_WORD_BYTES: Final = 8


def format_sum(total: int) -> str:
    """``total`` as the header has it."""
    return f"{total:016x}"


def word_sum_of(headers: Mapping[str, str]) -> int | None:
    """The word sum that a daemon names in ``headers``, whose keys are in lower case; None where it names none."""
    text = headers.get(HEADER_WORD_SUM.lower(), "")
    return int(text, 16) if _SUM.fullmatch(text) else None


def receive_buffer(length: int) -> memoryview:
    """Memory of so many bytes to receive into, whatever is in it now: a pass that fills it with zeros is left out."""
    import numpy as np

    return np.empty(length, np.uint8).data


def _added(data: Buffer) -> int:
    from ..kvstore.sharing import word_sum  # with numpy, which not every client needs

    return word_sum(data)


class Summing:
    """Adds up the words of ``buffer``, the caller's, while they come: what has just come is in the cache."""

    def __init__(self, buffer: Buffer) -> None:
        self._view = memoryview(buffer)
        self._summed_bytes = self._total = 0

    def advance(self, filled_bytes: int) -> None:
        """The first ``filled_bytes`` of the buffer have come and stay as they are."""
        stop = filled_bytes if filled_bytes == len(self._view) else filled_bytes - filled_bytes % _WORD_BYTES
        self._total += _added(self._view[self._summed_bytes : stop])
        self._summed_bytes = stop

    @property
    def total(self) -> int | None:
        """The word sum of all of the buffer; None before all of it has come."""
        return self._total % 2**64 if self._summed_bytes == len(self._view) else None


def summed_container(data: Buffer, total: int, key: ContentKey, *, summed: int | None = None) -> Container:
    """``data`` as a container, whose segments need no other check once its words add up to ``total``.

    ``summed`` is what they add up to where somebody has done that (:class:`Summing`). Raises :class:`InvalidData` where
    they do not or the header is damaged, :class:`KeyMismatch` for another chunk's.
    """
    if (_added(data) if summed is None else summed) != total:
        raise InvalidData("the bytes do not add up to the word sum that the daemon named")
    if named_key(data) != key:
        raise KeyMismatch(f"asked for chunk {key.hex()[:16]}…, got {named_key(data).hex()[:16]}…")
    return Container(parse_header(data, declared_bytes=memoryview(data).nbytes), memoryview(data))
