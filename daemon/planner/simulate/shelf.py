"""What the store of a simulation holds: blocks of a workload, up to a capacity, by a real eviction policy."""

from typing import Final

from ....kvstore.attributes import ChunkAttributes
from ....kvstore.eviction import make_policy
from ....kvstore.key import StorageKey
from .workload import NO_BLOCK, Workload

__all__ = ["Shelf"]

_MIX: Final = 0x9E37_79B9_7F4A_7C15
"""Policies find keys by bytes that are random in real ones, so numbers are spread over them (Fibonacci hashing)."""
_OWNER: Final = bytes(16)


class Shelf:
    """Blocks of ``workload`` that are stored, ``token_bytes`` for each of their tokens; without a capacity, all."""

    def __init__(self, workload: Workload, *, token_bytes: float, capacity_bytes: int | None, policy: str) -> None:
        self.resident = bytearray(len(workload.tokens))
        """By block: whether it is stored."""
        self._capacity_bytes = capacity_bytes
        if capacity_bytes is None:
            return
        self._policy = make_policy(policy)
        self._tokens: list[int] = workload.tokens.tolist()
        self._starts: list[int] = workload.starts.tolist()
        self._parents: list[int] = workload.parents.tolist()
        self._token_bytes = token_bytes

    def use(self, blocks: list[int]) -> None:
        """Somebody asks for these blocks, which are stored, front to back."""
        if self._capacity_bytes is not None:
            for block in blocks:
                self._policy.record_use(_key(block))

    def put(self, blocks: list[int]) -> None:
        """Store blocks, front to back; stored ones stay as they are. Room is made as a tier makes it: before a put."""
        resident = self.resident
        if self._capacity_bytes is None:
            for block in blocks:
                resident[block] = 1
            return
        policy = self._policy
        for block in blocks:
            if resident[block]:
                continue
            size_bytes = max(round(self._tokens[block] * self._token_bytes), 1)
            while policy.total_bytes + size_bytes > self._capacity_bytes and (victim := policy.victim()) is not None:
                policy.record_evict(victim)
                resident[int.from_bytes(victim[-8:], "big")] = 0
            if size_bytes > self._capacity_bytes:
                continue
            parent = self._parents[block]
            above = None if parent == NO_BLOCK else _key(parent)
            policy.record_put(_key(block), size_bytes, ChunkAttributes(above, self._starts[block], self._tokens[block]))
            resident[block] = 1


def _key(block: int) -> StorageKey:
    return StorageKey(_OWNER + (block * _MIX % 2**64).to_bytes(8, "big") + block.to_bytes(8, "big"))
