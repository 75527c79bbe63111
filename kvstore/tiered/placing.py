"""Putting a record where its ``ack`` and the admission rule say, and taking it away from everywhere."""

from collections.abc import Callable
from dataclasses import replace

from ...codec.container import ContainerHeader
from ...errors import KvloomError, StorageFull, StorageUnavailable
from ...tracing import span
from ..key import OwnerId, StorageKey
from ..key_locks import KeyLocks
from ..tier import Ack, Record, Tier, is_expired
from .admission import DiskAdmission
from .cascade import Cascade
from .change_log import ChangeLog
from .pins import Pins
from .reading import Reading
from .roles import Roles
from .tally import Tally
from .write_behind import Stage

__all__ = ["Placing"]


class Placing:
    """The changes of a store, serialised by key. Safe to cancel; what was cancelled may or may not have happened."""

    def __init__(
        self,
        roles: Roles,
        cascade: Cascade,
        reading: Reading,
        locks: KeyLocks,
        changes: ChangeLog,
        admission: DiskAdmission,
        pins: Pins,
        tally: Tally,
        clock_ms: Callable[[], int],
        erased_at_ms: Callable[[OwnerId], int],
    ) -> None:
        """``erased_at_ms``: nothing is stored with a time at or before that, or it would count as erased."""
        self._roles = roles
        self._cascade = cascade
        self._reading = reading
        self._locks = locks
        self._changes = changes
        self._admission = admission
        self._pins = pins
        self._tally = tally
        self._clock_ms = clock_ms
        self._erased_at_ms = erased_at_ms

    async def put(self, record: Record, header: ContainerHeader, ack: Ack) -> None:
        """Put ``record`` (its time of storing is set here), joined with what this store's own tiers have of it.

        Raises :class:`StorageUnavailable` where ``ack`` asks for a disk and there is none, and what stages and tiers
        raise. Nothing here waits for a shared tier, unless its stage was configured to wait.
        """
        place = record.storage_key
        if ack is Ack.DISK and not self._roles.durable:
            raise StorageUnavailable("ack=disk was asked for and no durable tier is configured")
        to_disk = ack is Ack.DISK or await self._is_admitted(place)
        stage = self._entry(ack, to_disk=to_disk)
        reserved_bytes = len(record.payload) if stage is not None and await stage.reserve(len(record.payload)) else 0
        try:
            async with self._locks.hold(place):
                try:
                    at_ms = max(self._clock_ms(), self._erased_at_ms(record.owner) + 1)
                    joined = await self._reading.joined(replace(record, stored_at_ms=at_ms), header)
                    if ack is Ack.DISK:
                        await self._put_on_disk(joined)
                    kept = await self._put_volatile(joined) or ack is Ack.DISK
                    if not kept and self._roles.durable and not to_disk:
                        await self._put_on_disk(joined)
                        kept = True
                    if not (kept or reserved_bytes):
                        raise StorageFull(f"container of {len(joined.payload)} bytes fits none of the tiers")
                    self._cascade.discard(place)
                    if stage is not None and reserved_bytes:
                        stage.add(joined, reserved_bytes)
                        reserved_bytes = 0
                finally:
                    self._changes.note(place)
        finally:
            if stage is not None and reserved_bytes:
                stage.release(reserved_bytes)

    async def delete(self, place: StorageKey) -> bool:
        """Forget ``place`` in every tier and queue; whether something was there that had not expired.

        Every tier is tried; then the first failure is raised. Shared tiers come first: what is gone there cannot be
        copied back while the own tiers are seen to. They are not waited for under the key's lock.
        """
        existed = False
        failures: list[KvloomError] = []
        for stage in self._cascade.shared:
            async with self._locks.hold(place):
                existed = self._discard(place) or existed
            async with stage.locks.hold(place):
                existed = await self._delete_from(stage.tier, place, failures) or existed
        async with self._locks.hold(place):
            existed = self._discard(place) or existed
            try:
                for tier in self._roles.local:
                    existed = await self._delete_from(tier, place, failures) or existed
            finally:
                self._changes.note(place)
        self._pins.forget(place)
        self._admission.settle(place)
        if failures:
            raise failures[0]
        return existed

    async def _is_admitted(self, place: StorageKey) -> bool:
        """Whether a put that does not ask for the disk goes there too; what is there already is kept up to date."""
        if not self._roles.durable:
            return False
        if self._admission.takes_all:
            return self._admission.use(place)
        try:
            present = (await self._roles.durable[0].contains_many([place]))[0]
        except KvloomError:
            present = False
        return present or self._admission.use(place)

    def _entry(self, ack: Ack, *, to_disk: bool) -> Stage | None:
        """The stage at which a put goes on in the background."""
        if ack is Ack.DISK:
            return self._cascade.after(self._roles.durable[0])
        return self._cascade.after(None) if to_disk else self._cascade.first_shared()

    async def _put_on_disk(self, record: Record) -> None:
        with span("tier.put", tier=self._roles.durable[0].name, size_bytes=len(record.payload)):
            await self._roles.durable[0].put(record)
        self._tally.observer.on_stored(self._roles.durable[0].name, record.info)
        self._cascade.discard(record.storage_key)
        self._admission.settle(record.storage_key)

    async def _put_volatile(self, record: Record) -> bool:
        """Put into the memory tiers as far as they take it; an older copy does not stay behind in one that refuses."""
        taken = False
        for tier in self._roles.volatile:
            try:
                with span("tier.put", tier=tier.name, size_bytes=len(record.payload)):
                    await tier.put(record)
                self._tally.observer.on_stored(tier.name, record.info)
                taken = True
            except KvloomError as error:
                self._tally.note_error(tier.name, "put", str(error))
                await self._reading.forget(tier, record.storage_key)
        return taken

    def _discard(self, place: StorageKey) -> bool:
        record = self._cascade.find(place)
        self._cascade.discard(place)
        return record is not None and not is_expired(record.expires_at_ms, self._clock_ms())

    async def _delete_from(self, tier: Tier, place: StorageKey, failures: list[KvloomError]) -> bool:
        try:
            live = (await tier.contains_live([place], self._clock_ms()))[0]
        except KvloomError:
            live = True  # nobody knows; the deletion itself will say whether the tier works
        try:
            deleted = await tier.delete(place)
        except KvloomError as error:
            self._tally.note_error(tier.name, "delete", str(error))
            failures.append(error)
            return False
        if deleted:
            self._tally.observer.on_removed(tier.name, place)
        return deleted and live
