"""A client process of a peer, run by the peer's own Python (``make bench-peers``): it knows nothing of kvloom.

    python peer_client.py fill|put|get|contains_many|serve SUBJECT VALUE_BYTES VALUES PLACE

Each peer is used as its own documentation has it for speed: Redis through hiredis, Mooncake reading into and writing
from buffers that are registered once, LMCache through its connectors. ``PLACE`` is the server's port, or a directory.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable
from functools import partial

from turns import content_of, serve_turns

KEYS_ASKED = 1000
PUT_VALUES = 8
"""A put cycles through so many keys of its own: values are replaced, no store has to make room."""


def redis_operation(what: str, value_bytes: int, values: int, place: str) -> Callable[[], int]:
    """SET and GET of whole values; EXISTS of each key in one pipeline."""
    import hiredis  # noqa: F401 - redis-py parses with it where it can be imported: without it this fails
    import redis

    client = redis.Redis(port=int(place))
    pick = random.Random(os.getpid()).randrange
    if what == "fill":
        client.flushall()
        for number in range(values):
            client.set(b"%064x" % number, content_of(number, value_bytes))
    if what == "contains_many":

        def contains() -> int:
            pipeline = client.pipeline(transaction=False)
            for number in range(KEYS_ASKED):
                pipeline.exists(b"%064x" % number)
            return 32 * len(pipeline.execute())

        return contains
    if what == "put":
        data = content_of(0, value_bytes)
        return lambda: client.set(b"%d-%d" % (os.getpid(), pick(PUT_VALUES)), data) and value_bytes
    return lambda: _whole(len(client.get(b"%064x" % pick(values)) or b""), value_bytes)


def mooncake_operation(what: str, value_bytes: int, values: int, place: str) -> Callable[[], int]:
    """Over TCP, into and out of registered buffers; ``serve`` lends the pool its memory instead."""
    os.environ.update(MC_TCP_BIND_ADDRESS="127.0.0.1", MC_LOG_LEVEL="ERROR", GLOG_minloglevel="3")
    import numpy as np
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    lent_bytes = 1 << 30 if what == "serve" else 0
    code = store.setup("127.0.0.1", "P2PHANDSHAKE", lent_bytes, 64 << 20, "tcp", "", f"127.0.0.1:{place}")
    if code:
        raise SystemExit(f"setup failed with error {code}")
    buffer = (
        np.frombuffer(content_of(0, value_bytes), np.uint8).copy() if what == "put" else np.zeros(value_bytes, "u1")
    )
    pointer = buffer.ctypes.data
    pick = random.Random(os.getpid()).randrange
    if what == "serve":
        return partial(_lend, store)
    store.register_buffer(pointer, value_bytes)
    if what == "fill":
        for number in range(values):
            buffer[:] = np.frombuffer(content_of(number, value_bytes), np.uint8)
            _check(store.upsert_from(f"{value_bytes}-{number:064x}", pointer, value_bytes))
    if what == "contains_many":
        keys = [f"{number:064x}" for number in range(KEYS_ASKED)]
        return lambda: 32 * len(store.batch_is_exist(keys))

    def put() -> int:
        _check(store.upsert_from(f"{os.getpid()}-{pick(PUT_VALUES)}", buffer.ctypes.data, value_bytes))
        return value_bytes

    def get() -> int:
        read = store.get_into(f"{value_bytes}-{pick(values):064x}", buffer.ctypes.data, value_bytes)
        return _whole(read, value_bytes)

    return put if what == "put" else get


def lmcache_operation(what: str, value_bytes: int, values: int, place: str) -> Callable[[], int]:
    """LMCache's connectors: ``lm://`` for a port, files for a directory.

    A put over ``lm://`` has no answer, so each is followed by the question whether it is there.
    """
    os.environ["LMCACHE_LOG_LEVEL"] = "ERROR"
    import torch
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.memory_management import MemoryFormat
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.storage_backend.connector.fs_connector import FSConnector
    from lmcache.v1.storage_backend.connector.lm_connector import LMCServerConnector
    from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

    width = value_bytes // 1024  # 1 layer, keys and values, 256 tokens, 2 bytes each
    config = LMCacheEngineConfig.from_defaults(max_local_cpu_size=0.125, chunk_size=256)
    shape = (1, 2, 256, 1, width)
    memory = LocalCPUBackend(config, LMCacheMetadata("bench", 1, 1, 0, 0, torch.float16, shape), "cpu")
    loop = asyncio.new_event_loop()
    connector = (
        LMCServerConnector("127.0.0.1", int(place), loop, memory)
        if place.isdecimal()
        else FSConnector(loop, memory, config, base_paths_str=place)
    )
    value = memory.allocate(torch.Size((2, 1, 256, width)), torch.float16, MemoryFormat.KV_2LTD)
    pick = random.Random(os.getpid()).randrange

    def key(number: int) -> CacheEngineKey:
        return CacheEngineKey("bench", 1, 0, number, torch.float16)

    async def put(number: int) -> None:
        await connector.put(key(number), value)
        if place.isdecimal() and not await connector.exists(key(number)):
            raise SystemExit("what was put is not there")

    async def get(number: int) -> int:
        found = await connector.get(key(number))
        if found is None:
            raise SystemExit(f"value {number} is not there")
        size_bytes = len(found.byte_array)
        found.ref_count_down()
        return _whole(size_bytes, value_bytes)

    if what == "fill":
        for number in range(values):
            memoryview(value.byte_array).cast("B")[:] = content_of(number, value_bytes)
            loop.run_until_complete(put(number))
    own = (1 + os.getpid()) * 1000

    def put_one() -> int:
        loop.run_until_complete(put(own + pick(PUT_VALUES)))
        return value_bytes

    return put_one if what == "put" else lambda: loop.run_until_complete(get(pick(values)))


def _whole(read_bytes: int, value_bytes: int) -> int:
    if read_bytes != value_bytes:
        raise SystemExit(f"read {read_bytes} bytes of {value_bytes}")
    return read_bytes


def _lend(store: object) -> int:
    """Nothing to do: the memory is in the pool for as long as somebody holds the store."""
    return 0 if store else 1


def _check(code: int) -> None:
    if code:
        raise SystemExit(f"put failed with error {code}")


OPERATIONS = {
    "redis": redis_operation,
    "mooncake": mooncake_operation,
    "lmcache": lmcache_operation,
    "lmcache fs": lmcache_operation,
}


def main() -> None:
    """Fill, serve, or take turns."""
    what, subject, value_bytes, values, place = sys.argv[1:]
    run = OPERATIONS[subject](what, int(value_bytes), int(values), place)
    if what == "fill":
        print("ready", flush=True)
    else:
        serve_turns(run)
    sys.stdout.flush()
    os._exit(0)  # some peers' threads do not end by themselves


if __name__ == "__main__":
    main()
