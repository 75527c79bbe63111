"""What the store has of the chunks of a prompt: where each would be read first, and its bytes at every level."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .. import limits
from ..codec.container import ContainerHeader
from ..codec.level import Level
from ..kvstore.key import ContentKey, OwnerId
from ..kvstore.namespace import Namespace
from ..kvstore.tiered.copies import WRITE_BEHIND
from ..kvstore.tiered.store import TieredStore

__all__ = ["ChunkOffers", "Offered"]

_MEMORY: Final = "memory"


@dataclass(frozen=True, slots=True)
class _Outline:
    """A stored container, as far as planning goes."""

    level_bytes: tuple[tuple[Level, int], ...]
    """What each level takes, with all that decoding it needs."""
    kv_bytes: int
    """What it decodes to."""


@dataclass(frozen=True, slots=True)
class Offered:
    """One chunk that is stored: over which link it would come, and as what."""

    link: str
    level_bytes: tuple[tuple[Level, int], ...]
    kv_bytes: int


class ChunkOffers:
    """Asks the store, and remembers the headers that it has read: of a chunk nothing changes but by being put again."""

    def __init__(self, store: TieredStore) -> None:
        self._store = store
        self._outlines: OrderedDict[tuple[OwnerId, ContentKey], _Outline] = OrderedDict()

    async def of(self, namespace: Namespace, keys: Sequence[ContentKey]) -> list[Offered | None]:
        """For each key what there is of it; ``None`` where nothing is, or nothing that is this tenant's."""
        links = await self._store.nearest(namespace, keys)
        unknown = [
            key
            for key, link in zip(keys, links, strict=True)
            if link is not None and (namespace.owner, key) not in self._outlines
        ]
        for start in range(0, len(unknown), limits.PLAN_HEADERS_AT_ONCE_MAX):
            async with asyncio.TaskGroup() as group:
                for key in unknown[start : start + limits.PLAN_HEADERS_AT_ONCE_MAX]:
                    group.create_task(self._learn(namespace, key))
        offered: list[Offered | None] = []
        for key, link in zip(keys, links, strict=True):
            outline = self._outlines.get((namespace.owner, key)) if link is not None else None
            if link is None or outline is None:
                offered.append(None)
            else:
                name = _MEMORY if link == WRITE_BEHIND else link
                offered.append(Offered(name, outline.level_bytes, outline.kv_bytes))
        while len(self._outlines) > limits.PLAN_OUTLINES_MAX:
            self._outlines.popitem(last=False)
        return offered

    async def _learn(self, namespace: Namespace, key: ContentKey) -> None:
        stored = await self._store.stored(namespace, key)
        if stored is not None and stored.header is not None:
            self._outlines[namespace.owner, key] = _outline(stored.header)


def _outline(header: ContainerHeader) -> _Outline:
    alone: dict[Level, int] = {}
    for segment in header.segments:
        alone[segment.level] = alone.get(segment.level, 0) + segment.length
    level_bytes = tuple(
        (level, header.header_bytes + sum(alone.get(part, 0) for part in header.codec.needed_for(level)))
        for level in header.levels
    )
    return _Outline(level_bytes, header.tokens * header.layout.bytes_per_token)
