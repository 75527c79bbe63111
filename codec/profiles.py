"""The two kinds of profile, and which of them a file is."""

from ..errors import InvalidData
from .cachegen_profile import CacheGenProfile
from .profile import Profile

__all__ = ["AnyProfile", "parse_profile"]

AnyProfile = Profile | CacheGenProfile
"""What :func:`kvloom.codec.encode` codes lossy levels with; ``codec`` says for which codec it is."""

_KINDS: dict[bytes, type[Profile] | type[CacheGenProfile]] = {b"KVLP": Profile, b"KVLG": CacheGenProfile}


def parse_profile(data: bytes) -> AnyProfile:
    """Parse a profile file of either codec; anything else raises :class:`InvalidData`."""
    kind = _KINDS.get(data[:4])
    if kind is None:
        raise InvalidData(f"profile starts with {data[:4]!r}, expected one of {', '.join(map(repr, _KINDS))}")
    return kind.from_bytes(data)
