"""What happens to the chunks of a tenant, as records on the wire, named as vLLM and llm-d name them.

A chunk is a block, its content key the block's hash. Tokens are not in the events: a daemon does not know them.
"""

from dataclasses import dataclass

from ..kvstore.key import ContentKey

__all__ = ["BlockRemoved", "BlockStored", "EventsLost", "KvEvent"]


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Blocks are in a tier now: put there, written behind, or copied there on use. Saying it twice means nothing more.

    ``parent_block_hash`` is the block before the first of them, where the put said so and the daemon remembers;
    ``block_size`` is in tokens, ``start`` the number of tokens before it: of blocks decoded into another process's pool
    the daemon knows only the hashes. ``medium`` is ``gpu``, ``cpu``, ``disk`` or ``network``; ``tier`` the tier's own
    name, or the device of the pool.
    """

    block_hashes: tuple[ContentKey, ...]
    medium: str
    tier: str
    parent_block_hash: ContentKey | None = None
    block_size: int | None = None
    start: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """Blocks are not in that tier any more: deleted, expired, damaged or evicted. They may be in another."""

    block_hashes: tuple[ContentKey, ...]
    medium: str
    tier: str


@dataclass(frozen=True, slots=True)
class EventsLost:
    """Events that this subscriber does not get: it was too slow, was away, or the daemon had forgotten a hash.

    ``count`` is ``None`` where nobody knows how many. What is stored has to be asked for again.
    """

    count: int | None


KvEvent = BlockStored | BlockRemoved | EventsLost
