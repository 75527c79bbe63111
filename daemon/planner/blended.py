"""How much of a blended request to recompute: as much as loading hides, and no less than quality needs. Pure.

Chunks that are not a prefix are loaded layer by layer, and of every layer after the first few a part of the tokens is
computed again while the next layer comes (CacheBlend, EuroSys 2025, section 5: its loading controller). With the time
of prefill ``P`` and of loading ``L`` over all layers, a part ``r`` of the tokens is hidden while ``r · P <= L``.
"""

from dataclasses import dataclass

import numpy as np

from ...clients.plan_wire import Ability
from ...errors import InvalidRequest
from .outlook import Estimates
from .plan import Action, Plan
from .planner import DECISION_QUANTILE, REASONS, reasons_for
from .problem import RECOMPUTE, Problem, pose
from .request import Executor, PlanRequest

__all__ = ["BlendPlan", "BlendShape", "BlendedPlan", "make_blended_plan", "plan_blend"]


@dataclass(frozen=True, slots=True)
class BlendShape:
    """How a request is blended: of ``layers``, the first few are computed whole, to find the tokens that matter."""

    layers: int
    whole_layers: int
    ratio_min: float
    """Of the tokens, what quality needs to have recomputed."""
    side_by_side: bool = True
    """Whether layers come in while others are computed; if not, nothing that is recomputed is hidden."""


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
    side_by_side: bool = True,
) -> BlendPlan:
    """The ratio for chunks that take ``load_seconds`` to load and ``prefill_seconds`` to compute, whole.

    ``whole_layers`` of ``layers`` are computed for all tokens, to find those that matter. ``suffix_seconds``: what is
    computed in any case, in every layer. ``ratio_min`` is what quality needs at the least, and what is recomputed where
    nothing is computed before all is loaded (``side_by_side``). :class:`InvalidRequest` for numbers that make no sense.
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
    first = whole_layers * (prefill + suffix)
    if side_by_side:
        hidden = 1.0 if prefill <= 0.0 else max(0.0, load - suffix) / prefill
        ratio = min(1.0, max(ratio_min, hidden))
        # The first layers compute while the first that is loaded comes; each further one waits for whichever is later.
        blended = first + rest * max(load, ratio * prefill + suffix) + (max(0.0, load - first) if rest else 0.0)
    else:
        ratio = ratio_min
        blended = load_seconds + first + rest * (ratio * prefill + suffix)
    everything = layers * (prefill + suffix)
    if blended >= everything:
        return BlendPlan(1.0, everything, everything)
    return BlendPlan(ratio, blended, everything)


@dataclass(frozen=True, slots=True)
class BlendedPlan:
    """What to load, and how much of it to recompute all the same."""

    plan: Plan
    recompute_ratio: float


def make_blended_plan(request: PlanRequest, estimates: Estimates, loss_max: float, shape: BlendShape) -> BlendedPlan:
    """Load each chunk the fastest way that loses at most ``loss_max``, or compute everything where that is faster.

    Chunks need not wait for each other, so there is no order between them, and no end to begin from.
    """
    executor = Executor(Ability.ANY_CHUNK)
    cautious = pose(request, estimates.at(DECISION_QUANTILE), executor)
    allowed = np.where(cautious.loss <= loss_max * request.tokens[:, None], cautious.transfer, np.inf)[:, :-1]
    choice = np.full(len(request), RECOMPUTE, dtype=np.int64)
    if allowed.shape[1]:
        choice = np.where(np.isfinite(allowed.min(axis=1)), allowed.argmin(axis=1), RECOMPUTE)
    decided = _blended(cautious, choice, shape)
    if decided.recompute_ratio >= 1.0:
        choice[:] = RECOMPUTE
    expected = _blended(pose(request, estimates.mean(), executor), choice, shape)
    loaded = np.flatnonzero(choice != RECOMPUTE)
    lost = float(cautious.loss[np.arange(len(request)), choice].sum())
    codes = reasons_for(cautious, choice, np.zeros(len(request), dtype=np.bool_), loss_max, request)
    plan = Plan(
        request=request,
        actions=np.where(choice == RECOMPUTE, Action.RECOMPUTE, Action.LOAD).astype(np.int8),
        ways=choice.astype(np.int16),
        seconds=np.full(len(request), expected.ttft_seconds),
        reasons=tuple(map(REASONS.__getitem__, codes.tolist())),
        load_order=loaded,
        meeting=int(loaded[0]) if len(loaded) else len(request),
        ttft_seconds=expected.ttft_seconds,
        cautious_seconds=decided.ttft_seconds,
        recompute_seconds=expected.recompute_seconds,
        loss=lost / float(request.tokens.sum()),
    )
    return BlendedPlan(plan, decided.recompute_ratio)


def _blended(problem: Problem, choice: np.ndarray[tuple[int, ...], np.dtype[np.int64]], shape: BlendShape) -> BlendPlan:
    rows = np.arange(len(problem))
    loaded = choice != RECOMPUTE
    moving, decoding = problem.transfer[rows, choice].sum(), problem.decode[rows, choice].sum()
    return plan_blend(
        load_seconds=float(max(moving, decoding) + problem.path_seconds.max()) if loaded.any() else 0.0,
        prefill_seconds=float(problem.compute[loaded].sum()),
        suffix_seconds=float(problem.compute[~loaded].sum()) + problem.call_seconds + problem.wait_seconds,
        layers=shape.layers,
        whole_layers=shape.whole_layers,
        ratio_min=shape.ratio_min,
        side_by_side=shape.side_by_side,
    )
