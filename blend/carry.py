"""Carry over to stored tokens what the recomputed ones around them have learnt of the new context.

Text that a chunk was computed without shifts the keys and values of its tokens in much the same way: what they attend
to there is alike for all of them. Of the tokens that a layer recomputes, the difference between fresh and stored KV is
known for some that stand for the rest. Its mean over a chunk is added to the chunk's other tokens before the layer
attends, scaled by how well these samples tell one another. Keys are compared and moved without their rotation. It costs
no token-layer. The samples have to stand for their chunk: learnt from the tokens that the question attends to, it did
harm, so a rule that carries over recomputes some at nearly even distances too (docs/adr/0017).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..codec.layout import Kind, Layout, Rope
from ..codec.rope import cos_sin
from .cache import KvLayer, Replaced
from .realign import rotate_into

__all__ = ["CarryOver"]

SAMPLES_MIN = 20
"""Fewer say too little: on prompts of 300 tokens of a random model carrying over did harm."""
_PRIOR_TOKENS = 2.0
"""A chunk's mean is drawn to that of all chunks as if so many tokens more had the latter."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which tokens a layer learns from and which it moves; places are in the prompt, samples in the computed rows."""

    places: Tensor
    samples: Tensor
    sample_places: Tensor
    sample_chunks: Tensor
    moved: Tensor
    moved_chunks: Tensor


@dataclass(slots=True)
class CarryOver:
    """Moves the stored tokens of one prompt, layer by layer.

    ``chunk`` ``[total]`` says whose token stands at a place, -1 where none is blended; ``teaches`` ``[total]`` (bool)
    which of them are samples where they are computed.
    """

    layout: Layout
    chunk: Tensor
    teaches: Tensor
    _rows: _Rows | None = None
    _tables: dict[Rope, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def apply(self, layer: int, kv: KvLayer, places: Tensor, replaced: Replaced) -> None:
        """Add to the stored tokens of ``layer`` what those computed at ``places`` ``[n]`` have ``replaced``."""
        rows = self._rows
        if rows is None or rows.places is not places:
            rows = self._rows = self._rows_of(places)
        if rows.samples.numel() < SAMPLES_MIN or not rows.moved.numel():
            return
        spec = self.layout.layers[layer]
        for kind, room, stored, fresh in (
            (Kind.KEYS, kv.keys, replaced.stored_keys, replaced.fresh_keys),
            (Kind.VALUES, kv.values, replaced.stored_values, replaced.fresh_values),
        ):
            rope = spec.rope_of(kind)
            if rope is None and kind is Kind.KEYS:
                continue  # how they know their position is not known: what one has learnt says nothing of another
            change = (fresh - stored).index_select(1, rows.samples).to(torch.float32)
            if rope is not None:
                change = self._turned(change, rope, -rows.sample_places)
            moved = _means(change, rows).index_select(1, rows.moved_chunks)
            if rope is not None:
                moved = self._turned(moved, rope, rows.moved)
            room[0].index_add_(1, rows.moved, moved.to(room.dtype))

    def _rows_of(self, places: Tensor) -> _Rows:
        samples = self.teaches[places].nonzero().squeeze(1)
        sample_places = places[samples]
        still = self.chunk >= 0
        still[places] = False
        moved = still.nonzero().squeeze(1)
        return _Rows(places, samples, sample_places, self.chunk[sample_places], moved, self.chunk[moved])

    def _turned(self, states: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """``states`` ``[heads, tokens, dim]`` rotated by ``positions`` ``[tokens]``, negative ones backwards."""
        table = self._tables.get(rope)
        if table is None:
            cosines, sines = cos_sin(rope, np.arange(self.chunk.numel(), dtype=np.int64))
            table = torch.from_numpy(cosines).to(states.device), torch.from_numpy(sines).to(states.device)
            self._tables[rope] = table
        away = positions.abs()
        cos, sin = (item.index_select(0, away) for item in table)
        out = torch.empty_like(states)
        rotate_into(out, states, rope, cos, sin * positions.sign()[:, None])
        return out


def _means(change: Tensor, rows: _Rows) -> Tensor:
    """What to add to the tokens of each chunk ``[heads, chunks, dim]``, from the samples' change ``[heads, n, dim]``.

    It is scaled by how well each sample is told by the others (the slope of a regression on what they say of it, over
    all heads, 0 to 1): an error here is the same for every token of a chunk and does not average out in attention.
    """
    chunks = int(max(rows.sample_chunks.max(), rows.moved_chunks.max())) + 1
    belongs = torch.nn.functional.one_hot(rows.sample_chunks, chunks).T.to(torch.float32)
    tokens = belongs.sum(dim=1)[None, :, None]
    totals, total, count = belongs @ change, change.sum(dim=1, keepdim=True), change.shape[1]
    means = (totals + _PRIOR_TOKENS * total / count) / (tokens + _PRIOR_TOKENS)
    others = (total - change) / (count - 1)
    told = (totals.index_select(1, rows.sample_chunks) - change + _PRIOR_TOKENS * others) / (
        tokens.index_select(1, rows.sample_chunks) - 1 + _PRIOR_TOKENS
    )
    worth = (change * told).sum() / told.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return means * worth.clamp(0.0, 1.0)
