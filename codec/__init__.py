"""The codec room: KV tensors to bytes and back, pure and in NumPy (with a C++ core where it was built).

>>> import numpy as np
>>> from kvloom import codec
>>> layout = codec.Layout.uniform(layers=2, kv_heads=1, head_dim=4)
>>> keys = values = np.ones((2, 1, 8, 4), dtype=np.float32)
>>> blob = codec.encode(keys, values, layout=layout)
>>> decoded_keys, decoded_values = codec.decode(blob)
>>> bool((decoded_keys == keys).all())
True

Names are loaded when first used: a client that only moves containers loads no NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cachegen import CacheGenProfile, calibrate_cachegen
    from .calibration import KvGradient, KvSample, calibrate
    from .codec import ContainerInfo, decode, decode_into, encode, info, truncate
    from .container import Container, ContainerHeader
    from .generic import generic_profile
    from .layout import KeyCoding, Kind, KvDtype, LayerLayout, Layout, Rope
    from .level import DRAFT, ECONOMY, EXACT, FINE, LOSSY_LEVELS, STANDARD, Level, LossyCodec, parse_level
    from .profile import Profile
    from .profiles import AnyProfile, parse_profile
    from .views import exact_views

__all__ = [
    "DRAFT",
    "ECONOMY",
    "EXACT",
    "FINE",
    "LOSSY_LEVELS",
    "STANDARD",
    "AnyProfile",
    "CacheGenProfile",
    "Container",
    "ContainerHeader",
    "ContainerInfo",
    "KeyCoding",
    "Kind",
    "KvDtype",
    "KvGradient",
    "KvSample",
    "LayerLayout",
    "Layout",
    "Level",
    "LossyCodec",
    "Profile",
    "Rope",
    "calibrate",
    "calibrate_cachegen",
    "decode",
    "decode_into",
    "encode",
    "exact_views",
    "generic_profile",
    "info",
    "parse_level",
    "parse_profile",
    "truncate",
]

_HOMES = {
    "cachegen": ("CacheGenProfile", "calibrate_cachegen"),
    "calibration": ("KvGradient", "KvSample", "calibrate"),
    "codec": ("ContainerInfo", "decode", "decode_into", "encode", "info", "truncate"),
    "container": ("Container", "ContainerHeader"),
    "generic": ("generic_profile",),
    "layout": ("KeyCoding", "Kind", "KvDtype", "LayerLayout", "Layout", "Rope"),
    "level": ("DRAFT", "ECONOMY", "EXACT", "FINE", "LOSSY_LEVELS", "STANDARD", "Level", "LossyCodec", "parse_level"),
    "profile": ("Profile",),
    "profiles": ("AnyProfile", "parse_profile"),
    "views": ("exact_views",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
