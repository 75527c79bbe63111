"""How much of a blended request to recompute: as much as loading hides, and no less than quality needs. Pure.

Chunks that are not a prefix are loaded layer by layer, and of every layer after the first few a part of the tokens is
computed again while the next layer comes (CacheBlend, EuroSys 2025, section 5: its loading controller). With the time
of prefill ``P`` and of loading ``L`` over all layers, a part ``r`` of the tokens is hidden while ``r · P <= L``.
"""

from dataclasses import dataclass

from ...errors import InvalidRequest

__all__ = ["BlendPlan", "plan_blend"]


@dataclass(frozen=True, slots=True)
class BlendPlan:
    """What to recompute, and what that takes."""

    recompute_ratio: float
    """Of the tokens of loaded chunks, in every layer after the whole ones; 1 where computing everything is faster."""
    ttft_seconds: float
    recompute_seconds: float
    """What computing everything takes."""


def plan_blend(
    *,
    load_seconds: float,
    prefill_seconds: float,
    suffix_seconds: float,
    layers: int,
    whole_layers: int,
    ratio_min: float,
) -> BlendPlan:
    """The ratio for chunks that take ``load_seconds`` to load and ``prefill_seconds`` to compute, whole.

    ``whole_layers`` of ``layers`` are computed for all tokens, to find those that matter. ``suffix_seconds``: what is
    computed in any case, in every layer. ``ratio_min`` is what quality needs at the least. :class:`InvalidRequest` for
    numbers that make no sense.
    """
    if not (0 <= whole_layers <= layers and layers >= 1 and 0.0 <= ratio_min <= 1.0):
        raise InvalidRequest(
            f"blending {whole_layers} whole layers of {layers} with a ratio of at least {ratio_min}: not 0 <= whole <= "
            "layers, or not 0 <= ratio <= 1"
        )
    if not min(load_seconds, prefill_seconds, suffix_seconds) >= 0.0:
        raise InvalidRequest("times to load and to compute are numbers of at least 0")
    rest = layers - whole_layers
    load, prefill, suffix = (seconds / layers for seconds in (load_seconds, prefill_seconds, suffix_seconds))
    hidden = 1.0 if prefill <= 0.0 else max(0.0, load - suffix) / prefill
    ratio = min(1.0, max(ratio_min, hidden))
    # The first layers compute while the first that is loaded comes; each further one waits for whichever is later.
    blended = whole_layers * (prefill + suffix) + rest * max(load, ratio * prefill + suffix)
    if rest:
        blended += max(0.0, load - whole_layers * (prefill + suffix))
    everything = layers * (prefill + suffix)
    if blended >= everything:
        return BlendPlan(1.0, everything, everything)
    return BlendPlan(ratio, blended, everything)
