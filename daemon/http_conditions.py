"""Entity tags, conditional requests and ranges, as RFC 9110 (sections 13 and 14) says. Pure.

A tag is strong: it is made of the header of the container that is sent, which has the checksum of every segment and
says which levels and layers there are. There are no dates to compare, so conditions on them never hold anything up.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from blake3 import blake3

from ..codec.container import ByteRange
from ..errors import RangeNotSatisfiable
from ..kvstore.tier import Buffer

__all__ = ["Conditions", "Verdict", "cut", "entity_tag", "parse_range"]

_TAG_BYTES: Final = 16
_TAGS: Final = re.compile(r'\s*(?:(W/)?("[\x21\x23-\x7e\x80-\xff]*"))\s*(?:,|$)')
_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.ASCII | re.IGNORECASE)


class Verdict(Enum):
    """What conditions come to."""

    GO_ON = "go on"
    NOT_MODIFIED = "not modified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Conditions:
    """The fields of a request that make it conditional, as they were sent."""

    match: str | None = None
    none_match: str | None = None
    range: str | None = None
    if_range: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether what is stored need not be looked at before the request is served."""
        return self.match is None and self.none_match is None

    def judge(self, tag: str | None, *, reading: bool) -> Verdict:
        """What they come to where ``tag`` is that of what is stored, ``None`` for nothing."""
        if self.match is not None and not _matches(self.match, tag, weak=False):
            return Verdict.FAILED
        if self.none_match is not None and _matches(self.none_match, tag, weak=True):
            return Verdict.NOT_MODIFIED if reading else Verdict.FAILED
        return Verdict.GO_ON

    def range_of(self, tag: str, total_bytes: int) -> ByteRange | None:
        """The range to send, ``None`` for everything; :class:`RangeNotSatisfiable` for one behind the end."""
        if self.range is None or (self.if_range is not None and self.if_range.strip() != tag):
            return None
        return parse_range(self.range, total_bytes)


def entity_tag(header: Buffer) -> str:
    """The tag of the container that begins with ``header``, or of whatever bytes name a content."""
    return f'"{blake3(header).digest(_TAG_BYTES).hex()}"'


def parse_range(text: str, total_bytes: int) -> ByteRange | None:
    """The one range of bytes that ``text`` asks for; ``None``, which is everything, for what is no such thing.

    Of several ranges everything is sent, which a server may do.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        start, stop = max(0, total_bytes - int(found[2])), total_bytes
    else:
        start, stop = int(found[1]), total_bytes
        if found[2]:
            if int(found[2]) < start:
                return None
            stop = min(stop, int(found[2]) + 1)
    if start >= stop:
        raise RangeNotSatisfiable(f"range {text[:40]!r} begins behind the end, there are {total_bytes} bytes")
    return ByteRange(start, stop)


def cut(parts: Iterable[Buffer], wanted: ByteRange) -> Iterator[memoryview]:
    """The bytes of ``parts``, one behind the other, that are in ``wanted``, without copying."""
    position = 0
    for part in parts:
        view = memoryview(part).cast("B")
        piece = view[max(0, wanted.start - position) : max(0, wanted.stop - position)]
        if len(piece):
            yield piece
        position += len(view)


def _matches(field: str, tag: str | None, *, weak: bool) -> bool:
    """Whether a list of tags (``*``: any) has ``tag``; a ``weak`` comparison takes weak tags for strong ones."""
    if tag is None:
        return False
    if field.strip() == "*":
        return True
    position = 0
    while (found := _TAGS.match(field, position)) is not None and found.end() > position:
        if found[2] == tag and (weak or not found[1]):
            return True
        position = found.end()
    return False
