"""LMCache's CacheGen on the CPU, one chunk at a time. Runs in an environment of its own, which needs no kvloom.

    PYTHON -m codec_bench.lmcache_worker CHUNK.npz MODEL_FOLDER CORES

The file holds ``keys`` and ``values`` float32 ``[layers, kv_heads, tokens, head_dim]``.
"""

import sys

import numpy as np

from codec_bench.answering import Stage, answer, use_cores

ERROR_MAX = 0.1
"""Relative squared error past which what comes back is not the chunk."""


def main() -> None:
    """Answer until the input ends."""
    chunk, model_folder, cores = sys.argv[1:]
    threads = use_cores(cores)
    import torch

    torch.set_num_threads(threads)
    from lmcache.v1.config import LMCacheEngineConfig  # type: ignore[import-not-found]
    from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj  # type: ignore[import-not-found]
    from lmcache.v1.metadata import LMCacheMetadata  # type: ignore[import-not-found]
    from lmcache.v1.storage_backend.naive_serde.cachegen_decoder import CacheGenDeserializer  # type: ignore[import-not-found]
    from lmcache.v1.storage_backend.naive_serde.cachegen_encoder import CacheGenSerializer  # type: ignore[import-not-found]

    with np.load(chunk) as file:
        both = np.stack([file["keys"], file["values"]])
    _, layers, heads, tokens, head_dim = both.shape
    flat = np.ascontiguousarray(both.transpose(0, 1, 3, 2, 4)).reshape(2, layers, tokens, heads * head_dim)
    kv = torch.from_numpy(flat)
    config = LMCacheEngineConfig.from_defaults(chunk_size=tokens)
    metadata = LMCacheMetadata(model_folder, 1, 1, 0, 0, torch.float32, (layers, 2, tokens, heads, head_dim))
    described = MemoryObjMetadata(
        shape=kv.shape,
        dtype=kv.dtype,
        address=0,
        phy_size=kv.nbytes,
        ref_count=1,
        pin_count=0,
        fmt=MemoryFormat.KV_2LTD,
    )
    serializer, deserializer = CacheGenSerializer(config, metadata), CacheGenDeserializer(config, metadata)
    coded = serializer.serialize(TensorMemoryObj(kv, described, None))
    found = deserializer.deserialize(coded).tensor.reshape(kv.shape)
    error = float((found - kv).square().mean() / kv.square().mean())
    if not error < ERROR_MAX:
        raise SystemExit(f"LMCache gave back something else: relative squared error {error:.3f}")
    stages = {
        "encode": Stage(kv.numel(), lambda: serializer.serialize(TensorMemoryObj(kv, described, None))),
        "decode": Stage(kv.numel(), lambda: deserializer.deserialize(coded)),
    }
    answer(stages, coded_bytes=len(coded.byte_array))


if __name__ == "__main__":
    main()
