"""Which records a disk tier takes: all, or only those that are used twice within a window, to spare its flash. Pure.

A second use is a second put, or a read of what was put or read before. Most chunks are never asked for again; with
``second-use`` these are never written to disk. A put with ``ack=disk`` is always written.
"""

from collections import OrderedDict
from enum import StrEnum

from ... import limits
from ..key import StorageKey

__all__ = ["AdmissionRule", "DiskAdmission"]

_FINGERPRINT_BYTES = 8
"""Of the end of the key: its start names the owner."""


class AdmissionRule(StrEnum):
    """When a record that no ``ack=disk`` asks for is written to the disk tier."""

    ALWAYS = "always"
    SECOND_USE = "second-use"


class DiskAdmission:
    """A list of the last ``keys_max`` chunks that were used once, oldest first. Two keys of one fingerprint mix up once
    in 2⁶⁴ pairs, and then a record is written one use early.
    """

    def __init__(self, rule: AdmissionRule, *, keys_max: int = limits.ADMISSION_KEYS_MAX) -> None:
        self._rule = rule
        self._keys_max = keys_max
        self._waiting: OrderedDict[bytes, None] = OrderedDict()
        self.admitted = 0
        """Records let through to the disk, those of ``ack=disk`` not counted."""
        self.deferred = 0
        """Records kept off the disk at their first use."""

    @property
    def takes_all(self) -> bool:
        """Whether every record is let through."""
        return self._rule is AdmissionRule.ALWAYS

    def __len__(self) -> int:
        return len(self._waiting)

    def use(self, key: StorageKey) -> bool:
        """A record could be written now: whether it is to be. ``False`` counts as its first use."""
        if self.takes_all or self.settle(key):
            self.admitted += 1
            return True
        self.deferred += 1
        self._waiting[key[-_FINGERPRINT_BYTES:]] = None
        if len(self._waiting) > self._keys_max:
            self._waiting.popitem(last=False)
        return False

    def is_waiting(self, key: StorageKey) -> bool:
        """Whether ``key`` was used once, and its next use takes it to the disk."""
        return bool(self._waiting) and key[-_FINGERPRINT_BYTES:] in self._waiting

    def settle(self, key: StorageKey) -> bool:
        """``key`` is on its way to the disk, or gone: wait for it no longer. Whether it was waited for."""
        fingerprint = key[-_FINGERPRINT_BYTES:]
        if fingerprint not in self._waiting:
            return False
        del self._waiting[fingerprint]
        return True
