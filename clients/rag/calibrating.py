"""A profile for a pipeline's documents, learnt from a little of their text."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import codec
from ...codec.layout import Layout
from ...codec.level import LossyCodec
from ...codec.profiles import AnyProfile
from ...errors import NonFiniteTensor, UnsupportedModel
from ..transformers import SequencePlan, calibration_samples, cut_sequences
from .documents import PromptTemplate

__all__ = ["calibrated"]

_PLAN = SequencePlan(draws=1)
_SEQUENCES_MAX = 8
_TEXT_SEQUENCES_MAX = 2
"""More of one text teaches less than other texts."""
_KL_TARGET = 0.0013
"""So little text promises too much: on SmolLM2 ``standard`` came out at three times the divergence aimed at."""


def calibrated(
    model: Any, layout: Layout, template: PromptTemplate, texts: Iterable[str], chosen: LossyCodec
) -> AnyProfile:
    """A profile of codec ``chosen`` for ``texts``; ours takes gradients into account where torch can differentiate."""
    opening = template.prefix[:1]  # the token that attention sinks into in every prompt
    sequences, plan = _sequences(model, template, texts, opening)

    def samples(*, gradients: bool) -> Any:
        return calibration_samples(model, sequences, plan=plan, layout=layout, gradients=gradients)

    if chosen is LossyCodec.CACHEGEN:
        return codec.calibrate_cachegen(samples(gradients=False), layout)
    try:
        return codec.calibrate(samples(gradients=True), layout, kl_target=_KL_TARGET)
    except (UnsupportedModel, NonFiniteTensor):
        return codec.calibrate(samples(gradients=False), layout, kl_target=_KL_TARGET)


def _sequences(
    model: Any, template: PromptTemplate, texts: Iterable[str], opening: NDArray[np.int64]
) -> tuple[list[NDArray[np.int64]], SequencePlan]:
    """As many of ``texts`` as are needed, cut as the plan says; a shorter plan where there is little text."""
    plan = _PLAN.for_model(model)
    found: list[NDArray[np.int64]] = []
    tokens_left = _SEQUENCES_MAX * plan.tokens
    for text in texts:
        if tokens_left <= 0:
            break
        found.append(template.tokenise(text)[: _TEXT_SEQUENCES_MAX * plan.tokens])
        tokens_left -= len(found[-1])
    plan = plan.within(len(opening) + sum(map(len, found)))
    return cut_sequences(found, tokens=plan.tokens, sequences_max=_SEQUENCES_MAX, opening=opening), plan
