"""What the store does, as it does it: to the log what it survived, to the hub and the journal what it holds, to the
planner how fast it reads.
"""

import time

import structlog

from ..kvstore.key import ContentKey, StorageKey
from ..kvstore.tier import RecordInfo
from ..kvstore.tiered.stats import StoreObserver
from .events import EventHub
from .journal import Journal
from .planner.measured import MeasuredLinks

__all__ = ["DaemonObserver"]

_log = structlog.get_logger("kvloom.daemon")


class DaemonObserver(StoreObserver):
    """Belongs to the store's event loop; what is survived is counted in the metrics, too."""

    def __init__(self, hub: EventHub, journal: Journal, links: MeasuredLinks) -> None:
        self._hub = hub
        self._journal = journal
        self._links = links

    def on_read(self, tier: str, size_bytes: int, seconds: float, concurrent: int) -> None:
        """Told to the planner."""
        self._links.note(tier, size_bytes, seconds, concurrent=concurrent, now_seconds=time.monotonic())

    def on_named(self, key: StorageKey, content_key: ContentKey) -> None:
        """Told to the hub."""
        self._hub.note_name(key, content_key)

    def on_stored(self, tier: str, info: RecordInfo) -> None:
        """Told to the hub and the journal."""
        self._hub.note_stored(tier, info)
        self._journal.chunks.note(info)

    def on_removed(self, tier: str, key: StorageKey) -> None:
        """Told to the hub."""
        self._hub.note_removed(tier, key)

    def on_corrupt(self, tier: str, key: ContentKey, detail: str) -> None:
        """A line in the log."""
        _log.warning("damaged chunk", tier=tier, key=key.hex(), detail=detail)

    def on_tier_error(self, tier: str, operation: str, detail: str) -> None:
        """A line in the log; the last one of each tier is in the journal."""
        _log.warning("tier failed", tier=tier, operation=operation, detail=detail)
        self._journal.errors.note(tier, operation, detail)

    def on_write_behind_failed(self, key: ContentKey, detail: str) -> None:
        """A line in the log."""
        _log.error("chunk not written to disk", key=key.hex(), detail=detail)
