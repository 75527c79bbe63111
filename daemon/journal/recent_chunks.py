"""The chunks that each tenant has stored, or had copied up, most recently. Pure."""

from collections import OrderedDict
from collections.abc import Sequence

from ... import limits
from ...kvstore.key import OwnerId, owner_of
from ...kvstore.tier import RecordInfo

__all__ = ["RecentChunks"]


class RecentChunks:
    """At most ``chunks_max`` of each of the last ``owners_max`` owners that stored anything."""

    def __init__(
        self, *, chunks_max: int = limits.RECENT_CHUNKS_MAX, owners_max: int = limits.RECENT_OWNERS_MAX
    ) -> None:
        self._chunks_max = chunks_max
        self._owners_max = owners_max
        self._owners: OrderedDict[OwnerId, OrderedDict[bytes, RecordInfo]] = OrderedDict()

    def note(self, info: RecordInfo) -> None:
        """A record has come into a tier; one that comes into several is one chunk."""
        owner = owner_of(info.storage_key)
        mine = self._owners.setdefault(owner, OrderedDict())
        self._owners.move_to_end(owner)
        mine[info.content_key] = info
        mine.move_to_end(info.content_key)
        if len(mine) > self._chunks_max:
            mine.popitem(last=False)
        if len(self._owners) > self._owners_max:
            self._owners.popitem(last=False)

    def of(self, owner: OwnerId) -> Sequence[RecordInfo]:
        """Those of ``owner``, the latest first. They may have been deleted or evicted since."""
        return tuple(reversed(self._owners.get(owner, OrderedDict()).values()))
