"""Files that are out of the log and still there."""

from collections.abc import Iterator
from pathlib import Path

from .disk import Disk
from .segment import Segment

__all__ = ["Leftovers"]


class Leftovers:
    """Segments out of the log, closed, and not yet removed: nothing else is reclaimed before they are."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self._directory = directory
        self._disk = disk
        self._segments: list[Segment] = []

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def discard(self, segment: Segment) -> None:
        """Close and remove a segment that is out of the log."""
        self._disk.close(segment.descriptor)
        self._segments.append(segment)
        self.clear()

    def clear(self) -> None:
        """Remove their files, durably: what is reclaimed next may be the tombstones of their records."""
        while self._segments:
            segment = self._segments[0]
            self._disk.unlink(segment.list_path)
            self._disk.unlink(segment.path)
            self._disk.sync_directory(self._directory)
            self._segments.pop(0)
