"""Set a profile's steps by what the model itself makes of the coded cache.

Calibration predicts the KL divergence of ``standard`` from gradients, and is off by another factor on every model:
errors are not small, and those of neighbouring tokens and layers are alike. So a few contexts are coded and
decoded, the model goes on from both caches, and all steps are scaled by what the two say of the next tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import codec
from ...blend.cache import KvCache
from ...codec import Profile
from ...codec.calibration import KL_TARGET
from ...codec.container import Container
from ...codec.level import STANDARD, Level
from ...codec.profiles import AnyProfile
from ...errors import InvalidRequest
from .probing import model_layout
from .running import divergence, extract, log_probabilities, prefill
from .sensitivity import SequencePlan

__all__ = ["fitted", "measured_kl", "pass_through"]

UNSEEN = 2.0
"""By what the divergence of the 128 tokens after a context of other text exceeds what is measured here, of the tokens
after calibration text: 1.0 (code), 1.9 (documents) and 2.4 (prose) on SmolLM2."""
STEP_POWER = 2.2
"""The divergence grows with this power of the step around ``standard``, on SmolLM2 and Gemma 3."""
SCALE_MAX = 4.0
CONTEXTS_MAX = 6
CHUNK_TOKENS = 256


def fitted(
    profile: Profile,
    model: Any,
    sequences: Sequence[NDArray[np.int64]],
    *,
    plan: SequencePlan | None = None,
    kl_target: float = KL_TARGET,
) -> Profile:
    """``profile`` with the steps at which ``standard`` costs ``kl_target`` nats on text like ``sequences``.

    These are what the profile was calibrated on, of at least ``plan.tokens`` token ids each; at most
    :data:`CONTEXTS_MAX` of them are run. A profile without ``standard`` is given back as it is, and so is one whose
    divergence cannot be measured because it is zero. Steps change by a factor of :data:`SCALE_MAX` at most.
    """
    if STANDARD not in profile.levels or not sequences:
        return profile
    every = -(-len(sequences) // CONTEXTS_MAX)
    found = measured_kl(profile, model, sequences[::every], plan=plan)
    if not 0 < found < np.inf:
        return profile
    factor = (kl_target / (UNSEEN * found)) ** (1 / STEP_POWER)
    return profile.scaled(min(max(factor, 1 / SCALE_MAX), SCALE_MAX))


def measured_kl(
    profile: Profile, model: Any, sequences: Sequence[NDArray[np.int64]], *, plan: SequencePlan | None = None
) -> float:
    """The mean KL divergence (nats) of the tokens that follow a context, after the context went through ``standard``.

    Contexts and what follows are as ``plan`` says; raises :class:`InvalidRequest` for sequences shorter than it.
    """
    plan = plan or SequencePlan()
    layout = model_layout(model)
    own = replace(profile, layout=layout)
    total = 0.0
    for sequence in sequences:
        ids = np.ascontiguousarray(sequence[: plan.tokens], dtype=np.int64)
        if len(ids) < plan.tokens:
            raise InvalidRequest(f"a sequence has {len(ids)} tokens, {plan.tokens} are needed")
        cache = KvCache(layout, plan.tokens, model.device)
        prefill(model, ids[: plan.context_tokens], cache=cache)
        expected = log_probabilities(model, cache, ids[plan.context_tokens :])
        cache.truncate(plan.context_tokens)
        pass_through(cache, range(plan.context_tokens), own)
        found = log_probabilities(model, cache, ids[plan.context_tokens :])
        total += float(divergence(expected, found).mean())
    return total / len(sequences)


def pass_through(cache: KvCache, tokens: range, profile: AnyProfile, *, level: Level = STANDARD) -> None:
    """Put into these ``tokens`` of ``cache`` what a reader of ``level`` gets of them, in chunks of ``CHUNK_TOKENS``.

    ``profile`` is of the cache's layout.
    """
    for start in tokens[::CHUNK_TOKENS]:
        places = slice(start, min(start + CHUNK_TOKENS, tokens.stop))
        rooms = extract(cache, places.start, places.stop)
        kinds = ([np.ascontiguousarray(item) for item in kind] for kind in rooms)
        blob = codec.encode(*kinds, layout=cache.layout, profile=profile, first_position=start, levels=(level,))
        codec.decode_into(Container.parse(blob), *rooms, profile=profile, level=level)
