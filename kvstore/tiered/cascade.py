"""The stages of write-behind in a row: one per slower tier, each passing on to the next what it has written."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from ... import limits
from ..key import StorageKey
from ..key_locks import KeyLocks
from ..tier import Record, Tier
from .roles import Roles
from .stats import StageStats, StoreObserver
from .write_behind import Overflow, Stage

__all__ = ["Cascade", "CascadeLimits"]


@dataclass(frozen=True, slots=True)
class CascadeLimits:
    """How much may be dirty at each stage, and what happens past that.

    ``shared_overflow`` may be ``wait`` where every chunk must reach the shared tier, at the price that a slow one
    slows down puts.
    """

    dirty_bytes_max: int = limits.DIRTY_BYTES_MAX
    put_wait_seconds_max: float = limits.PUT_WAIT_SECONDS_MAX
    shared_dirty_bytes_max: int = limits.SHARED_DIRTY_BYTES_MAX
    shared_overflow: Overflow = Overflow.DROP
    shared_drain_seconds_max: float = limits.SHARED_DRAIN_SECONDS_MAX


class Cascade:
    """Belongs to a store: :meth:`run` beside its other background work. A record waits at one stage at a time.

    The stages of local tiers share the store's key locks. A shared tier has locks of its own, so that nobody who
    changes a key waits for a network.
    """

    def __init__(
        self,
        roles: Roles,
        locks: KeyLocks,
        observer: StoreObserver,
        bounds: CascadeLimits,
        *,
        clock_ms: Callable[[], int],
        prepare_shared: Callable[[Tier, Record], Awaitable[Record | None]],
    ) -> None:
        """``prepare_shared`` makes what is written to a shared tier of a record, ``None`` for nothing."""
        stages: list[Stage] = []
        for tier in reversed(roles.durable + roles.shared):
            following = stages[0] if stages else None
            if tier.shared:
                stage = Stage(
                    tier,
                    KeyLocks(),
                    observer,
                    clock_ms=clock_ms,
                    bytes_max=bounds.shared_dirty_bytes_max,
                    wait_seconds_max=bounds.put_wait_seconds_max,
                    overflow=bounds.shared_overflow,
                    prepare=partial(prepare_shared, tier),
                    drain_seconds_max=bounds.shared_drain_seconds_max,
                    following=following,
                )
            else:
                stage = Stage(
                    tier,
                    locks,
                    observer,
                    clock_ms=clock_ms,
                    bytes_max=bounds.dirty_bytes_max,
                    wait_seconds_max=bounds.put_wait_seconds_max,
                    following=following,
                )
            stages.insert(0, stage)
        self._finishing = asyncio.Event()
        self._stages = tuple(stages)
        self._local = tuple(stage for stage in stages if not stage.tier.shared)
        self._shared = tuple(stage for stage in stages if stage.tier.shared)

    @property
    def dirty_bytes(self) -> int:
        """Bytes that wait for the local tiers."""
        return sum(stage.dirty_bytes for stage in self._local)

    @property
    def failures(self) -> int:
        """Records that a local tier refused."""
        return sum(stage.failures for stage in self._local)

    @property
    def shared(self) -> tuple[Stage, ...]:
        """The stages of the shared tiers."""
        return self._shared

    def __len__(self) -> int:
        return sum(len(stage) for stage in self._local)

    def stats(self) -> tuple[StageStats, ...]:
        """The counters of each stage, in order."""
        return tuple(stage.stats() for stage in self._stages)

    def after(self, tier: Tier | None) -> Stage | None:
        """The stage at which a record enters that ``tier`` has already (``None``: no slower tier has)."""
        for index, stage in enumerate(self._stages):
            if stage.tier is tier:
                return self._stages[index + 1] if index + 1 < len(self._stages) else None
        return self._stages[0] if self._stages else None

    def first_shared(self) -> Stage | None:
        """The stage at which a record enters that no durable local tier is to have."""
        return self._shared[0] if self._shared else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, at no stage."""
        return not any(map(len, self._stages))

    def find(self, key: StorageKey) -> Record | None:
        """The record waiting under ``key``, at whichever stage."""
        for stage in self._stages:
            record = stage.find(key)
            if record is not None:
                return record
        return None

    def records(self) -> list[Record]:
        """All records waiting."""
        return [record for stage in self._stages for record in stage.records()]

    def discard(self, key: StorageKey) -> bool:
        """Forget what waits under ``key``; whether something did. Hold the store's lock of the key."""
        discarded = [stage.discard(key) for stage in self._stages]
        return any(discarded)

    async def flush(self, *, shared: bool = False) -> None:
        """Wait until all that waits for the local tiers is written, then, if so asked, all for the ``shared`` ones."""
        for stage in self._stages if shared else self._local:
            await stage.flush()

    def finish(self) -> None:
        """Let :meth:`run` end once nothing waits."""
        self._finishing.set()
        if self._stages:
            self._stages[0].finish()

    async def run(self) -> None:
        """Write until :meth:`finish`, each stage until the one before it has ended and nothing waits."""

        async def run_stage(index: int) -> None:
            await self._stages[index].run()
            if index + 1 < len(self._stages):
                self._stages[index + 1].finish()

        async with asyncio.TaskGroup() as group:
            for index in range(len(self._stages)):
                group.create_task(run_stage(index))
            await self._finishing.wait()
