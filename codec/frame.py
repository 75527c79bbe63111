"""zstandard frames from outside: what they declare is checked before anything is allocated or taken."""

import zstandard

from ..errors import InvalidData

__all__ = ["FrameReader", "unpack_frame"]


def unpack_frame(frame: bytes, *, bytes_max: int, what: str, error: type[InvalidData] = InvalidData) -> bytes:
    """The content of exactly one frame of at most ``bytes_max``; anything else raises ``error`` and names ``what``."""
    try:
        declared = zstandard.frame_content_size(frame)
        if not 0 <= declared <= bytes_max:
            raise error(f"{what} declares {declared} bytes, the limit is {bytes_max}")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=declared, allow_extra_data=False)
    except zstandard.ZstdError as found:
        raise error(f"{what} does not decompress: {found}") from found


class FrameReader:
    """Takes bytes off the front of a frame's content, never more than there are; errors name ``what`` it is of."""

    def __init__(self, content: bytes, *, what: str) -> None:
        self._content, self._what = content, what
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; :class:`InvalidData` where there are fewer."""
        if count > len(self._content) - self._at:
            raise InvalidData(f"{self._what} ends after {len(self._content)} bytes, {self._at + count} are needed")
        self._at += count
        return self._content[self._at - count : self._at]

    def expect_end(self) -> None:
        """Raise :class:`InvalidData` where bytes are left."""
        if self._at != len(self._content):
            raise InvalidData(f"{self._what} has {len(self._content) - self._at} bytes left over")
