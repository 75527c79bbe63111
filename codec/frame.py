"""zstandard frames from outside: what they declare is checked before anything is allocated."""

import zstandard

from ..errors import InvalidData

__all__ = ["unpack_frame"]


def unpack_frame(frame: bytes, *, bytes_max: int, what: str, error: type[InvalidData] = InvalidData) -> bytes:
    """The content of exactly one frame of at most ``bytes_max``; anything else raises ``error`` and names ``what``."""
    try:
        declared = zstandard.frame_content_size(frame)
        if not 0 <= declared <= bytes_max:
            raise error(f"{what} declares {declared} bytes, the limit is {bytes_max}")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=declared, allow_extra_data=False)
    except zstandard.ZstdError as found:
        raise error(f"{what} does not decompress: {found}") from found
