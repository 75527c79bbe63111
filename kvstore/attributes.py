"""What a store may know of a chunk beside its bytes: where it stands in the tree of prefixes, for eviction to go by.

They are a client's word: nothing but the choice of victims among that client's own records depends on them. A parent
is named by the half of its storage key that follows the owner, so no record can name one of another owner. What
a chunk costs to compute again follows from its place and length (:class:`.eviction.cost.RecomputeCost`).
"""

import struct
from dataclasses import dataclass
from typing import Final

from .. import limits
from ..errors import InvalidData
from .key import OWNER_BYTES, StorageKey

__all__ = ["ATTRIBUTES_BYTES", "UNATTRIBUTED", "ChunkAttributes", "pack_attributes", "unpack_attributes"]

_FIELDS: Final = struct.Struct("<16sII")
ATTRIBUTES_BYTES: Final = _FIELDS.size
_NO_PARENT: Final = bytes(16)
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ChunkAttributes:
    """What a policy may know of a chunk beside its size.

    ``parent`` is the storage key of the chunk before it, ``None`` for a first chunk, a standalone one, or where nobody
    said. ``start`` is the number of tokens before the chunk, ``tokens`` its own. Raises :class:`InvalidData` for
    numbers that no chunk has.
    """

    parent: StorageKey | None = None
    start: int = 0
    tokens: int = limits.CHUNK_TOKENS_DEFAULT

    def __post_init__(self) -> None:
        if not (0 <= self.start <= limits.POSITION_MAX and 0 <= self.tokens <= limits.POSITION_MAX):
            raise InvalidData(
                f"chunk has {self.tokens} tokens from {self.start} on, the limit of both is {limits.POSITION_MAX}"
            )


UNATTRIBUTED: Final = ChunkAttributes()
"""For a record of which nothing is known: it is taken for a full first chunk."""


def pack_attributes(key: StorageKey, attributes: ChunkAttributes) -> bytes:
    """:data:`ATTRIBUTES_BYTES` bytes for the record under ``key``: the parent's place, zeros for none, start, tokens.

    A parent that is the record itself or of another owner is none.
    """
    parent, place = attributes.parent, _NO_PARENT
    if parent is not None and parent != key and parent[:OWNER_BYTES] == key[:OWNER_BYTES]:
        place = parent[OWNER_BYTES:]
    return _FIELDS.pack(place, attributes.start, attributes.tokens)


def unpack_attributes(key: StorageKey, data: Buffer) -> ChunkAttributes:
    """What :func:`pack_attributes` made for the record under ``key``; :class:`InvalidData` where it cannot have."""
    place, start, tokens = _FIELDS.unpack(data)
    return ChunkAttributes(None if place == _NO_PARENT else StorageKey(key[:OWNER_BYTES] + place), start, tokens)
