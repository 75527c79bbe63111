"""What a decoded chunk that is resident saves: the GPU tier's pool beside loading and decoding, in the same run.

    python bench/gpu_pool.py --json gpu_pool.json                        # this machine's memory, SmolLM2's own KV
    python bench/gpu_pool.py --made-up llama-3-8b --place cuda:0 --json gpu_pool.json  # a bare machine with a GPU

Each way fills a cache with the same chunks of 256 tokens, keys at the positions of another prompt unless it says
otherwise. Ways take turns within each round, so a machine that is busy meanwhile disturbs all of them alike; figures
are medians over the rounds, per chunk. ``load + decode`` is what is done without a pool: read through the daemon's
socket, mapped, and decoded into the cache on all cores. ``miss`` has the chunks decoded into the pool and copied out.
``in place`` is what an engine does that attends to pages: find, lease, release. ``memcpy`` copies the decoded bytes.
With ``--made-up``, KV is random and coded with the generic profile, and no model is needed. On a GPU the source is a
dictionary in this process, the cache is there too, and ``load + decode`` is left out (there ``miss`` is that).
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvloom import codec
from kvloom.codec import EXACT, STANDARD, Container, Kind, KvDtype, Layout, Level, Rope
from kvloom.codec.profiles import AnyProfile
from kvloom.kvstore.gpu.arrays import PoolArrays, open_arrays
from kvloom.kvstore.gpu.pool import DecodedPool, PoolRules
from kvloom.kvstore.gpu.source import ChunkSource, ChunkWanted
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.outcome import Hit, Miss, Outcome

TOKENS = 256
MOVED_BY = 777
CALIBRATION_SEQUENCES = 3
CALIBRATION_TOKENS = 384
"""Enough for the speed of decoding; quality is measured elsewhere."""
THREADS = max(1, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Row:
    """One way at one level; ``ratio`` is how many times less than ``load + decode`` it takes, or else than ``miss``."""

    place: str
    layout: str
    level: str
    way: str
    chunks: int
    ms_per_chunk: float
    ms_per_chunk_best: float
    gb_per_s: float
    ratio: float


@dataclass(frozen=True)
class Prompt:
    """Chunks of one prompt: their keys, and containers with ``standard`` and ``exact`` in them."""

    name: str
    layout: Layout
    keys: list[ContentKey]
    containers: list[bytes]
    profile: AnyProfile


@dataclass(frozen=True)
class Shape:
    """What a made-up layout is made of."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: KvDtype


LAYOUTS = {"llama-3-8b": Shape(32, 8, 128, KvDtype.BFLOAT16), "smollm2-135m": Shape(30, 3, 64, KvDtype.FLOAT32)}


class Shelf:
    """A source in this process."""

    def __init__(self, prompt: Prompt) -> None:
        self._profile = prompt.profile
        self._containers = dict(zip(prompt.keys, map(Container.parse, prompt.containers), strict=True))

    def load(self, keys: Sequence[ContentKey], level: Level) -> list[Outcome[Container]]:
        return [Hit(self._containers[key], "memory") if key in self._containers else Miss() for key in keys]

    def profile(self, digest: bytes) -> AnyProfile | None:
        return self._profile

    def store(self, key: ContentKey, container: bytes, parent: ContentKey | None) -> None:
        raise NotImplementedError(f"{key.hex()} of {len(container)} bytes: nothing is put here")


def key_of(number: int) -> ContentKey:
    return ContentKey(number.to_bytes(32, "little"))


def encoded(name: str, layout: Layout, kv: Sequence[tuple[Any, Any]], profile: AnyProfile) -> Prompt:
    containers = [
        codec.encode(
            keys,
            values,
            layout=layout,
            profile=profile,
            levels={STANDARD, EXACT},
            first_position=TOKENS * number,
            content_key=key_of(number),
        )
        for number, (keys, values) in enumerate(kv)
    ]
    return Prompt(name, layout, [key_of(number) for number in range(len(kv))], containers, profile)


def made_up(name: str, chunks: int) -> Prompt:
    shape = LAYOUTS[name]
    rope = Rope(tuple(float(f) for f in 100_000.0 ** (-np.arange(shape.head_dim // 2) / (shape.head_dim // 2))))
    layout = Layout.uniform(
        layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=shape.dtype, rope=rope
    )
    rng = np.random.default_rng(1)
    size = (shape.kv_heads, TOKENS, shape.head_dim)
    kv = [
        tuple([rng.normal(size=size).astype(layout.dtype.numpy) for _ in layout.layers] for _ in Kind)
        for _ in range(chunks)
    ]
    return encoded(f"{name}, random", layout, kv, codec.generic_profile(layout))


def of_smollm2(chunks: int) -> Prompt:
    """KV of a text, coded with a profile learnt from other texts."""
    from pydoc_data.topics import topics

    from kvloom.clients.transformers import calibration_samples, extract, load_smollm2, model_layout, prefill
    from kvloom.clients.transformers.sensitivity import SequencePlan

    loaded = load_smollm2()
    layout = model_layout(loaded.model)
    plan = SequencePlan(context_tokens=CALIBRATION_TOKENS, following_tokens=1)
    texts = ["\n".join(list(topics.values())[start::8]) for start in range(1 + CALIBRATION_SEQUENCES)]
    ids = [np.asarray(loaded.tokenizer(text)["input_ids"], np.int64) for text in texts]
    cache = prefill(loaded.model, ids[0][: chunks * TOKENS])
    sequences = [item[: plan.tokens] for item in ids[1:]]
    samples = calibration_samples(loaded.model, sequences, plan=plan, layout=layout, gradients=False)
    profile = codec.calibrate(samples, layout)
    kv = [extract(cache, start, start + TOKENS) for start in range(0, chunks * TOKENS, TOKENS)]
    return encoded("smollm2-135m", layout, kv, profile)


@contextmanager
def over_a_daemon(prompt: Prompt) -> Iterator[tuple[ChunkSource, Any]]:
    """The prompt's chunks in the memory of a real daemon, and a client on its socket."""
    from kvloom.clients.discovery import DATA_DIR_VARIABLE
    from kvloom.clients.resident import DaemonSource
    from kvloom.daemon.demo.daemon_process import DaemonProcess

    with tempfile.TemporaryDirectory() as folder:
        os.environ[DATA_DIR_VARIABLE] = str(Path(folder) / "data")
        process = DaemonProcess(Path(folder) / "data")
        try:
            client = process.start()
            client.put_profile(prompt.profile.data)
            for key, container in zip(prompt.keys, prompt.containers, strict=True):
                client.put(key, container)
            yield DaemonSource(client), client
        finally:
            process.stop()


class Bench:
    """The ways of filling a cache, each once per round."""

    def __init__(self, prompt: Prompt, arrays: PoolArrays, source: ChunkSource, client: Any) -> None:
        self.prompt, self.arrays, self.client = prompt, arrays, client
        self.bytes = TOKENS * prompt.layout.bytes_per_token
        pool_bytes = 3 * len(prompt.keys) * self.bytes
        self.pool = DecodedPool(
            prompt.layout, source, limit_bytes=pool_bytes, arrays=arrays, rules=PoolRules(threads=THREADS)
        )
        self.workers = ThreadPoolExecutor(THREADS)
        self.caches = [self._cache() for _ in range(2)]

    def _cache(self) -> list[list[Any]]:
        """Keys and values of every layer, with room for all chunks, where the pool is; written to once."""
        found: list[list[Any]] = []
        layout, tokens = self.prompt.layout, TOKENS * len(self.prompt.keys)
        for kind in Kind:
            found.append([])
            for spec in layout.layers:
                flat = self.arrays.empty(tokens * spec.width_of(kind), layout.dtype)
                flat = self.arrays.host(flat) if self.arrays.on_host else flat
                found[-1].append(flat.reshape((spec.kv_heads, tokens, spec.head_dim_of(kind))))
                found[-1][-1][...] = 0
        return found

    def room(self, number: int) -> tuple[list[Any], list[Any]]:
        span = slice(number * TOKENS, (number + 1) * TOKENS)
        keys, values = ([array[:, span] for array in arrays] for arrays in self.caches[0])
        return keys, values

    def straight(self, level: Level) -> None:
        def fetch(number: int) -> None:
            outcome = self.client.get(self.prompt.keys[number], level=level)
            position = number * TOKENS + MOVED_BY
            keys, values = self.room(number)
            codec.decode_into(
                outcome.value, keys, values, profile=self.prompt.profile, level=level, first_position=position
            )

        list(self.workers.map(fetch, range(len(self.prompt.keys))))

    async def through_pool(self, level: Level, *, copied: bool = True, moved_by: int = MOVED_BY) -> None:
        outcomes = await self.pool.get_many([ChunkWanted(key, level) for key in self.prompt.keys])

        def copy(number: int) -> None:
            lease = outcomes[number].value
            self.pool.copy_out(lease, *self.room(number), first_position=lease.first_position + moved_by)

        with self.arrays.active():
            if copied and self.arrays.on_host:
                list(self.workers.map(copy, range(len(outcomes))))
            elif copied:
                for number in range(len(outcomes)):
                    copy(number)
            for outcome in outcomes:
                outcome.value.release()
            self.arrays.synchronise()

    async def turned_in_place(self, level: Level) -> None:
        """Pages at the positions of another prompt, made from those that are resident."""
        wanted = [ChunkWanted(key, level, n * TOKENS + MOVED_BY) for n, key in enumerate(self.prompt.keys)]
        for outcome in await self.pool.get_many(wanted):
            outcome.value.release()
        for item in wanted:
            self.pool.forget(item)

    def memcpy(self) -> None:
        def copy(kind: Kind) -> None:
            for to, of in zip(self.caches[0][kind], self.caches[1][kind], strict=True):
                to[...] = of

        with self.arrays.active():
            list(self.workers.map(copy, Kind)) if self.arrays.on_host else list(map(copy, Kind))
            self.arrays.synchronise()

    async def run(self, level: Level, rounds: int) -> list[Row]:
        async def miss() -> None:
            self.pool.forget_owner(ChunkWanted(self.prompt.keys[0]).owner)
            await self.through_pool(level)

        ways: dict[str, Callable[[], Any]] = {}
        if self.client is not None:
            ways["load + decode"] = lambda: self.straight(level)
        ways |= {
            "miss, copied out": miss,
            "hit, copied out, keys turned": lambda: self.through_pool(level),
            "hit, copied out, same position": lambda: self.through_pool(level, moved_by=0),
            "hit, turned into other pages": lambda: self.turned_in_place(level),
            "hit, in place": lambda: self.through_pool(level, copied=False),
            "memcpy": self.memcpy,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, work in ways.items():
                started = time.perf_counter()
                waiting = work()
                if asyncio.iscoroutine(waiting):
                    await waiting
                if number:  # the first warms up
                    seconds[way].append(time.perf_counter() - started)
        chunks = len(self.prompt.keys)
        base = statistics.median(next(iter(seconds.values())))
        return [
            Row(
                self.arrays.name,
                self.prompt.name,
                str(level),
                way,
                chunks,
                1e3 * statistics.median(taken) / chunks,
                1e3 * min(taken) / chunks,
                chunks * self.bytes / statistics.median(taken) / 1e9,
                base / statistics.median(taken),
            )
            for way, taken in seconds.items()
        ]


async def measure(prompt: Prompt, place: str, source: ChunkSource, client: Any, rounds: int) -> list[Row]:
    bench = Bench(prompt, open_arrays(place), source, client)
    rows = [row for level in (STANDARD, EXACT) for row in await bench.run(level, rounds)]
    await bench.pool.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="host", help="host, torch:cpu, cuda:N, cupy:N")
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--made-up", choices=LAYOUTS, help="random KV of that layout, coded with the generic profile")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prompt = made_up(options.made_up, options.chunks) if options.made_up else of_smollm2(options.chunks)
    if not open_arrays(options.place).on_host:
        rows = asyncio.run(measure(prompt, options.place, Shelf(prompt), None, options.rounds))
    else:
        with over_a_daemon(prompt) as (source, client):
            rows = asyncio.run(measure(prompt, options.place, source, client, options.rounds))
    print(f"{THREADS} threads; {prompt.name}, {len(prompt.keys)} chunks of {TOKENS} tokens in {options.place}")
    print(f"{'level':9} {'way':32} {'ms/chunk':>9} {'best':>9} {'GB/s':>7} {'times less':>10}")
    for row in rows:
        print(
            f"{row.level:9} {row.way:32} {row.ms_per_chunk:9.3f} {row.ms_per_chunk_best:9.3f} "
            f"{row.gb_per_s:7.2f} {row.ratio:10.1f}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
