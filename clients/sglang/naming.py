"""How SGLang's pages are called: nothing is a hit that another model, rank, pool or layout has written. Pure.

SGLang names a page by the SHA-256 of its tokens and all before them; since 0.5 an ``extra_key`` (a LoRA is one) and a
``cache_salt`` begin that chain. What the digest does not say is said here: whose page it is and how it is laid out.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from blake3 import blake3

from ...kvstore.key import ContentKey, ContextMarker, ModelIdentity, content_key
from ..opaque import OpaqueRows
from ..weights import opaque_fingerprint

__all__ = ["PageNames", "pool_identity"]

_FORMAT: Final = b"kvloom sglang hicache 1"
_GEOMETRY: Final = (
    "layout",
    "page_size",
    "layer_num",
    "start_layer",
    "end_layer",
    "head_num",
    "head_dim",
    "v_head_dim",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "kv_cache_dim",
    "num_mamba_layers",
    "size_per_token",
    "storage_format_tag",
)
"""What a host pool may say of its pages; a pool says what it knows."""
_BY_RANK: Final = frozenset({"mamba"})
"""Pools that every rank has a part of, even where all ranks hold the same KV."""


def pool_identity(
    config: Any, pool: Any, name: str, pieces: Sequence[int], rows: OpaqueRows, fingerprint: str | None
) -> ModelIdentity:
    """What the pages of a host pool are: ``config`` is SGLang's HiCacheStorageConfig, ``pieces`` their sizes in bytes.

    Raises :class:`ConfigError` where it cannot be told which weights these are.
    """
    replicated = config.is_mla_model and name not in _BY_RANK and not hasattr(pool, "v_head_dim")
    described = {
        "model": config.model_name,
        "pool": name,
        "kind": type(pool).__name__,
        "dtype": str(getattr(pool, "dtype", "")),
        "geometry": {field: _plain(getattr(pool, field, None)) for field in _GEOMETRY},
        "pieces": list(pieces),
        "tensor": None if replicated else [config.tp_rank, config.tp_size],
        "pipeline": [config.pp_rank, config.pp_size],
        "context": [config.attn_cp_rank, config.attn_cp_size],
        "decode_context": [config.dcp_rank, config.dcp_size, config.logical_page_size],
    }
    digest = opaque_fingerprint(_FORMAT, described, config.model_name or "", fingerprint)
    return ModelIdentity(digest, rows.layout.digest())


class PageNames:
    """The content keys of one pool's pages."""

    def __init__(self, identity: ModelIdentity) -> None:
        self._identity = identity

    def of(self, keys: Sequence[str]) -> list[ContentKey]:
        """For each of SGLang's keys, which take the place of the tokens."""
        return [
            content_key(
                self._identity, np.frombuffer(blake3(key.encode()).digest(), dtype=np.uint8), ContextMarker.START
            )
            for key in keys
        ]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | str) else str(value)
