"""KV as bfloat16: what an engine keeps, and so what everything else is compared with."""

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np

from kvloom.codec import LayerLayout

from .base import HALF_BITS, Coded, FloatArray, LayerQuantiser


@dataclass(frozen=True, slots=True)
class Raw(LayerQuantiser):
    """Rounded to bfloat16, nothing else."""

    name: ClassVar[str] = "raw"

    @property
    def level(self) -> str:
        """The setting."""
        return "bf16"

    def code_keys(self, keys: FloatArray, layer: int, spec: LayerLayout, first_position: int) -> Coded:
        """One layer's keys."""
        return self._code(keys)

    def code_values(self, keys: FloatArray, values: FloatArray, layer: int, first_position: int) -> Coded:
        """One layer's values."""
        return self._code(values)

    @staticmethod
    def _code(heads: FloatArray) -> Coded:
        return Coded(heads.astype(ml_dtypes.bfloat16).astype(np.float32), HALF_BITS * heads.size, 0)
