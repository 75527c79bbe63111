import hashlib
from collections.abc import Callable

import pytest

from kvloom.kvstore.key import StorageKey


@pytest.fixture(scope="session")
def key() -> Callable[[int], StorageKey]:
    """Keys as they are: hashes."""
    keys: dict[int, StorageKey] = {}

    def make(number: int) -> StorageKey:
        if number not in keys:
            keys[number] = StorageKey(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=32).digest())
        return keys[number]

    return make
