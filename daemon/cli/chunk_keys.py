"""Keys as people type them: all 64 digits, or enough of them to be the only one."""

import re
from typing import Final

from ...clients import KvloomClient
from ...errors import InvalidKey, NotFound
from ...kvstore.key import KEY_BYTES, ContentKey, key_from_hex

__all__ = ["resolve_key"]

_DIGITS_MIN: Final = 4


def resolve_key(client: KvloomClient, text: str) -> ContentKey:
    """The content key ``text`` names; a short one must be the beginning of exactly one stored chunk's key."""
    if len(text) >= 2 * KEY_BYTES:
        return key_from_hex(text)
    if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS_MIN},}}", text):
        raise InvalidKey(
            f"key {text!r} is neither {2 * KEY_BYTES} lower-case hexadecimal digits nor the first {_DIGITS_MIN} or more"
        )
    found = client.list_chunks(limit=2, prefix=text).chunks
    if not found:
        raise NotFound(f"no stored chunk's key begins with {text}")
    if len(found) > 1:
        raise InvalidKey(f"several stored chunks' keys begin with {text}; type more of its digits")
    return ContentKey(found[0].key)
