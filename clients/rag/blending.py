"""Documents loaded into a prompt, and how a pipeline blends them: by what was measured of the model, or not at all."""

from dataclasses import dataclass, replace
from typing import Any

from ... import limits
from ...blend.cache import BlendCache
from ...blend.executor import Blended, Blender
from ...blend.gate import BlendGate, QualityTarget, unmovable_reason
from ...blend.request import BlendRequest, PlacedChunk
from ...blend.select.base import SelectionRule
from ...codec.layout import Layout
from ...codec.profiles import AnyProfile
from ...errors import InvalidData, StorageUnavailable, UnsupportedModel
from ..arrivals import ChunkPlace, LoadResult
from ..layered import LayeredDecoding
from .advised import Advice
from .documents import Prompt
from .gating import default_rule

__all__ = ["DocumentBlender", "LoadedContext", "Refused"]


@dataclass(frozen=True, slots=True)
class LoadedContext:
    """A cache with everything of a prompt that was stored, each document where the prompt has it.

    Positions of what was missed hold nothing; what was loaded is listed in ``result``; on ``advice``, if there was any.
    With ``chunks`` these are what was loaded, in memory of their own, and the cache has the exact prefix only. With
    ``decoding`` it is still on its way into the cache.
    """

    prompt: Prompt
    cache: BlendCache
    result: LoadResult
    advice: Advice | None = None
    chunks: tuple[PlacedChunk, ...] | None = None
    decoding: LayeredDecoding | None = None

    def whole(self) -> "LoadedContext":
        """The same, once all of it is in the cache; raises :class:`StorageUnavailable` where that cannot be."""
        if self.decoding is not None:
            self.decoding.finish()
        return replace(self, decoding=None)


@dataclass(frozen=True, slots=True)
class Refused:
    """Documents were not blended, and why."""

    reason: str


class DocumentBlender:
    """Blends loaded contexts on one model, or says why it does not.

    Without a ``rule`` of the caller's it is the default one, at the ratio that the profile's gate found for this model
    (:meth:`follow`); a gate that no ratio met refuses. A rule that the caller chose is not what a gate has measured.
    """

    def __init__(self, model: Any, layout: Layout, fingerprint: bytes, rule: SelectionRule | None) -> None:
        self._fingerprint = fingerprint
        self._chosen = rule
        self.gate: BlendGate | None = None
        self._unread = ""
        self._refusal = unmovable_reason(layout)
        self._blender: Blender | None = None
        try:
            self._blender = Blender(model, layout)
        except UnsupportedModel as error:
            self._refusal = self._refusal or str(error)

    @property
    def rule(self) -> SelectionRule:
        """What chooses the tokens to recompute."""
        if self._chosen is not None:
            return self._chosen
        found = None if self.gate is None else self.gate.chosen
        return default_rule(None if found is None else found.ratio)

    @property
    def target(self) -> QualityTarget:
        """What answers are to keep to: what the gate was measured for, or the default."""
        return QualityTarget() if self.gate is None else self.gate.target

    @property
    def refusal(self) -> str:
        """Why nothing is blended; empty where documents are."""
        if self._refusal or self._chosen is not None:
            return self._refusal
        return self._unread if self.gate is None else self.gate.reason

    def follow(self, profile: AnyProfile | None) -> None:
        """Go by the gate of ``profile``, if it has one of this very model; one that cannot be read refuses."""
        self.gate, self._unread = None, ""
        if profile is None or not profile.blend_gate:
            return
        try:
            found = BlendGate.from_bytes(profile.blend_gate)
        except InvalidData as error:
            self._unread = str(error)
        else:
            self.gate = found if found.fingerprint == self._fingerprint else None

    def blend(self, context: LoadedContext, rule: SelectionRule | None = None) -> Blended | Refused:
        """Compute what is left of ``context``, by :attr:`rule` unless another is given.

        Its cache is spoilt where the model turns out not to be blendable, or what was stored not to be readable.
        """
        if self._blender is None or self.refusal:
            return Refused(self.refusal)
        rule, decoding = rule or self.rule, context.decoding
        try:
            if decoding is not None and not rule.reads_attention:
                decoding.finish()  # what comes after a layer was computed in full would spoil it
            return self._blender.blend(_request(context), rule, cache=context.cache)
        except UnsupportedModel as error:
            self._refusal = str(error)
            return Refused(self._refusal)
        except StorageUnavailable as error:
            return Refused(str(error))
        finally:
            if decoding is not None:
                decoding.close()


def _request(context: LoadedContext) -> BlendRequest:
    """The prefix and every loaded chunk, already in the cache at their places; what was missed is computed.

    A document that comes first follows the very tokens it was computed after: it belongs to the exact prefix (exact but
    for its level) and nothing of it is recomputed. Where all that is stored is so short that it is computed again
    anyway, so is this document: a lossy level costs most where every token matters.
    """
    prompt, cache = context.prompt, context.cache
    arrays = [cache.layer_arrays(layer) for layer in range(len(cache.layout.layers))]

    def placed(start: int, stop: int) -> PlacedChunk:
        keys = [item.keys[:, start:stop] for item in arrays]
        values = [item.values[:, start:stop] for item in arrays]
        return PlacedChunk(start, stop - start, keys, values, first_position=start)

    exact_tokens = prompt.prefix_tokens
    stored_tokens = sum(place.ref.tokens for place in context.result.loaded)
    first_document_stop = prompt.spans[0].stop if prompt.spans else exact_tokens
    if stored_tokens <= limits.RECOMPUTED_TOKENS_MIN:
        first_document_stop = exact_tokens
    for place in context.result.loaded:
        if place.start == exact_tokens and place.stop <= first_document_stop:
            exact_tokens = place.stop

    def coming(place: ChunkPlace, decoding: LayeredDecoding) -> PlacedChunk:
        keys, values = decoding.layers_of(place, cache)
        return PlacedChunk(place.start, place.ref.tokens, keys, values, first_position=place.start)

    documents, decoding = context.chunks, context.decoding
    if documents is None and decoding is not None:
        documents = tuple(coming(place, decoding) for place in context.result.loaded)
    elif documents is None:
        documents = tuple(placed(place.start, place.stop) for place in context.result.loaded)
    return BlendRequest(prompt.token_ids, exact_tokens, (placed(0, prompt.prefix_tokens), *documents))
