"""Deleting all of a namespace, on every daemon that shares a store with this one.

The daemon that is asked deletes what it has and what the shared tiers have, and leaves a note in these: a record that
says up to when the namespace is erased. The others look for the notes of the namespaces that they serve
(:mod:`.upkeep`) and delete what they have from before that time. So a deletion is complete here when it returns, and
elsewhere one round of upkeep later; clocks that differ shift the moment by as much.
"""

from collections.abc import Callable
from typing import Final

from blake3 import blake3

from ... import limits
from ...errors import KvloomError
from ..concurrency import each_in_order
from ..key import KEY_BYTES, OWNER_BYTES, ContentKey, OwnerId, StorageKey
from ..key_locks import KeyLocks
from ..namespace import Namespace
from ..outcome import Hit
from ..tier import UNOWNED, Record, RecordInfo, Tier
from .cascade import Cascade
from .change_log import ChangeLog
from .pins import Pins
from .promotion import Promoter
from .roles import Roles
from .tally import Tally

__all__ = ["Erasure"]

_TIME_BYTES: Final = 8
_WHENEVER_MS: Final = 2**63
"""Whoever is asked deletes what it has whatever its time says: clocks have been set back before."""


class Erasure:
    """What was erased, as far as this daemon knows."""

    def __init__(
        self,
        roles: Roles,
        cascade: Cascade,
        locks: KeyLocks,
        changes: ChangeLog,
        promoter: Promoter,
        pins: Pins,
        tally: Tally,
        clock_ms: Callable[[], int],
    ) -> None:
        self._roles = roles
        self._cascade = cascade
        self._locks = locks
        self._changes = changes
        self._promoter = promoter
        self._pins = pins
        self._tally = tally
        self._clock_ms = clock_ms
        self._erased_at_ms: dict[OwnerId, int] = {}

    def is_erased(self, info: RecordInfo) -> bool:
        """Whether the record is from before its owner was last erased."""
        return info.stored_at_ms <= self.erased_at_ms(info.owner)

    def erased_at_ms(self, owner: OwnerId) -> int:
        """Up to when what ``owner`` stored is erased; -1 where it never was."""
        return self._erased_at_ms.get(owner, -1)

    async def erase(self, namespace: Namespace) -> int:
        """Delete all chunks of ``namespace``; how many records there were, each once per tier.

        Every tier is tried; then the first failure is raised, and what that tier has may come back.
        """
        # Later than everything stored since the last time, which a clock that stands still would not be.
        at_ms = max(self._clock_ms(), self.erased_at_ms(namespace.owner) + 1)
        self._erased_at_ms[namespace.owner] = at_ms
        failures: list[KvloomError] = []
        deleted = await self._drop_waiting(namespace.owner, _WHENEVER_MS)
        for tier in self._roles.shared:
            try:
                await tier.put(_note(namespace, at_ms))
                deleted += await tier.delete_owner(namespace.owner)
            except KvloomError as error:
                self._tally.note_error(tier.name, "erase", str(error))
                failures.append(error)
        deleted += await self._erase_own(namespace.owner, _WHENEVER_MS, failures)
        if failures:
            raise failures[0]
        return deleted

    async def follow(self, namespace: Namespace) -> int:
        """Look whether another daemon erased ``namespace`` and do as it did; how many records that deleted here."""
        deleted = 0
        for tier in self._roles.shared:
            try:
                found = await tier.get(_note_key(namespace))
            except KvloomError as error:
                self._tally.note_error(tier.name, "erase", str(error))
                continue
            at_ms = _time_of(namespace, found.value.parts[0]) if isinstance(found, Hit) else -1
            if at_ms <= self.erased_at_ms(namespace.owner):
                continue
            self._erased_at_ms[namespace.owner] = at_ms
            failures: list[KvloomError] = []
            deleted += await self._drop_waiting(namespace.owner, at_ms)
            deleted += await self._erase_own(namespace.owner, at_ms, failures)
            deleted += await self._erase_from(tier, namespace.owner, at_ms, failures)
            if failures:
                del self._erased_at_ms[namespace.owner]
        return deleted

    async def _drop_waiting(self, owner: OwnerId, at_ms: int) -> int:
        """Take what waits to be written out of the queues, and wait for what is being written at this moment."""
        deleted = 0
        for record in self._cascade.records():
            key = record.storage_key
            if record.owner != owner or record.stored_at_ms > at_ms:
                continue
            async with self._locks.hold(key):
                deleted += self._cascade.discard(key)
                self._changes.note(key)
            for stage in self._cascade.shared:
                async with stage.locks.hold(key):
                    pass
        return deleted

    async def _erase_own(self, owner: OwnerId, at_ms: int, failures: list[KvloomError]) -> int:
        # From now on nothing that is erased is copied to another tier; what is being copied is there to be found.
        await self._promoter.placed(owner)
        deleted = 0
        for tier in self._roles.local:
            deleted += await self._erase_from(tier, owner, at_ms, failures)
        return deleted

    async def _erase_from(self, tier: Tier, owner: OwnerId, at_ms: int, failures: list[KvloomError]) -> int:
        locks = next((stage.locks for stage in self._cascade.shared if stage.tier is tier), self._locks)

        async def delete(info: RecordInfo) -> bool:
            async with locks.hold(info.storage_key):
                deleted = await tier.delete(info.storage_key)
                self._changes.note(info.storage_key)
            if deleted:
                self._tally.observer.on_removed(tier.name, info.storage_key)
            self._pins.forget(info.storage_key)
            return deleted

        try:
            due = [info async for info in tier.scan_owner(owner) if info.stored_at_ms <= at_ms]
            return sum(await each_in_order(delete, due, at_once=limits.DELETIONS_AT_ONCE_MAX))
        except KvloomError as error:
            self._tally.note_error(tier.name, "erase", str(error))
            failures.append(error)
            return 0


def _note_key(namespace: Namespace) -> StorageKey:
    """Where the note of a namespace lies: under nobody's owner, so that it outlives the deletion of all that is its."""
    digest = blake3(b"kvloom erased", key=namespace.secret).digest(KEY_BYTES - OWNER_BYTES)
    return StorageKey(UNOWNED + digest)


def _note(namespace: Namespace, at_ms: int) -> Record:
    key = _note_key(namespace)
    time = at_ms.to_bytes(_TIME_BYTES, "little")
    return Record(key, ContentKey(key), time + _seal(namespace, time), at_ms)


def _seal(namespace: Namespace, time: bytes) -> bytes:
    return blake3(b"kvloom erased at" + time, key=namespace.secret).digest()


def _time_of(namespace: Namespace, payload: bytes | bytearray | memoryview) -> int:
    """The time in a note; -1 for one that nobody with the namespace's secret wrote."""
    time, seal = bytes(payload[:_TIME_BYTES]), bytes(payload[_TIME_BYTES:])
    return int.from_bytes(time, "little") if seal == _seal(namespace, time) else -1
