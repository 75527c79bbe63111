"""The kernels' own source, compiled for the CPU: what runs on a GPU runs here, warp by warp, and is checked."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from numpy.typing import NDArray

from kvloom import codec
from kvloom.codec import LOSSY_LEVELS, Container, Kind, KvDtype, LayerLayout, Layout, Profile, Rope
from kvloom.codec.channels import Angles, gather_channels, rooms_of
from kvloom.codec.container import ContainerWriter
from kvloom.codec.cuda import jobs
from kvloom.codec.cuda.device import KERNELS, SOURCE
from kvloom.codec.lossy import quantise_blocks, restore
from kvloom.codec.profile import Block, Part, block_range, block_ranges, block_width
from kvloom.codec.segment_reader import decode_blocks
from kvloom.codec.segment_writer import encode_blocks

JOBS = {
    "kvl_decode": jobs.DECODE,
    "kvl_synthesise": jobs.SYNTHESIS,
    "kvl_scatter": jobs.PAGES,
    "kvl_gather": jobs.PAGES,
    "kvl_quantise": jobs.QUANTISE,
    "kvl_encode": jobs.ENCODE,
}
FLAGS = ("-x", "c++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-ffp-contract=off")


class HostDevice:
    """A device whose memory is the host's and whose warps are loops."""

    def __init__(self, library: Path) -> None:
        self.xp: Any = np
        self.memo: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self.jobs = JOBS
        self.library = ctypes.CDLL(str(library))
        for name in KERNELS:
            getattr(self.library, name).argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64]
            getattr(self.library, name).restype = None

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def upload(self, array: NDArray[Any]) -> Any:
        return np.array(array, order="C")

    def download(self, array: Any) -> NDArray[Any]:
        return np.array(array)

    def run(self, kernel: str, jobs: int, across: int, blocks: int) -> None:
        getattr(self.library, kernel)(jobs, across, blocks)


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostDevice:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here: the kernels cannot be built for the CPU")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(library)], check=True)
    return HostDevice(library)


HEADS, HEAD_DIM, LAYERS = 2, 24, 3


@pytest.fixture(scope="session")
def layout() -> Layout:
    """Two layers of half-split RoPE, one whose keys rotate in part and interleaved, with narrower values."""
    plain = Rope(tuple(10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))))
    partial = Rope((1.0, 0.3, 0.02), interleaved=True, first_dim=5)
    layer = LayerLayout(HEADS, HEAD_DIM, plain)
    return Layout(KvDtype.FLOAT32, (layer, layer, LayerLayout(HEADS, HEAD_DIM, partial, value_head_dim=16)))


@pytest.fixture(scope="session")
def profile(layout: Layout) -> Profile:
    """Blocks of two layers and of one; parts with and without a basis, and one that every chunk centres itself."""
    rng = np.random.default_rng(3)
    blocks = []
    for start in (0, 2):
        width = block_width(layout, block_range(layout, start, 2))
        ends = [0, 40, 41, width - 20, width]
        parts = []
        for index, (at, end) in enumerate(pairwise(ends)):
            own = end - at
            mean, origin = rng.normal(size=(2, own)).astype(np.float32)
            basis = None
            if index in (0, 2):
                turned = np.linalg.qr(rng.normal(size=(own, own)))[0]
                basis = np.ascontiguousarray(np.rint(turned / np.abs(turned).max(axis=0) * 127).T).astype(np.int8)
            adaptive = index == 3
            scale = np.full(own, 0.4 if adaptive else 0.004 if basis is not None else 0.2, np.float32)
            parts.append(Part(at, mean, origin, scale, basis, np.full(own, 40, np.uint8), adaptive))
        blocks.append(Block(tuple(parts), (rng.normal(size=width) * 0.2).astype(np.float32), 0.7))
    return Profile(layout, 2, 3, tuple(blocks))


@dataclass(frozen=True)
class Kv:
    """A chunk as arrays per layer ``[kv_heads, tokens, head_dim]``."""

    keys: list[NDArray[Any]]
    values: list[NDArray[Any]]


@pytest.fixture(scope="session")
def draw_kv(layout: Layout) -> Callable[..., Kv]:
    """KV in which some tokens stand out so far that their symbols escape."""

    def draw(tokens: int, seed: int, *, loud: float = 3000.0) -> Kv:
        rng = np.random.default_rng(seed)
        size = np.exp(-np.arange(HEAD_DIM) / 6).astype(np.float32) * 4
        factor = np.where(rng.random(tokens) < 0.06, loud, 1.0).astype(np.float32)[None, :, None]
        return Kv(
            *(
                [
                    rng.laplace(size=(HEADS, tokens, spec.head_dim_of(kind))).astype(np.float32)
                    * size[: spec.head_dim_of(kind)]
                    * factor
                    for spec in layout.layers
                ]
                for kind in Kind
            )
        )

    return draw


@dataclass(frozen=True)
class Reference:
    """The codec in NumPy alone, with the profile given and no other."""

    layout: Layout

    def encode(self, kv: Kv, profile: Profile, *, first_position: int = 0, content_key: bytes = bytes(32)) -> bytes:
        angles = Angles(first_position, kv.keys[0].shape[1])
        blocks = block_ranges(self.layout, profile.block_layers)
        channels = [gather_channels(kv.keys, kv.values, self.layout, layers, angles) for layers in blocks]
        symbols = quantise_blocks(profile, channels, first_position=first_position)
        writer = ContainerWriter(
            self.layout,
            tokens=kv.keys[0].shape[1],
            first_position=first_position,
            block_layers=profile.block_layers,
            content_key=content_key,
            profile_digest=profile.digest,
        )
        coded = encode_blocks(profile.blocks, symbols, profile.refinements)
        for start, payloads in zip((block.start for block in blocks), coded, strict=True):
            for level, payload in zip(LOSSY_LEVELS, payloads, strict=False):
                writer.put(level, start, None, payload)
        return writer.commit()

    def decode(
        self, container: Container, profile: Profile, *, level: str = "fine", first_position: int | None = None
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        header = container.header
        angles = Angles(header.first_position if first_position is None else first_position, header.tokens)
        shapes = [[(s.kv_heads, header.tokens, s.head_dim_of(kind)) for s in self.layout.layers] for kind in Kind]
        keys, values = ([np.empty(shape, np.float32) for shape in own] for own in shapes)
        places = {(i, kind): (keys, values)[kind][i] for i in range(len(keys)) for kind in Kind}
        depth = codec.parse_level(level).code + 1
        starts = range(0, len(keys), profile.block_layers)
        payloads = [[container.segment(item, start) for item in LOSSY_LEVELS[:depth]] for start in starts]
        decoded = decode_blocks(profile.blocks, payloads, tokens=header.tokens, refinements=profile.refinements)
        for start, block, item in zip(starts, profile.blocks, decoded, strict=True):
            channels = restore(block, item, profile.refinements + 1 - depth, header.first_position)
            for room in rooms_of(self.layout, block_range(self.layout, start, profile.block_layers), angles, places):
                room.fill(channels)
        return keys, values


@pytest.fixture(scope="session")
def reference(layout: Layout) -> Reference:
    return Reference(layout)
