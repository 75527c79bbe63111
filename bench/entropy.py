"""Measure the entropy coder on one core: every execution, and constriction's coders, on the same symbols.

    python bench/entropy.py --json entropy.json
    taskset -c 1 python bench/entropy.py --rounds 30     # pinned, on a busy machine

Symbols are drawn from the codec's own scale classes, in jobs of one segment (192 channels of 256 tokens, sorted by
class), around 2.5 and around 1 bit of entropy. Each figure is the best of ``--rounds`` rounds, with all measured in
turn in every round. The reference and constriction code fewer jobs, as they take longer; a figure is symbols per
second either way. constriction is given each run's symbols in one call with one model, which is its fastest use.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from kvloom.codec.entropy import native, reference
from kvloom.codec.entropy.model import CLASSES, SLOTS, base_tables
from kvloom.codec.entropy.stream import DecodeJob, EncodeJob, Runs

JOBS, CHANNELS, TOKENS, LANES = 32, 192, 256, 32
SPREAD = 8
"""Classes of a job lie up to this far above and below their centre, as a layer's channels do."""
CENTRES = {"2.5 bit": 33, "1 bit": 22}


@dataclass(frozen=True)
class Row:
    """Speed of one direction of one coder."""

    symbols: str
    entropy_bits: float
    implementation: str
    stage: str
    gsymbols_per_s: float


@dataclass(frozen=True)
class Measured:
    """What is timed: ``work`` codes ``symbols`` symbols."""

    implementation: str
    stage: str
    symbols: int
    work: Callable[[], object]


def draw_jobs(centre: int) -> tuple[list[EncodeJob], float]:
    """Jobs of symbols drawn from their tables, and the entropy per symbol."""
    rng = np.random.default_rng(centre)
    tables = base_tables(0)
    jobs, bits = [], 0.0
    for _ in range(JOBS):
        classes = np.sort(np.clip(rng.integers(centre - SPREAD, centre + SPREAD + 1, CHANNELS), 0, CLASSES - 1))[::-1]
        chosen = np.repeat(classes, TOKENS)
        symbols = (tables.decoder[chosen, rng.integers(0, SLOTS, len(chosen))] & 0xFF).astype(np.uint8)
        jobs.append(EncodeJob(symbols, tables, Runs.of_channels(classes, TOKENS), LANES))
        shares = tables.frequencies[classes] / SLOTS
        bits += float(-(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(axis=1).mean())
    return jobs, bits / JOBS


def ours(jobs: Sequence[EncodeJob]) -> Iterator[Measured]:
    """The reference, and every path that this CPU has, on one thread."""
    data = native.encode_streams(jobs)
    back = [DecodeJob(stream, job.tables, job.runs, job.lanes) for stream, job in zip(data, jobs, strict=True)]
    count = sum(len(job.symbols) for job in jobs)
    few = len(jobs[0].symbols)
    yield Measured("reference", "decode", few, lambda: reference.decode_streams(back[:1]))
    yield Measured("reference", "encode", few, lambda: reference.encode_streams(jobs[:1]))
    for path in native.PATHS:
        yield Measured(path, "decode", count, lambda path=path: native.decode_streams(back, path=path, threads=1))
        yield Measured(path, "encode", count, lambda path=path: native.encode_streams(jobs, path=path, threads=1))


def constrictions(job: EncodeJob) -> Iterator[Measured]:
    """The ANS and the range coder of constriction on one job's symbols; each is checked to give them back."""
    runs = list(zip(job.runs.tables.tolist(), np.split(job.symbols, np.cumsum(job.runs.lengths)[:-1]), strict=True))
    present = {table: np.flatnonzero(job.tables.frequencies[table]) for table, _ in runs}
    models = {
        table: constriction.stream.model.Categorical(job.tables.frequencies[table, symbols] / SLOTS, perfect=False)
        for table, symbols in present.items()
    }
    indices = [(table, np.searchsorted(present[table], symbols).astype(np.int32)) for table, symbols in runs]

    def encode_ans() -> NDArray[np.uint32]:
        coder = constriction.stream.stack.AnsCoder()
        for table, values in reversed(indices):
            coder.encode_reverse(values, models[table])
        return coder.get_compressed()

    def encode_range() -> NDArray[np.uint32]:
        coder = constriction.stream.queue.RangeEncoder()
        for table, values in indices:
            coder.encode(values, models[table])
        return coder.get_compressed()

    def decode(coder_of: Callable[[NDArray[np.uint32]], Any], words: NDArray[np.uint32]) -> list[NDArray[np.int32]]:
        coder = coder_of(words)
        return [coder.decode(models[table], len(values)) for table, values in indices]

    for name, encode, coder_of in (
        ("constriction ANS", encode_ans, constriction.stream.stack.AnsCoder),
        ("constriction range", encode_range, constriction.stream.queue.RangeDecoder),
    ):
        words = encode()
        decoded = decode(coder_of, words)
        assert all(np.array_equal(found, values) for found, (_, values) in zip(decoded, indices, strict=True))
        count = len(job.symbols)
        yield Measured(name, "decode", count, lambda coder_of=coder_of, words=words: decode(coder_of, words))
        yield Measured(name, "encode", count, encode)


def speeds(rounds: int) -> Iterator[Row]:
    for name, centre in CENTRES.items():
        jobs, entropy_bits = draw_jobs(centre)
        measured = [*ours(jobs), *constrictions(jobs[0])]
        best = [float("inf")] * len(measured)
        for _ in range(rounds):
            for index, item in enumerate(measured):
                started = time.perf_counter()
                item.work()
                best[index] = min(best[index], time.perf_counter() - started)
        for item, seconds in zip(measured, best, strict=True):
            yield Row(name, entropy_bits, item.implementation, item.stage, item.symbols / seconds / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not native.AVAILABLE:
        raise SystemExit("the compiled core is not installed: there is nothing to compare the reference with")
    rows = list(speeds(options.rounds))
    print(f"{'symbols':8} {'entropy':>7}  {'implementation':20} {'stage':7} {'Gsymbol/s':>9}")
    for row in rows:
        print(
            f"{row.symbols:8} {row.entropy_bits:7.3f}  {row.implementation:20} {row.stage:7} {row.gsymbols_per_s:9.4f}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
