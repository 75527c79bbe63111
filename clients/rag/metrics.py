"""What an answer cost: counted from what the pipeline reports and when its tokens came."""

from dataclasses import dataclass

from .advised import PlanPreview
from .pipeline import Answer

__all__ = ["AnswerMetrics"]


@dataclass(frozen=True, slots=True)
class AnswerMetrics:
    """One answer in numbers.

    ``waited_seconds`` passed until the model was free, ``ttft_seconds`` from then to the first token, ``total_seconds``
    to the last; ``tokens_per_second`` is of the tokens after the first. Of ``prompt_tokens``, ``loaded_tokens`` came
    from the daemon or a pool; ``missed_chunks`` were asked for in vain, ``resident_chunks`` lay decoded already.
    ``plan`` is what the daemon's planner expected, ``None`` where it was not asked or did not answer in time.
    """

    strategy: str
    prompt_tokens: int
    loaded_tokens: int
    answer_tokens: int
    loaded_chunks: int
    missed_chunks: int
    resident_chunks: int
    bytes_read: int
    recompute_ratio: float
    waited_seconds: float
    ttft_seconds: float
    total_seconds: float
    plan: PlanPreview | None = None

    @property
    def tokens_per_second(self) -> float:
        """How fast the answer went on after its first token; 0 where there was only one."""
        seconds = self.total_seconds - self.ttft_seconds
        return (self.answer_tokens - 1) / seconds if seconds > 0 else 0.0

    @classmethod
    def of(cls, answer: Answer, *, waited_seconds: float, total_seconds: float) -> "AnswerMetrics":
        """The numbers of ``answer``."""
        load = answer.load
        return cls(
            strategy=answer.strategy.value,
            prompt_tokens=answer.prompt_tokens,
            loaded_tokens=sum(place.ref.tokens for place in load.loaded) if load else 0,
            answer_tokens=len(answer.token_ids),
            loaded_chunks=len(load.loaded) if load else 0,
            missed_chunks=len(load.missed) if load else 0,
            resident_chunks=load.resident if load else 0,
            bytes_read=load.bytes_read if load else 0,
            recompute_ratio=answer.blend.recompute_ratio if answer.blend else 0.0,
            waited_seconds=waited_seconds,
            ttft_seconds=answer.ttft_seconds,
            total_seconds=total_seconds,
            plan=answer.plan,
        )
