"""Variants of a chunk, each computed behind other chunks, and which of them serves a prompt best (Cache-Craft).

Where a chunk is computed inside a prompt, the attention that its tokens pay to the chunks before it is recorded beside
its KV. In another prompt, what it leaned on and does not find any more has to be mended: the share of it that has to be
recomputed is the paper's *cache fix overhead* (Agarwal et al. 2025, §3), and the tokens that leaned most come first.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..codec.layout import Layout
from ..errors import InvalidRequest
from .attention import AttentionReader
from .cache import KvCache
from .request import PlacedChunk

__all__ = ["ChunkVariant", "best_variant", "record_variants"]


@dataclass(frozen=True, slots=True)
class ChunkVariant:
    """A chunk's KV as computed in one prompt, at ``first_position``, and what it leaned on there.

    ``before`` names the chunks that stood before it, in order; ``leaned`` ``[before, tokens]`` is the attention that
    each token paid to each of them and ``own`` ``[tokens]`` to its own chunk, means over heads and layers.
    """

    keys: Sequence[NDArray[Any]]
    values: Sequence[NDArray[Any]]
    first_position: int
    before: tuple[Hashable, ...]
    leaned: NDArray[np.float32]
    own: NDArray[np.float32]

    @property
    def tokens(self) -> int:
        """Tokens of the chunk."""
        return self.own.size

    def fix_overhead(self, before: Sequence[Hashable]) -> float:
        """How much of the chunk needs recompute behind the chunks ``before``, 0 to 1: the paper's CFO for alpha 1."""
        inter = self.leaned.sum(axis=1)
        now = {name: place for place, name in enumerate(before)}
        found = [name in now for name in self.before]
        total = float(inter.sum())
        overlap = float(inter[found].sum()) / total if total > 0.0 else float(not self.before and not now)
        places = [now[name] for name in self.before if name in now]
        pairs = [(one, two) for n, one in enumerate(places) for two in places[n + 1 :]]
        swapped = sum(one > two for one, two in pairs) / len(pairs) if pairs else 0.0
        own = float(self.own.sum())
        impact = 1.0 / (1.0 + np.exp(-total / own)) if own > 0.0 else 1.0
        return float(impact * (1.0 - overlap * (1.0 - swapped)))

    def placed(self, start: int, before: Sequence[Hashable]) -> PlacedChunk:
        """The chunk at ``start`` of a prompt, behind ``before``, with its tokens' need of recompute.

        Needs compare across chunks: of any number of tokens that need it most, each chunk has a share in proportion to
        its overhead, and in each chunk those come first that leaned most on what is not there now.
        """
        missing = [name not in set(before) for name in self.before]
        lost = self.leaned[missing].sum(axis=0) if any(missing) else self.leaned.sum(axis=0)
        rank = np.empty(self.tokens, dtype=np.float32)
        rank[np.argsort(-lost, kind="stable")] = np.arange(self.tokens)
        need = -rank / np.float32(self.tokens * max(self.fix_overhead(before), 1e-6))
        return PlacedChunk(start, self.tokens, self.keys, self.values, self.first_position, need=need)


def best_variant(variants: Sequence[ChunkVariant], before: Sequence[Hashable]) -> ChunkVariant:
    """The variant that needs least recompute behind the chunks ``before``."""
    if not variants:
        raise InvalidRequest("a chunk has no variants, at least 1 is needed")
    return min(variants, key=lambda variant: variant.fix_overhead(before))


@torch.inference_mode()
def record_variants(
    model: Any, layout: Layout, token_ids: NDArray[np.int64], starts: Sequence[int], names: Sequence[Hashable]
) -> list[ChunkVariant]:
    """Prefill a prompt and cut a variant of each chunk out of it.

    Chunk ``i`` begins at ``starts[i]`` and ends where the next begins, the last one with ``token_ids``; what stands
    before the first is the exact prefix. The variants share the memory of the prompt's cache.
    """
    total = token_ids.size
    if len(starts) != len(names) or not starts or list(starts) != sorted({*starts}) or not 0 <= starts[0] < total:
        raise InvalidRequest(f"{len(starts)} starts of {len(names)} chunks do not divide a prompt of {total} tokens")
    stops = (*starts[1:], total)
    paid = torch.zeros(total, len(starts), device=model.device)
    mass = torch.zeros(total, len(starts), device=model.device)
    for chunk, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        mass[start:stop, chunk] = 1.0

    def receive(_: int, rows: slice, weights: Tensor) -> None:
        paid[rows] += weights.mean(dim=0) @ mass

    cache = KvCache(layout, total, model.device)
    with AttentionReader(receive, total, total) as reader:
        model(input_ids=torch.from_numpy(token_ids)[None].to(model.device), past_key_values=cache, logits_to_keep=1)
    reader.check(len(layout.layers))
    attention = (paid / len(layout.layers)).cpu().numpy()
    found = []
    for chunk, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        arrays = [cache.layer_arrays(layer) for layer in range(len(layout.layers))]
        found.append(
            ChunkVariant(
                [item.keys[:, start:stop] for item in arrays],
                [item.values[:, start:stop] for item in arrays],
                start,
                tuple(names[:chunk]),
                np.ascontiguousarray(attention[start:stop, :chunk].T),
                np.ascontiguousarray(attention[start:stop, chunk]),
            )
        )
    return found
