"""Non-prefix reuse: stored chunks of KV in any order, moved to their place and mended where it matters.

A chunk computed alone has never seen the text that a prompt puts before it. Blending (CacheBlend, Yao et al. 2025)
rotates its keys to their new positions and computes again only the tokens whose KV would differ most; the rest is
used as stored. See :class:`Blender`. Needs the ``[torch]`` extra.
"""

from .cache import BlendCache, KvCache, LayerArrays
from .executor import Blended, Blender
from .parallel import ParallelEncoding
from .request import BlendReport, BlendRequest, BlendTimings, PlacedChunk
from .select import (
    RULES,
    AllTokens,
    FirstTokens,
    KvDeviation,
    NoTokens,
    QueryAttention,
    RecordedNeed,
    SelectionRule,
    selection_rule,
)
from .variants import ChunkVariant, best_variant, record_variants

__all__ = [
    "RULES",
    "AllTokens",
    "BlendCache",
    "BlendReport",
    "BlendRequest",
    "BlendTimings",
    "Blended",
    "Blender",
    "ChunkVariant",
    "FirstTokens",
    "KvCache",
    "KvDeviation",
    "LayerArrays",
    "NoTokens",
    "ParallelEncoding",
    "PlacedChunk",
    "QueryAttention",
    "RecordedNeed",
    "SelectionRule",
    "best_variant",
    "record_variants",
    "selection_rule",
]
