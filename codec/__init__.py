"""The codec room: KV tensors to bytes and back, pure and in NumPy (with a C++ core where it was built).

>>> import numpy as np
>>> from kvloom import codec
>>> layout = codec.Layout.uniform(layers=2, kv_heads=1, head_dim=4)
>>> keys = values = np.ones((2, 1, 8, 4), dtype=np.float32)
>>> blob = codec.encode(keys, values, layout=layout)
>>> decoded_keys, decoded_values = codec.decode(blob)
>>> bool((decoded_keys == keys).all())
True
"""

from .calibrate import KvSample, calibrate
from .codec import ContainerInfo, decode, decode_into, encode, info, truncate
from .container import Container, ContainerHeader
from .layout import KvDtype, LayerLayout, Layout, Rope
from .level import DRAFT, EXACT, LOSSY_LEVELS, STANDARD, Level, parse_level
from .profile import Profile

__all__ = [
    "DRAFT",
    "EXACT",
    "LOSSY_LEVELS",
    "STANDARD",
    "Container",
    "ContainerHeader",
    "ContainerInfo",
    "KvDtype",
    "KvSample",
    "LayerLayout",
    "Layout",
    "Level",
    "Profile",
    "Rope",
    "calibrate",
    "decode",
    "decode_into",
    "encode",
    "info",
    "parse_level",
    "truncate",
]
