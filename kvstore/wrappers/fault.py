"""A tier that fails as told: errors, delays, lost records and flipped bits, by a plan that a test controls.

Shipped, so that whoever writes a tier or a service can see what it does when the tier below misbehaves. What a fault
leaves behind is what the real thing would: a lost put was acknowledged, a corrupted read leaves the record as it is.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from ...codec.container import ByteRange
from ...errors import StorageFull, StorageUnavailable
from ..key import OwnerId, StorageKey
from ..outcome import Hit, Miss, Outcome, Unavailable
from ..tier import Buffer, Record, Slice, Tier
from .passing import PassingTier

__all__ = [
    "CorruptBytes",
    "Delay",
    "Fail",
    "Fault",
    "FaultPlan",
    "FaultTier",
    "Full",
    "Lose",
    "NoFaults",
    "Operation",
    "RandomFaults",
    "ScriptedFaults",
]


class Operation(StrEnum):
    """The operations of a tier that a plan can disturb."""

    PUT = "put"
    GET = "get"
    CONTAINS = "contains"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Fail:
    """The backend is down: ``get`` answers :class:`Unavailable`, the others raise :class:`StorageUnavailable`."""

    detail: str = "injected"


@dataclass(frozen=True, slots=True)
class Full:
    """A put raises :class:`StorageFull`; other operations are not disturbed."""


@dataclass(frozen=True, slots=True)
class Lose:
    """A put is acknowledged and thrown away, a get or a question finds nothing, a deletion does nothing."""


@dataclass(frozen=True, slots=True)
class CorruptBytes:
    """One bit is flipped: in what a get returns, or in what a put stores. ``position`` counts bits and wraps."""

    position: int


@dataclass(frozen=True, slots=True)
class Delay:
    """The operation starts only after ``seconds`` (of the tier's ``sleep``)."""

    seconds: float


Fault = Fail | Full | Lose | CorruptBytes | Delay


class FaultPlan(ABC):
    """Decides for every operation whether and how it is disturbed."""

    @abstractmethod
    def next_fault(self, operation: Operation) -> Fault | None:
        """Called once per operation, in order."""


class NoFaults(FaultPlan):
    """Nothing is disturbed."""

    def next_fault(self, operation: Operation) -> Fault | None:
        """No fault."""
        return None


class ScriptedFaults(FaultPlan):
    """For each operation a list of what happens to its next calls; calls past its end are not disturbed."""

    def __init__(self, script: Mapping[Operation, Iterable[Fault | None]]) -> None:
        self._script = {operation: deque(faults) for operation, faults in script.items()}

    def next_fault(self, operation: Operation) -> Fault | None:
        """The next of the script."""
        faults = self._script.get(operation)
        return faults.popleft() if faults else None


class RandomFaults(FaultPlan):
    """Each operation named in ``probabilities`` is disturbed that often, by one of ``faults``.

    A :class:`CorruptBytes` among them gets a new position each time. ``enabled`` may be switched at any time.
    """

    def __init__(self, random: Random, probabilities: Mapping[Operation, float], faults: Sequence[Fault]) -> None:
        self._random = random
        self._probabilities = dict(probabilities)
        self._faults = tuple(faults)
        self.enabled = True

    def next_fault(self, operation: Operation) -> Fault | None:
        """Throw the dice."""
        if not self.enabled or self._random.random() >= self._probabilities.get(operation, 0.0):
            return None
        fault = self._random.choice(self._faults)
        return CorruptBytes(self._random.getrandbits(48)) if isinstance(fault, CorruptBytes) else fault


class FaultTier(PassingTier):
    """Disturbs what ``plan``, which may be replaced, says; listings, counts and the end never are."""

    def __init__(
        self, inner: Tier, plan: FaultPlan, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        super().__init__(inner)
        self.plan = plan
        self._sleep = sleep

    async def put(self, record: Record) -> None:
        """Put, unless the plan says otherwise."""
        fault = await self._raised_fault(Operation.PUT)
        if isinstance(fault, Full):
            raise StorageFull(f"{self.name} tier is full: injected")
        if isinstance(fault, Lose):
            return
        if isinstance(fault, CorruptBytes):
            record = replace(record, payload=_flipped([record.payload], fault.position)[0])
        await self._inner.put(record)

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read, unless the plan says otherwise."""
        fault = await self._fault(Operation.GET)
        if isinstance(fault, Fail):
            return Unavailable(self.name, fault.detail)
        if isinstance(fault, Lose):
            return Miss()
        found = await self._inner.get(key, ranges)
        if isinstance(found, Hit) and isinstance(fault, CorruptBytes):
            return replace(found, value=replace(found.value, parts=_flipped(found.value.parts, fault.position)))
        return found

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Ask, unless the plan says otherwise."""
        if isinstance(await self._raised_fault(Operation.CONTAINS), Lose):
            return [False] * len(keys)
        return await self._inner.contains_many(keys)

    async def delete(self, key: StorageKey) -> bool:
        """Delete, unless the plan says otherwise."""
        if isinstance(await self._raised_fault(Operation.DELETE), Lose):
            return False
        return await self._inner.delete(key)

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Ask, unless the plan says otherwise."""
        if isinstance(await self._raised_fault(Operation.CONTAINS), Lose):
            return [False] * len(keys)
        return await self._inner.contains_live(keys, now_ms)

    async def delete_owner(self, owner: OwnerId) -> int:
        """Delete one by one, so that the plan has its say about each."""
        return await Tier.delete_owner(self, owner)

    async def _fault(self, operation: Operation) -> Fault | None:
        fault = self.plan.next_fault(operation)
        if isinstance(fault, Delay):
            await self._sleep(fault.seconds)
            return None
        return fault

    async def _raised_fault(self, operation: Operation) -> Fault | None:
        fault = await self._fault(operation)
        if isinstance(fault, Fail):
            raise StorageUnavailable(f"{self.name} tier cannot {operation}: {fault.detail}")
        return fault


def _flipped(parts: Sequence[Buffer], position: int) -> tuple[Buffer, ...]:
    """Copies of ``parts`` with one bit flipped, counted over all of them together."""
    total_bits = 8 * sum(len(part) for part in parts)
    if total_bits == 0:
        return tuple(parts)
    position %= total_bits
    damaged: list[Buffer] = []
    for part in parts:
        copied = bytearray(part)
        if 0 <= position < 8 * len(copied):
            copied[position // 8] ^= 1 << position % 8
        position -= 8 * len(copied)
        damaged.append(bytes(copied))
    return tuple(damaged)
