"""Small, readable comparison quantisers, one file each, to measure the codec against.

``python -m quantisers [KV.npz]`` in ``bench/`` shows what each makes of some KV and checks that it behaves.
"""

from collections.abc import Sequence

from kvloom.codec import KvSample, Layout
from kvloom.codec.cachegen import BIN_SCALES, CacheGenUnit, calibrate_cachegen

from .base import LayerQuantiser, Quantiser, Roundtrip
from .cachegen import CacheGen
from .gear import Gear
from .kivi import Kivi
from .kvquant import KvQuant
from .mikv import MiKv
from .raw import Raw
from .turboquant import TurboQuant
from .zipcache import ZipCache

__all__ = [
    "CacheGen",
    "Gear",
    "Kivi",
    "KvQuant",
    "LayerQuantiser",
    "MiKv",
    "Quantiser",
    "Raw",
    "Roundtrip",
    "TurboQuant",
    "ZipCache",
    "comparison_quantisers",
]


def comparison_quantisers(
    samples: Sequence[KvSample],
    layout: Layout,
    *,
    bin_scales: Sequence[float] = BIN_SCALES,
    unit: CacheGenUnit = CacheGenUnit.RAW,
) -> list[Quantiser]:
    """Every method at the settings of its paper, cheapest first; ``samples`` calibrate those that learn."""
    profile = calibrate_cachegen(samples, layout, bin_scales=bin_scales, unit=unit)
    return [
        *(CacheGen(profile, index) for index in range(len(bin_scales))),
        *(Kivi(bits) for bits in (2, 3, 4)),
        *(Kivi(bits, residual_tokens=128) for bits in (2, 3, 4)),
        *(KvQuant.calibrate(samples, layout, bits) for bits in (2, 3, 4)),
        *(Gear(bits) for bits in (2, 4)),
        *(ZipCache(share) for share in (0.2, 0.6)),
        *(MiKv(bits) for bits in (2, 3, 4)),
        *(TurboQuant(bits) for bits in (2, 3, 4)),
        Raw(),
    ]
