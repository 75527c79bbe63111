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
from ..kvstore.sharing import word_sum
from .http_message import Buffer

__all__ = ["HEADER_WORD_SUM", "format_sum", "summed_container", "word_sum_of"]

HEADER_WORD_SUM: Final = "Kvloom-Word-Sum"
_SUM: Final = re.compile("[0-9a-f]{16}")


def format_sum(total: int) -> str:
    """``total`` as the header has it."""
    return f"{total:016x}"


def word_sum_of(headers: Mapping[str, str]) -> int | None:
    """The word sum that a daemon names in ``headers``, whose keys are in lower case; None where it names none."""
    text = headers.get(HEADER_WORD_SUM.lower(), "")
    return int(text, 16) if _SUM.fullmatch(text) else None


def summed_container(data: Buffer, total: int, key: ContentKey) -> Container:
    """``data`` as a container, whose segments need no other check once its words add up to ``total``.

    Raises :class:`InvalidData` where they do not or the header is damaged, :class:`KeyMismatch` for another chunk's.
    """
    if word_sum(data) != total:
        raise InvalidData("the bytes do not add up to the word sum that the daemon named")
    if named_key(data) != key:
        raise KeyMismatch(f"asked for chunk {key.hex()[:16]}…, got {named_key(data).hex()[:16]}…")
    return Container(parse_header(data, declared_bytes=memoryview(data).nbytes), memoryview(data))
