"""Measure the lossy levels on a GPU: entropy decode, whole decode into paged KV, encode, at Llama-3-8B's layout.

    python bench/codec_gpu.py --json codec_gpu.json

First one chunk is checked against the CPU: symbols and bytes must be the same, tensors the same but for rounding to the
pages' dtype. Then everything is measured on ``--chunks`` chunks of 256 tokens, best of ``--rounds`` rounds, with the
bandwidth of a device copy in the same run, and nvCOMP's ANS on the same symbols where ``nvidia-nvcomp`` is installed.

The profile is made up: one random orthogonal basis of 1,024 channels for every tensor, coefficients Laplace distributed
with scales that fall as calibrated ones do. ``kernels`` is the time on the GPU alone; ``wall`` is what a caller waits,
the host's parsing and copying of the bytes included. A value is one number of the KV, whatever it took to code it.
"""

import argparse
import importlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvloom.codec import LOSSY_LEVELS, Container, KvDtype, Layout, Profile, Rope
from kvloom.codec.container import ContainerWriter
from kvloom.codec.cuda.decoder import Batch, Chunk
from kvloom.codec.cuda.device import CupyDevice, Device, Staging
from kvloom.codec.cuda.resident import resident
from kvloom.codec.cuda.streams import Stream, code_streams
from kvloom.codec.entropy import encode_streams
from kvloom.codec.gpu import PagedKv, decode_into_pages, encode_from_pages
from kvloom.codec.lossy import restore
from kvloom.codec.profile import Block, Part
from kvloom.codec.quantise import Symbols, quantise, symbols_of
from kvloom.codec.segment import BlockSymbols, joined_symbols
from kvloom.codec.segment_reader import decode_blocks
from kvloom.codec.segment_writer import encode_blocks, plan_segments

TOKENS, BLOCK_SIZE, REFINEMENTS = 256, 16, 3
LOUD_SHARE = 0.01
"""Tokens of a gain above zero, as sinks and separators have."""


@dataclass(frozen=True)
class Row:
    """One figure. ``milliseconds`` is the best round's."""

    stage: str
    level: str
    clock: str
    milliseconds: float
    gvalues_per_s: float


def make_layout(layers: int, heads: int, head_dim: int) -> Layout:
    rope = Rope(tuple(float(f) for f in 500_000.0 ** (-np.arange(head_dim // 2) / (head_dim // 2))))
    return Layout.uniform(layers=layers, kv_heads=heads, head_dim=head_dim, dtype=KvDtype.BFLOAT16, rope=rope)


def row_scales(width: int) -> NDArray[np.float64]:
    """Mean magnitude of each coefficient in fine steps: some tens of the strongest are large, most are below one."""
    place = np.arange(width) / width
    return 40.0 * np.exp(-6.0 * place**0.6)


def make_profile(layout: Layout, seed: int = 0) -> Profile:
    rng = np.random.default_rng(seed)
    width = layout.layers[0].key_width
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
    peak = np.abs(turned).max(axis=0)
    basis = np.ascontiguousarray(np.rint(turned / peak * 127).T).astype(np.int8)
    scale = (0.02 * peak / 127).astype(np.float32)
    classes = np.clip(np.rint(6 * np.log2(row_scales(width) / 0.08)), 0, 81).astype(np.uint8)
    blocks = []
    for _ in layout.layers:
        mean = rng.normal(size=(2, width)).astype(np.float32) * 0.1
        parts = tuple(Part(i * width, mean[i], mean[i] + 1, scale, basis, classes) for i in range(2))
        blocks.append(Block(parts, np.zeros(0, np.float32), 0.0))
    return Profile(layout, 1, REFINEMENTS, tuple(blocks))


def draw_symbols(profile: Profile, seed: int) -> list[BlockSymbols]:
    """Finest symbols of one chunk."""
    rng = np.random.default_rng(seed)
    coded = []
    for block in profile.blocks:
        gains = np.where(rng.random(TOKENS) < LOUD_SHARE, 8, 0).astype(np.uint8)
        drawn = [
            rng.laplace(size=(part.width, TOKENS)).astype(np.float32)
            * row_scales(part.width).astype(np.float32)[:, None]
            for part in block.parts
        ]
        classes = tuple(part.classes for part in block.parts)
        coded.append(BlockSymbols(tuple(symbols_of(drawn, gains, REFINEMENTS)), gains, classes))
    return coded


def fine_of(part: Symbols) -> NDArray[np.int32]:
    """The finest symbols as numbers."""
    return quantise(part.coefficients, part.gains)


def make_container(profile: Profile, payloads: list[list[bytes]], position: int) -> Container:
    writer = ContainerWriter(
        profile.layout,
        tokens=TOKENS,
        first_position=position,
        block_layers=profile.block_layers,
        profile_digest=profile.digest,
    )
    for index, levels in enumerate(payloads):
        for level, payload in zip(LOSSY_LEVELS, levels, strict=True):
            writer.put(level, index, None, payload)
    return Container.parse(writer.commit())


def make_pages(device: Device, layout: Layout, tokens: int, dtype: type[np.generic]) -> PagedKv:
    spec = layout.layers[0]
    shape = (len(layout.layers), 2, tokens // BLOCK_SIZE, BLOCK_SIZE, spec.kv_heads, spec.head_dim)
    whole = device.xp.zeros(shape, dtype)
    return PagedKv([layer[0] for layer in whole], [layer[1] for layer in whole])


def check(device: Device, profile: Profile, coded: list[BlockSymbols], payloads: list[list[bytes]]) -> None:
    """One chunk against the CPU; raises AssertionError where anything differs."""
    container = make_container(profile, payloads, 0)
    for depth in range(1, REFINEMENTS + 2):
        batch = Batch(device, profile, [Chunk(container, 0, 0)], depth)
        batch.decode_symbols()
        batch.synthesise()
        batch.check()
        segments = [[container.segment(level, i) for level in LOSSY_LEVELS[:depth]] for i in range(len(payloads))]
        decoded = decode_blocks(profile.blocks, segments, tokens=TOKENS, refinements=REFINEMENTS)
        expected = [joined_symbols(item, part).reshape(-1) for item in decoded for part in range(2)]
        symbols = device.download(batch.symbols)
        assert np.array_equal(symbols[: sum(map(len, expected))], np.concatenate(expected)), f"symbols, {depth} levels"
        channels = restore(profile.blocks[0], decoded[0], REFINEMENTS + 1 - depth, 0)
        found = device.download(batch.channels[: channels.size]).reshape(channels.shape)
        assert np.array_equal(found, channels), f"channels, {depth} levels"
    streams = []
    held = []
    for block, item in zip(profile.blocks, coded, strict=True):
        plans = plan_segments(block, item, [part.peaks for part in item.parts], REFINEMENTS)
        symbols, gains = (
            device.upload(np.concatenate([fine_of(part) for part in item.parts])),
            device.upload(item.gains),
        )
        held += [symbols, gains]
        for level, plan in enumerate(plans):
            left = REFINEMENTS - level
            tables = device.address(resident(device, profile).encoder_tables(left))
            starts = [part.start for part in block.parts]
            streams.append(
                Stream(plan, level, left, starts, TOKENS, device.address(symbols), device.address(gains), tables)
            )
    coded_streams = code_streams(device, Staging(), streams)
    found_payloads = [
        item.plan.payload(encode_streams([item.plan.side])[0] if item.plan.side.symbols.size else b"", *own)
        for item, own in zip(streams, coded_streams, strict=True)
    ]
    assert found_payloads == [payload for levels in payloads for payload in levels], "encoded bytes"


class TimedDevice(CupyDevice):
    """Notes how long each kernel took on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[str, Any, Any]] = []

    def run(self, kernel: str, jobs: int, across: int, blocks: int) -> None:
        """As :meth:`Device.run`."""
        before, after = self.xp.cuda.Event(), self.xp.cuda.Event()
        before.record()
        super().run(kernel, jobs, across, blocks)
        after.record()
        self._events.append((kernel, before, after))

    def take(self) -> dict[str, float]:
        """Milliseconds of each kernel since the last call."""
        self.xp.cuda.get_current_stream().synchronize()
        spent: dict[str, float] = defaultdict(float)
        for kernel, before, after in self._events:
            spent[kernel] += self.xp.cuda.get_elapsed_time(before, after)
        self._events.clear()
        return dict(spent)


def measure(device: TimedDevice, rounds: int, work: Callable[[], object]) -> tuple[dict[str, float], float]:
    """The best round's milliseconds of each kernel, and of the wall clock; one round beforehand warms up."""
    kernels: dict[str, float] = {}
    wall = float("inf")
    for index in range(rounds + 1):
        started = time.perf_counter()
        work()
        device.xp.cuda.get_current_stream().synchronize()
        seconds = time.perf_counter() - started
        spent = device.take()
        if index:
            wall = min(wall, 1e3 * seconds)
            kernels = {name: min(value, kernels.get(name, float("inf"))) for name, value in spent.items()}
    return kernels, wall


def copy_bandwidth(device: TimedDevice, rounds: int) -> dict[str, float]:
    """Gbyte/s of a copy on the device (bytes read and written), and from pinned host memory to it."""
    xp, size = device.xp, 1 << 30
    source, target = xp.zeros(size, np.uint8), xp.empty(size, np.uint8)
    pinned = np.frombuffer(xp.cuda.alloc_pinned_memory(size), np.uint8, size)
    best = {"device": float("inf"), "host to device": float("inf")}
    for _ in range(rounds + 1):
        for name, work in (
            ("device", lambda: target.data.copy_from_device_async(source.data, size)),
            ("host to device", lambda: target.set(pinned)),
        ):
            before, after = xp.cuda.Event(), xp.cuda.Event()
            before.record()
            work()
            after.record()
            after.synchronize()
            best[name] = min(best[name], xp.cuda.get_elapsed_time(before, after))
    return {"device": 2 * size / best["device"] / 1e6, "host to device": size / best["host to device"] / 1e6}


def nvcomp_ans(device: TimedDevice, symbols: NDArray[np.uint8], rounds: int) -> list[Row]:
    """NVIDIA's ANS on the base symbols of the chunks as bytes; nothing where it is not installed."""
    try:
        nvcomp = importlib.import_module("nvidia.nvcomp")
    except ImportError:
        print("nvCOMP is not installed here: its ANS is not measured")
        return []
    coder = nvcomp.Codec(algorithm="ANS")
    data = nvcomp.as_array(device.xp.asarray(symbols))
    packed = coder.encode(data)
    print(f"nvCOMP ANS: {8 * packed.size / len(symbols):.3f} bits per base symbol")
    rows = []
    for stage, work in (
        ("nvCOMP ANS encode", lambda: coder.encode(data)),
        ("nvCOMP ANS decode", lambda: coder.decode(packed)),
    ):
        _, wall = measure(device, rounds, work)
        rows.append(Row(stage, "draft", "wall", wall, len(symbols) / wall / 1e6))
    return rows


def speeds(device: TimedDevice, profile: Profile, containers: list[Container], rounds: int) -> list[Row]:
    values = profile.layout.values_per_token * TOKENS * len(containers)
    table = np.random.default_rng(0).permutation(TOKENS * len(containers) // BLOCK_SIZE)
    pages = make_pages(device, profile.layout, TOKENS * len(containers), np.float16)
    rows: list[Row] = []

    def note(stage: str, level: str, clock: str, milliseconds: float) -> None:
        rows.append(Row(stage, level, clock, milliseconds, values / milliseconds / 1e6))

    for level in ("draft", "economy", "standard", "fine"):
        kernels, wall = measure(
            device,
            rounds,
            lambda level=level: decode_into_pages(containers, profile, pages, table, level=level, device=device),
        )
        note("entropy decode", level, "kernels", kernels["kvl_decode"])
        note("synthesis", level, "kernels", kernels["kvl_synthesise"])
        note("scatter", level, "kernels", kernels["kvl_scatter"])
        note("decode", level, "kernels", sum(kernels.values()))
        note("decode", level, "wall", wall)
    lengths = [TOKENS] * len(containers)
    kernels, wall = measure(
        device, rounds, lambda: encode_from_pages(pages, table, profile=profile, lengths=lengths, device=device)
    )
    for name, stage in (("kvl_gather", "gather"), ("kvl_quantise", "quantise"), ("kvl_encode", "entropy encode")):
        note(stage, "fine", "kernels", kernels[name])
    note("encode", "fine", "wall", wall)
    width = profile.blocks[0].parts[0].width
    square, tall = (device.xp.ones((width, n), np.float32) for n in (width, TOKENS * len(containers)))
    products = 2 * len(profile.blocks)
    _, wall = measure(device, rounds, lambda: [device.xp.matmul(square, tall) for _ in range(products)])
    note("analysis product alone", "fine", "wall", wall)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--distinct", type=int, default=2, help="chunks that are drawn; the others repeat them")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = TimedDevice()
    name = device.xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    layout = make_layout(options.layers, 8, 128)
    profile = make_profile(layout)
    drawn = [draw_symbols(profile, seed) for seed in range(min(options.distinct, options.chunks))]
    payloads = [encode_blocks(profile.blocks, item, REFINEMENTS) for item in drawn]
    check(device, profile, drawn[0], payloads[0])
    print(f"{name}: symbols, channels and bytes are the CPU's")
    containers = [make_container(profile, payloads[i % len(drawn)], TOKENS * i) for i in range(options.chunks)]
    values = layout.values_per_token * TOKENS
    bits = {str(level): 8 * len(containers[0].truncate(level)) / values for level in LOSSY_LEVELS}
    copies = copy_bandwidth(device, options.rounds)
    rows = speeds(device, profile, containers, options.rounds)
    base = np.concatenate([part.levels[0].reshape(-1) for item in drawn[0] for part in item.parts])
    rows += nvcomp_ans(device, np.tile(base, max(1, options.chunks // 4)), options.rounds)
    print(f"{options.chunks} chunks of {TOKENS} tokens; bits per value: {bits}")
    print("copy bandwidth, Gbyte/s: " + ", ".join(f"{key} {value:.0f}" for key, value in copies.items()))
    print(f"{'stage':24} {'level':9} {'clock':8} {'ms':>9} {'Gvalue/s':>9}")
    for row in rows:
        print(f"{row.stage:24} {row.level:9} {row.clock:8} {row.milliseconds:9.3f} {row.gvalues_per_s:9.2f}")
    if options.json:
        report = {
            "device": name,
            "chunks": options.chunks,
            "bits_per_value": bits,
            "copy_gbytes_per_s": copies,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
