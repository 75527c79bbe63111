"""Workloads from what others recorded: Mooncake, Azure, and retrieved passages. Pure: it takes lines, not files."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np

from .... import limits
from ....errors import InvalidData
from .workload import Workload, WorkloadBuilder

__all__ = ["azure", "mooncake", "retrieval"]

_MOONCAKE_BLOCK_TOKENS: Final = 512
_CHARACTERS_PER_TOKEN: Final = 4
_SYSTEM_TOKENS: Final = 256
_PASSAGES_MIN: Final = 4
_ZIPF: Final = 0.8


def mooncake(name: str, lines: Iterable[str]) -> Workload:
    """A trace of Mooncake (FAST '25): ``timestamp`` in ms, ``input_length``, ``hash_ids`` of blocks of 512 tokens."""
    builder = WorkloadBuilder(name)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            names, length, moment = row["hash_ids"], int(row["input_length"]), row["timestamp"] / 1e3
            cuts = [min(_MOONCAKE_BLOCK_TOKENS, length - place * _MOONCAKE_BLOCK_TOKENS) for place in range(len(names))]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidData(f"row {number} of trace {name} is {line[:60]!r}, not one of Mooncake's") from error
        builder.add(moment, names, cuts)
    return builder.build()


def azure(name: str, lines: Iterable[str]) -> Workload:
    """A trace of Azure (2023): ``TIMESTAMP,ContextTokens,GeneratedTokens``; nothing in it says what prompts share."""
    builder = WorkloadBuilder(name)
    for number, line in enumerate(lines, start=1):
        if number == 1 or not line.strip():
            continue
        try:
            stamp, context, _ = line.strip().split(",")
            moment, length = datetime.fromisoformat(stamp[:26]).timestamp(), int(context)
        except ValueError as error:
            raise InvalidData(f"row {number} of trace {name} is {line[:60]!r}, not one of Azure's") from error
        cuts = _cut(length, limits.CHUNK_TOKENS_DEFAULT)
        builder.add(moment, [(number, place) for place in range(len(cuts))], cuts)
    return builder.build()


def retrieval(
    name: str, questions: Sequence[Sequence[str]], *, requests: int, per_second: float, seed: int
) -> Workload:
    """Questions over shuffled passages, arriving at random (Poisson), in chunks of 256 tokens.

    ``questions``: the passages of each. A prompt is a system prompt, passages and a question. Popular questions come
    more often (Zipf, exponent 0.8); each time from four to all of its passages are there, half of the time in their
    order and shuffled otherwise. Every second prompt asks on, after 40 others in the mean: the whole prompt, an answer
    and another question. Four characters count as a token. A chunk is found again only behind the same prefix.
    """
    if not questions or min(len(passages) for passages in questions) < _PASSAGES_MIN:
        raise InvalidData(f"retrieval needs questions with at least {_PASSAGES_MIN} passages each")
    source = np.random.default_rng(seed)
    weights = np.arange(1, len(questions) + 1) ** -_ZIPF
    popular = source.permutation(len(questions))
    arrivals = np.cumsum(source.exponential(1.0 / per_second, requests))
    waiting: dict[int, list[list[tuple[object, int]]]] = {}
    builder = WorkloadBuilder(name)
    for turn in range(requests):
        due = waiting.pop(turn, [])
        if due:
            parts = due[0]
            waiting.setdefault(turn + 1, []).extend(due[1:])
        else:
            question = int(popular[source.choice(len(questions), p=weights / weights.sum())])
            passages = questions[question]
            order = np.arange(source.integers(_PASSAGES_MIN, len(passages) + 1))
            if source.random() < 0.5:
                source.shuffle(order)
            chosen: list[int] = order.tolist()
            parts = [("system", _SYSTEM_TOKENS)]
            parts += [((question, item), -(-len(passages[item]) // _CHARACTERS_PER_TOKEN)) for item in chosen]
        parts = [*parts, (("question", turn), int(source.integers(10, 100)))]
        names, cuts = _chunks(parts)
        builder.add(float(arrivals[turn]), names, cuts)
        if source.random() < 0.5:
            answer = (("answer", turn), int(source.integers(25, 400)))
            later = turn + 1 + int(source.exponential(40.0))
            waiting.setdefault(later, []).append([*parts, answer])
    return builder.build()


def _chunks(parts: Sequence[tuple[object, int]]) -> tuple[list[object], list[int]]:
    """Text of named parts, cut into chunks: each is named by its parts and by where in the first of them it begins."""
    names: list[object] = []
    cuts = _cut(sum(length for _, length in parts), limits.CHUNK_TOKENS_DEFAULT)
    part, offset = 0, 0
    for cut in cuts:
        held: list[object] = [offset]
        left = cut
        while left:
            here = min(left, parts[part][1] - offset)
            held.append(parts[part][0])
            left -= here
            offset += here
            if offset == parts[part][1]:
                part, offset = part + 1, 0
        names.append(tuple(held))
    return names, cuts


def _cut(length: int, size: int) -> list[int]:
    """``length`` in pieces of ``size`` and a rest."""
    whole, rest = divmod(length, size)
    return [size] * whole + ([rest] if rest else [])
