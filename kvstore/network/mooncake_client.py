"""Mooncake's own client: how it is loaded and set up, and how ranges of an object are read into memory of ours."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from ...errors import MissingDependency, StorageUnavailable
from .address import MooncakeAddress

__all__ = ["NOT_FOUND", "Client", "client_class", "read_ranges", "set_up_client"]

NOT_FOUND: Final = (-703, -704)
"""Not there, or not all there yet."""
_ENVIRONMENT: Final = {
    "MC_RPC_TIMEOUT_MS": "1000",
    "MC_RPC_CONNECT_TIMEOUT_MS": "500",
    "MC_STORE_CLIENT_SETUP_RETRIES": "1",
    "MC_LOG_LEVEL": "ERROR",
    "GLOG_minloglevel": "3",
}
Client = Any
"""``mooncake.store.MooncakeDistributedStore``; the package has no types."""


def set_up_client(address: MooncakeAddress) -> Client:
    """A client of the store at ``address``. Blocks, with the interpreter's lock held: see :mod:`.mooncake`."""
    client = client_class(address)()
    code = client.setup(
        address.local,
        address.metadata,
        address.segment_bytes,
        address.buffer_bytes,
        address.protocol,
        address.device,
        str(address.master),
    )
    if code != 0:
        raise StorageUnavailable(f"mooncake: the client could not be set up: error {code}")
    return client


def client_class(address: MooncakeAddress) -> Callable[[], Client]:
    """Load the extension, with time-outs in the environment where nobody else has set them."""
    for name, value in {**_ENVIRONMENT, "MC_TCP_BIND_ADDRESS": address.local.partition(":")[0]}.items():
        os.environ.setdefault(name, value)
    try:
        from mooncake.store import MooncakeDistributedStore
    except ModuleNotFoundError:
        raise
    except ImportError as error:  # the package is there, libibverbs or librdmacm is not
        raise MissingDependency(f"mooncake cannot be loaded: {error}; Debian: libibverbs1 librdmacm1") from error
    new: Callable[[], Client] = MooncakeDistributedStore
    return new


def read_ranges(client: Client, name: str, starts: Sequence[int], sizes: Sequence[int]) -> memoryview | None:
    """The ranges of one object one after another, in memory of their size; ``None`` where the object is gone."""
    buffer = np.empty(max(1, sum(sizes)), np.uint8)
    pointer = buffer.ctypes.data
    wanted = [(start, size) for start, size in zip(starts, sizes, strict=True) if size]
    places = np.cumsum([0, *(size for _, size in wanted)])[:-1].tolist()
    code = client.register_buffer(pointer, buffer.nbytes)
    if code != 0:
        raise StorageUnavailable(f"mooncake: register_buffer failed with error {code}")
    try:
        ((read,),) = client.get_into_ranges(
            [pointer], [[name]], [[places]], [[[start for start, _ in wanted]]], [[[size for _, size in wanted]]]
        )
    finally:
        client.unregister_buffer(pointer)
    failed = next((code for code in read if code < 0), None)
    if failed in NOT_FOUND:
        return None
    if failed is not None or read != [size for _, size in wanted]:
        raise StorageUnavailable(f"mooncake: get_into_ranges returned {str(read)[:80]}")
    buffer.flags.writeable = False
    return buffer.data[: sum(sizes)]
