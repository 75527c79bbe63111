"""Verifying a container while its bytes still come: what has come is hashed while the rest is on its way."""

from typing import Final

from ..errors import InvalidData, KvloomError
from .container import ContainerHeader, check_segment, header_slice, parse_header

__all__ = ["Following"]

_FIXED_BYTES_MAX: Final = 256
"""By then the length of the header has come."""


class Following:
    """Follows the bytes of one container into ``buffer``, which has its length and stays the caller's."""

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self._view = memoryview(buffer)
        self._header: ContainerHeader | None = None
        self._verified = 0
        self._failed = False

    @property
    def verified(self) -> ContainerHeader | None:
        """The header, once all has come and every segment was found sound; None: verify it to hear what is wrong."""
        header = self._header
        return None if header is None or self._failed or self._verified < len(header.segments) else header

    def advance(self, filled_bytes: int) -> None:
        """The first ``filled_bytes`` of the buffer have come and stay as they are."""
        try:
            header = self._header or self._parsed(filled_bytes)
            if header is None or self._failed:
                return
            self._header = header
            while self._verified < len(header.segments):
                segment = header.segments[self._verified]
                if segment.byte_range.stop > filled_bytes:
                    return
                check_segment(segment, self._view[segment.offset : segment.byte_range.stop])
                self._verified += 1
        except (InvalidData, KvloomError):
            self._failed = True

    def _parsed(self, filled_bytes: int) -> ContainerHeader | None:
        if filled_bytes < min(_FIXED_BYTES_MAX, len(self._view)):
            return None
        header_bytes = len(header_slice(self._view))
        return parse_header(self._view, declared_bytes=len(self._view)) if header_bytes <= filled_bytes else None
