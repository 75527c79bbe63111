"""Questions for a plan as what the planner takes: checked, cut into chunks, with what the store offers of each. Pure.

What a question does not say of losses is taken from :data:`LEVEL_LOSSES`.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from .. import limits
from ..clients import plan_wire as wire
from ..clients.overdue import seen_byte_seconds
from ..clients.wire import parse_keys
from ..codec.level import EXACT, LOSSY_LEVELS, Level
from ..errors import InvalidRequest, TooManyItems
from ..kvstore.key import ContentKey, chunk_refs
from .plan_offers import Offered
from .planner.blended import BlendShape
from .planner.model import CostModel
from .planner.plan import Progress
from .planner.request import BestWithin, Executor, Fastest, Objective, PlanRequest, Way

__all__ = [
    "LEVEL_LOSSES",
    "Prompt",
    "check_name",
    "check_question",
    "executor_of",
    "objective_of",
    "progress_of",
    "prompt_of",
    "request_of",
    "seen_of",
    "shape_of",
]

LEVEL_LOSSES: Final = dict(zip(LOSSY_LEVELS, (0.0988, 0.0268, 0.0055, 0.0014), strict=True)) | {EXACT: 0.0}
"""Nats per token, of prose on SmolLM2-135M with its profile (docs/CODEC.md); a question may bring the model's own."""
_ENGINE: Final = re.compile(r"[!-~]+")
_LOSS_MAX: Final = 1000.0
_RECEIVED_BYTES_MAX: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Prompt:
    """The chunks that are asked about, in order, and where they stand."""

    keys: list[ContentKey]
    starts: list[int]
    tokens: list[int]
    end: int
    """Of the prompt."""


def check_name(name: str, *, what: str = "engine") -> None:
    """Raise :class:`InvalidRequest` unless ``name`` can name an engine or a link."""
    if len(name) > limits.ENGINE_NAME_CHARACTERS_MAX or not _ENGINE.fullmatch(name):
        most = limits.ENGINE_NAME_CHARACTERS_MAX
        raise InvalidRequest(f"{what} {name[:40]!r} is not a name of 1 to {most} printable ASCII characters, no space")


def check_question(question: wire.PlanQuestion) -> None:
    """Raise :class:`InvalidRequest` unless every number of a question is one that can be meant."""
    check_name(question.engine)
    ranges = {
        "chunk_tokens": (question.chunk_tokens, 1, limits.CHUNK_TOKENS_MAX),
        "first_position": (question.first_position, 0, limits.POSITION_MAX),
        "step_tokens": (question.step_tokens, 0, limits.POSITION_MAX),
        "running": (question.running, 0, limits.POSITION_MAX),
        "queued_tokens": (question.queued_tokens, 0, limits.POSITION_MAX),
        "elapsed_seconds": (question.elapsed_seconds, 0.0, limits.LEASE_SECONDS_MAX),
        "loss_max": (question.loss_max or 0.0, 0.0, _LOSS_MAX),
        "ttft_seconds": (question.ttft_seconds or 0.0, 0.0, limits.LEASE_SECONDS_MAX),
    }
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise InvalidRequest(f"{name} is {value}, must be {least} to {most}")
    if question.blend is not None and not 1 <= question.blend.layers <= limits.LAYERS_MAX:
        raise InvalidRequest(f"blend has {question.blend.layers} layers, must have 1 to {limits.LAYERS_MAX}")
    if question.goal is wire.PlanGoal.BEST_WITHIN and question.ttft_seconds is None:
        raise InvalidRequest("goal best_within needs ttft_seconds")
    for load in question.under_way:
        if not (0.0 <= load.seconds <= limits.LEASE_SECONDS_MAX and 0 <= load.received_bytes <= _RECEIVED_BYTES_MAX):
            raise InvalidRequest(
                f"under_way has {load.received_bytes} bytes in {load.seconds} s, must be 0 to {_RECEIVED_BYTES_MAX} "
                f"bytes in 0 to {limits.LEASE_SECONDS_MAX} s"
            )
    for item in question.losses:
        if not 0.0 <= item.loss <= _LOSS_MAX:
            raise InvalidRequest(f"loss of level {item.level} is {item.loss}, must be 0 to {_LOSS_MAX}")


def prompt_of(question: wire.PlanQuestion) -> Prompt:
    """The chunks asked about; keying tokens takes a while where they are many.

    Raises :class:`InvalidRequest` for neither keys nor tokens or both, :class:`TooManyItems` for too many chunks.
    """
    first, size = question.first_position, question.chunk_tokens
    if question.keys is not None and question.tokens is None and question.identity is None:
        keys = parse_keys(question.keys)
        ends = _ends(question, len(keys))
        starts = [first, *ends[:-1]]
        end = question.prompt_tokens if question.prompt_tokens is not None else max(ends, default=first)
        if keys and not starts[-1] < end <= limits.POSITION_MAX:
            raise InvalidRequest(
                f"{len(keys)} chunks of {starts[-1] - first} tokens and one more from {first} on do not begin within a "
                f"prompt of {end} tokens"
            )
        ends[-1:] = [min(end, ends[-1])] if keys else []
    elif question.keys is None and question.tokens is not None and question.identity is not None:
        if question.chunk_lengths:
            raise InvalidRequest("chunk_lengths are of keys; tokens are cut into chunks of chunk_tokens")
        refs = chunk_refs(question.identity, question.tokens, chunk_tokens=size)
        refs = [ref for ref in refs if ref.stop > first]
        keys, starts = [ref.key for ref in refs], [max(first, ref.start) for ref in refs]
        ends, end = [ref.stop for ref in refs], len(question.tokens)
    else:
        raise InvalidRequest("a plan is asked for with either keys, or identity and tokens")
    if not 1 <= len(keys) <= limits.PLAN_CHUNKS_MAX:
        raise TooManyItems(f"{len(keys)} chunks to plan, the limits are 1 and {limits.PLAN_CHUNKS_MAX}")
    named = {"done": question.done, "under_way": tuple(load.chunk for load in question.under_way)}
    for name, places in named.items():
        wrong = next((index for index in places if not 0 <= index < len(keys)), None)
        if wrong is not None:
            raise InvalidRequest(f"{name} names chunk {wrong} of {len(keys)}")
    return Prompt(keys, starts, [stop - start for start, stop in zip(starts, ends, strict=True)], end)


def _ends(question: wire.PlanQuestion, count: int) -> list[int]:
    """Where each of ``count`` chunks that are named by keys ends."""
    lengths = question.chunk_lengths or (question.chunk_tokens,) * count
    if len(lengths) != count:
        raise InvalidRequest(f"{len(lengths)} chunk_lengths for {count} keys, there must be one for each or none")
    wrong = next((length for length in lengths if not 1 <= length <= limits.CHUNK_TOKENS_MAX), None)
    if wrong is not None:
        raise InvalidRequest(f"chunk_lengths has {wrong}, must be 1 to {limits.CHUNK_TOKENS_MAX}")
    return list(accumulate(lengths, initial=question.first_position))[1:]


def request_of(
    question: wire.PlanQuestion, prompt: Prompt, offered: list[Offered | None], model: CostModel
) -> PlanRequest:
    """The question as what the planner takes, with a last chunk that is always computed: the end of the prompt."""
    losses: dict[Level, float] = LEVEL_LOSSES | {item.level: item.loss for item in question.losses}
    columns: dict[tuple[str, Level], int] = {}
    for offer in offered:
        for level, _ in offer.level_bytes if offer is not None else ():
            columns.setdefault((offer.link, level), len(columns)) if offer is not None else None
    shape = (len(offered) + 1, len(columns))
    size_bytes, decode, loss = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
    decoding = {level: model.decode_byte_seconds(question.engine, level.name) for _, level in columns}
    for row, offer in enumerate(offered):
        if offer is None:
            continue
        for level, length in offer.level_bytes:
            column = columns[offer.link, level]
            size_bytes[row, column] = length
            decode[row, column] = offer.kv_bytes * decoding[level]
            loss[row, column] = losses[level]
    end = prompt.starts[-1] + prompt.tokens[-1]
    request = PlanRequest(
        np.array([*prompt.tokens, max(1, prompt.end - end)], dtype=np.int64),
        np.array([*prompt.starts, end], dtype=np.int64),
        tuple(Way(link, level.name) for link, level in columns),
        size_bytes,
        decode,
        loss,
    )
    request.verify()
    return request


def objective_of(question: wire.PlanQuestion) -> Objective:
    """What is wanted of the plan; the floor is what its level loses where a question says no number."""
    losses = {item.level: item.loss for item in question.losses}
    loss_max = question.loss_max
    if loss_max is None:
        loss_max = losses.get(question.floor, LEVEL_LOSSES[question.floor])
    if question.goal is wire.PlanGoal.BEST_WITHIN and question.ttft_seconds is not None:
        return BestWithin(question.ttft_seconds, loss_max)
    return Fastest(loss_max)


def shape_of(blend: wire.BlendQuestion, *, side_by_side: bool) -> BlendShape:
    """How the request is blended."""
    return BlendShape(blend.layers, blend.whole_layers, blend.ratio_min, side_by_side)


def executor_of(question: wire.PlanQuestion) -> Executor:
    """What carries out the plan."""
    return Executor(question.ability, question.side_by_side, question.decoding_competes, question.step_tokens)


def progress_of(question: wire.PlanQuestion, request: PlanRequest) -> Progress | None:
    """How far the request is, or ``None`` where it has not begun.

    What is under way and no longer offered at that level, or anywhere, is taken for not begun.
    """
    if not (question.done or question.elapsed_seconds or question.under_way):
        return None
    count = len(request)
    done = np.zeros(count, dtype=np.bool_)
    done[list(question.done)] = True
    left_bytes, ways = np.zeros(count), np.full(count, -1, dtype=np.int16)
    for load in question.under_way:
        way = _way_of(load, request)
        if way is not None and not done[load.chunk]:
            ways[load.chunk] = way
            left_bytes[load.chunk] = max(0.0, float(request.size_bytes[load.chunk, way]) - load.received_bytes)
    return Progress(done, left_bytes, ways, elapsed_seconds=question.elapsed_seconds)


def seen_of(question: wire.PlanQuestion, request: PlanRequest) -> dict[str, float]:
    """Seconds per byte of each link, as loads under way over it have them; those of one link share it."""
    sums: dict[str, list[float]] = {}
    for load in question.under_way:
        way = _way_of(load, request)
        if way is not None:
            so_far = sums.setdefault(request.ways[way].link, [0.0, 0.0, 0.0])
            so_far[0] += float(request.size_bytes[load.chunk, way])
            so_far[1] += load.received_bytes
            so_far[2] = max(so_far[2], load.seconds)
    return {link: seen_byte_seconds(*found) for link, found in sums.items()}


def _way_of(load: wire.LoadUnderWay, request: PlanRequest) -> int | None:
    offered = np.isfinite(request.size_bytes[load.chunk])
    found = (at for at, way in enumerate(request.ways) if offered[at] and way.level == load.level.name)
    return next(found, None)
