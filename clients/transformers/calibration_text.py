"""Cut text into the sequences that a codec is calibrated on: all of one length, spread over what there is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidRequest

__all__ = ["cut_sequences", "opening_tokens"]


def opening_tokens(tokenizer: Any) -> NDArray[np.int64]:
    """The token ids ``[n]`` that ``tokenizer`` puts before every text: a BOS token, or none.

    A model that has learnt to begin with one keeps its attention sink there, and has odd KV without.
    """
    whole, plain = (
        list(tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"]) for special in (True, False)
    )
    before = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
    return np.array(whole[:before], dtype=np.int64)


def cut_sequences(
    texts: Sequence[NDArray[np.int64]],
    *,
    tokens: int,
    sequences_max: int,
    opening: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """At most ``sequences_max`` sequences of just ``tokens`` ids ``[tokens]``, each beginning with ``opening``.

    They do not overlap, are as many of each of the ``texts`` (token ids ``[n]``) as it has, as evenly as that can be,
    and stand at equal distances in it. Texts that are shorter than a sequence are joined. Raises
    :class:`InvalidRequest` where there is not one sequence.
    """
    before = np.empty(0, np.int64) if opening is None else opening
    body = tokens - len(before)
    if body < 1 or sequences_max < 1:
        raise InvalidRequest(
            f"{sequences_max} sequences of {tokens} tokens, {len(before)} of them given, cannot be cut"
        )
    sources = [text for text in texts if len(text) >= body]
    short = [text for text in texts if len(text) < body]
    if short and sum(map(len, short)) >= body:
        sources.append(np.concatenate(short))
    if not sources:
        raise InvalidRequest(f"the text has {sum(map(len, texts))} tokens, at least {body} are needed for one sequence")
    found: list[NDArray[np.int64]] = []
    for source, count in zip(sources, _shares([len(item) // body for item in sources], sequences_max), strict=True):
        starts = np.linspace(0, len(source) - body, count).astype(np.int64)
        found.extend(np.concatenate([before, source[start : start + body]]) for start in starts)
    return found


def _shares(room: Sequence[int], total: int) -> list[int]:
    """``total`` dealt out one by one to those that have room left: at most ``room`` each, as evenly as possible."""
    shares = [0] * len(room)
    while total > 0:
        open_ones = [index for index, most in enumerate(room) if shares[index] < most]
        if not open_ones:
            break
        for index in open_ones[:total]:
            shares[index] += 1
        total -= len(open_ones)
    return shares
