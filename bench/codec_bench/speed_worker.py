"""One implementation of the codec, or of the entropy coder, timed in a process of its own.

    python -m codec_bench.speed_worker CHUNK.npz CORES PATH

``PATH`` is ``auto``, ``reference`` or one of the compiled core's (``scalar``, ``avx2``, …) for the whole codec;
``cachegen`` for CacheGen as we have it; ``entropy`` for the entropy coder alone, on every path, and constriction's.
The file is :func:`codec_bench.speed.write_chunk`'s.
"""

import sys
import warnings
from functools import partial
from typing import Any

import numpy as np

from codec_bench.answering import Stage, answer, use_cores

PAPER_BINS = 1.0
"""The level of CacheGen that is timed has the paper's own bins."""


def force_path(name: str) -> None:
    """Make the compiled core take one path throughout (its plainest loops, compiled for every CPU, excepted)."""
    from kvloom.codec.entropy import native

    if name == "reference":
        native.AVAILABLE = False
        warnings.simplefilter("ignore", RuntimeWarning)  # which says that the reference is slow
    elif name != "auto":
        native.PATHS = native.PATHS[: native.PATHS.index(name) + 1]


def kvloom_stages(chunk: Any) -> dict[str, Stage]:
    """Whole encodes and decodes."""
    from kvloom import codec
    from kvloom.codec import KvDtype, Layout, Profile

    layout = Layout.from_bytes(chunk["layout"].tobytes())
    keys, values = chunk["keys"], chunk["values"]
    count, first_position = keys.size + values.size, int(chunk["first_position"])
    profiles = {"": Profile.from_bytes(chunk["profile"].tobytes()), " generic": codec.generic_profile(layout)}
    stages: dict[str, Stage] = {}
    for name, profile in profiles.items():
        encode = partial(codec.encode, keys, values, layout=layout, profile=profile, first_position=first_position)
        blob = encode()
        stages[f"encode lossy{name}"] = Stage(count, encode)
        for level in codec.info(blob).level_bytes:
            decode = partial(codec.decode, codec.truncate(blob, level), profile=profile, level=level)
            stages[f"decode {level}{name}"] = Stage(count, decode)
    for dtype in (KvDtype.FLOAT32, KvDtype.BFLOAT16):
        narrow = Layout(dtype, layout.layers)
        held = [np.ascontiguousarray(item.astype(dtype.numpy)) for item in (keys, values)]
        encode = partial(codec.encode, *held, layout=narrow, first_position=first_position, exact_packed=True)
        stages[f"encode exact {dtype.name.lower()}"] = Stage(count, encode)
        stages[f"decode exact {dtype.name.lower()}"] = Stage(count, partial(codec.decode, encode()))
    return stages


def cachegen_stages(chunk: Any) -> dict[str, Stage]:
    """Our CacheGen, which is constriction's range coder."""
    from kvloom.codec import Layout
    from kvloom.codec.cachegen import CacheGenProfile, decode_cachegen, encode_cachegen

    layout = Layout.from_bytes(chunk["layout"].tobytes())
    profile = CacheGenProfile.from_bytes(chunk["cachegen_profile"].tobytes())
    keys, values = chunk["keys"], chunk["values"]
    common = {"layout": layout, "profile": profile, "level": profile.bin_scales.index(PAPER_BINS)}
    encode = partial(encode_cachegen, list(keys), list(values), **common)  # type: ignore[arg-type]
    decode = partial(decode_cachegen, encode(), tokens=keys.shape[2], **common)  # type: ignore[arg-type]
    count = keys.size + values.size
    return {"encode": Stage(count, encode), "decode": Stage(count, decode)}


def entropy_stages() -> dict[str, Stage]:
    """The entropy coder alone, on drawn symbols: see ``bench/entropy.py``."""
    from entropy import CENTRES, constrictions, draw_jobs, ours

    stages: dict[str, Stage] = {}
    for name, centre in CENTRES.items():
        jobs, _ = draw_jobs(centre)
        for item in (*ours(jobs), *constrictions(jobs[0])):
            stages[f"{item.implementation}: entropy {item.stage}, {name}"] = Stage(item.symbols, item.work)
    return stages


def main() -> None:
    """Answer until the input ends."""
    file, cores, path = sys.argv[1:]
    use_cores(cores)
    if path == "entropy":
        answer(entropy_stages())
        return
    with np.load(file) as chunk:
        if path == "cachegen":
            answer(cachegen_stages(chunk))
            return
        force_path(path)
        answer(kvloom_stages(chunk))


if __name__ == "__main__":
    main()
