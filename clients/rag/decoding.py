"""How an answer's tokens are chosen, one by one, and who is told of each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...blend.cache import KvCache
from ...errors import InvalidRequest

__all__ = ["GREEDY", "Decoding", "Sampler", "most_likely"]

TEMPERATURE_MAX = 2.0


def most_likely(logits: Tensor) -> int:
    """The token with the highest of ``logits`` ``[vocabulary]``."""
    return int(logits.argmax())


def _nobody(_token: int) -> None:
    """Nobody is told."""


class Sampler:
    """Draws tokens: ``temperature`` over 0 to 2, from the likeliest that make up ``top_p`` of the probability.

    The same seed draws the same tokens from the same logits. Not safe for use by two answers at once.
    """

    def __init__(self, *, temperature: float = 1.0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not (math.isfinite(temperature) and 0 < temperature <= TEMPERATURE_MAX):
            raise InvalidRequest(f"temperature is {temperature}, must be over 0 and up to {TEMPERATURE_MAX}")
        if not 0 < top_p <= 1:
            raise InvalidRequest(f"top_p is {top_p}, must be over 0 and up to 1")
        self._temperature, self._top_p = temperature, top_p
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed % 2**63)

    def __call__(self, logits: Tensor) -> int:
        """One token after ``logits`` ``[vocabulary]``."""
        probabilities = (logits.detach().double().cpu() / self._temperature).softmax(-1)
        ranked, tokens = probabilities.sort(descending=True)
        kept = ranked * (ranked.cumsum(-1) - ranked < self._top_p)  # the one that reaches top_p is among them
        return int(tokens[torch.multinomial(kept, 1, generator=self._generator)])


@dataclass(frozen=True, slots=True)
class Decoding:
    """``choose`` takes logits ``[vocabulary]`` to a token; ``on_token`` is told of each as soon as it is known.

    What ``on_token`` raises ends the answer and reaches whoever asked for it.
    """

    choose: Callable[[Tensor], int] = most_likely
    on_token: Callable[[int], None] = _nobody

    @classmethod
    def at(cls, temperature: float, *, top_p: float = 1.0, seed: int | None = None) -> "Decoding":
        """Greedy at temperature 0, else by a :class:`Sampler`; raises :class:`InvalidRequest`."""
        return cls(Sampler(temperature=temperature, top_p=top_p, seed=seed)) if temperature else GREEDY

    def go_on(self, model: Any, cache: KvCache, first: int, tokens_max: int) -> list[int]:
        """The answer that begins with ``first``: at most ``tokens_max`` tokens, up to one that ends the turn."""
        ends = model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        found = [first]
        self.on_token(first)
        while len(found) < tokens_max and found[-1] not in ends:
            found.append(self._next(model, cache, found[-1]))
            self.on_token(found[-1])
        return found

    @torch.inference_mode()
    def _next(self, model: Any, cache: KvCache, token: int) -> int:
        ids = torch.tensor([[token]], device=model.device)
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return self.choose(output.logits[0, -1])


GREEDY = Decoding()
