"""The engines and levels that are simulated, with where each figure is from. Pure."""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ....errors import ConfigError
from ..outlook import PrefillCost

__all__ = ["ENGINES", "EngineFigures", "LevelFigures", "engine_figures"]


@dataclass(frozen=True, slots=True)
class LevelFigures:
    """One way to hold KV: its size, how fast it is decoded, and what it loses (KL in nats per token)."""

    name: str
    bits_per_value: float
    decode_values_per_s: float
    loss: float


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """A model on a machine, and an objective for its time to first token."""

    name: str
    prefill: PrefillCost
    values_per_token: int
    levels: tuple[LevelFigures, ...]
    """From coarse to fine; the last is what the engine holds, as it is."""
    decoding_competes: bool
    step_tokens: int
    """The most tokens that the engine prefills in one go."""
    slo_s: float

    def level(self, name: str) -> LevelFigures:
        """The one called ``name``; :class:`ConfigError` names those there are."""
        for level in self.levels:
            if level.name == name:
                return level
        raise ConfigError(f"level {name[:40]!r} is not one of {', '.join(level.name for level in self.levels)}")


def _levels(decode_values_per_s: tuple[float, ...], raw_bits: int) -> tuple[LevelFigures, ...]:
    """Sizes and losses are those of ``kvloom`` in docs/measurements/codec_smollm2.json, the mean of three texts."""
    measured = (
        ("draft", 0.370, 0.0866),
        ("economy", 0.701, 0.0197),
        ("standard", 1.244, 0.00386),
        ("fine", 2.151, 0.00107),
    )
    lossy = (
        LevelFigures(name, bits, rate, loss)
        for (name, bits, loss), rate in zip(measured, decode_values_per_s, strict=True)
    )
    return (*lossy, LevelFigures("raw", raw_bits, math.inf, 0.0))


_SMOLLM2: Final = EngineFigures(
    name="smollm2-cpu",
    # docs/measurements/prefill_smollm2.json (bench/prefill.py): one thread, float32.
    prefill=PrefillCost(token_seconds=2.35e-3, token_context_seconds=1.38e-6, call_seconds=0.103),
    values_per_token=30 * 2 * 3 * 64,
    # docs/measurements/codec_speed.json, avx512, 1 core.
    levels=_levels((0.213e9, 0.153e9, 0.110e9, 0.077e9), raw_bits=32),
    decoding_competes=True,
    step_tokens=512,
    slo_s=10.0,
)
_LLAMA3: Final = EngineFigures(
    name="llama3-8b-h100",
    # 16.06 GFLOP a token and 0.524 MFLOP per token of context at half of the 989 TFLOP/s (dense BF16) that NVIDIA's
    # data sheet gives for an H100 SXM: what bench/eviction.py reckons with. 2 ms per call are an assumption.
    prefill=PrefillCost(token_seconds=3.244e-5, token_context_seconds=1.059e-9, call_seconds=2e-3),
    values_per_token=32 * 2 * 8 * 128,
    # 40 Gvalue/s is docs/GPU.md's target for a whole decode on this GPU, not a measurement.
    levels=_levels((4e10, 4e10, 4e10, 4e10), raw_bits=16),
    decoding_competes=True,
    step_tokens=1024,
    slo_s=1.0,
)

ENGINES: Final = MappingProxyType[str, EngineFigures]({figures.name: figures for figures in (_LLAMA3, _SMOLLM2)})


def engine_figures(name: str) -> EngineFigures:
    """The engine called ``name``; :class:`ConfigError` names those there are."""
    figures = ENGINES.get(name)
    if figures is None:
        raise ConfigError(f"engine {name[:40]!r} is not one of {', '.join(ENGINES)}")
    return figures
