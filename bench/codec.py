"""Measure the codec on real KV: size and quality of each level, and speed of each execution.

    python bench/codec.py --json codec.json            # both
    python bench/codec.py --quality / --speed          # one of them

Quality is the KL divergence (nats) of the next-token distributions of the 128 tokens after a context of 768 whose KV
went through the codec in chunks of 256, from those after the unquantised KV. Text: the Python language reference; the
profile is calibrated on other topics. Bits per value count everything but the profile. Speed: entropy coding on one
thread and whole decodes, on one real chunk, best of several rounds with the implementations interleaved.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch

from kvloom import codec
from kvloom.blend.cache import KvCache
from kvloom.clients.transformers import extract, load_smollm2, model_layout, prefill
from kvloom.codec.entropy import native, reference
from kvloom.codec.entropy.model import base_tables
from kvloom.codec.entropy.stream import DecodeJob, EncodeJob, Runs

CONTEXT, FOLLOWING, CHUNK = 768, 128, 256
CALIBRATION = ("debugger", "formatstrings", "string-methods", "typesmapping")
EVALUATION = ("compound", "objects", "import", "try")
STRENGTHS = ((0.25, 0.35), (0.35, 0.35), (0.5, 0.3), (0.5, 0.25), (0.7, 0.3), (0.5, 0.5))


@dataclass(frozen=True)
class QualityRow:
    """Size and quality of one level."""

    scheme: str
    level: str
    text: str
    bits_per_value: float
    kl: float
    top1_agreement: float


@dataclass(frozen=True)
class SpeedRow:
    """Speed of one stage."""

    implementation: str
    stage: str
    gvalues_per_s: float


class Subject:
    """The model and its KV."""

    def __init__(self) -> None:
        loaded = load_smollm2()
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.layout = model_layout(self.model)

    def tokens(self, topic: str, count: int) -> np.ndarray:
        """The first tokens of a topic's text."""
        return np.asarray(self.tokenizer(topics[topic], verbose=False)["input_ids"][:count], dtype=np.int64)

    def samples(self) -> list[codec.KvSample]:
        """KV of the calibration text."""
        return [
            codec.KvSample(*extract(prefill(self.model, ids), 0, len(ids)))
            for ids in (self.tokens(topic, 1536) for topic in CALIBRATION)
        ]

    @torch.inference_mode()
    def following(self, ids: np.ndarray, cache: KvCache) -> torch.Tensor:
        """Log-probabilities ``[FOLLOWING, vocabulary]`` after the context held by ``cache``."""
        rest = torch.from_numpy(ids[CONTEXT : CONTEXT + FOLLOWING])[None]
        logits = self.model(input_ids=rest, past_key_values=cache, use_cache=True).logits[0]
        return torch.log_softmax(logits.double(), dim=-1)


def quality(subject: Subject) -> Iterator[QualityRow]:
    samples = subject.samples()
    contexts = []
    for topic in EVALUATION:
        ids = subject.tokens(topic, CONTEXT + FOLLOWING)
        cache = prefill(subject.model, ids[:CONTEXT], cache=KvCache(subject.layout, CONTEXT + FOLLOWING))
        keys, values = extract(cache, 0, CONTEXT)
        keys, values = [np.array(item) for item in keys], [np.array(item) for item in values]
        contexts.append((ids, keys, values, subject.following(ids, cache)))
    for strength_keys, strength_values in STRENGTHS:
        profile = codec.calibrate(samples, subject.layout, strength_keys=strength_keys, strength_values=strength_values)
        for level in (*codec.LOSSY_LEVELS, codec.EXACT):
            rows = [through_codec(subject, profile, level, *context) for context in contexts]
            bits, kl, top1 = (float(np.mean(column)) for column in zip(*rows, strict=True))
            scheme = f"kvloom {strength_keys}/{strength_values}"
            yield QualityRow(scheme, level.name, "python reference", bits, kl, top1)


def through_codec(
    subject: Subject,
    profile: codec.Profile,
    level: codec.Level,
    ids: np.ndarray,
    keys: list[np.ndarray],
    values: list[np.ndarray],
    expected: torch.Tensor,
) -> tuple[float, float, float]:
    """Bits per value, KL and top-1 agreement of one context."""
    cache = KvCache(subject.layout, CONTEXT + FOLLOWING)
    stored = 0
    for start in range(0, CONTEXT, CHUNK):
        part = slice(start, start + CHUNK)
        levels = (codec.EXACT,) if level == codec.EXACT else codec.LOSSY_LEVELS
        blob = codec.encode(
            [item[:, part] for item in keys],
            [item[:, part] for item in values],
            layout=subject.layout,
            profile=profile,
            first_position=start,
            levels=levels,
        )
        stored += codec.info(blob).level_bytes[level.name]
        room = [cache.layer_arrays(layer) for layer in range(len(subject.layout.layers))]
        codec.decode_into(
            codec.Container.parse(blob),
            [item.keys[:, part] for item in room],
            [item.values[:, part] for item in room],
            profile=profile,
            level=level,
        )
    cache.truncate(CONTEXT)
    found = subject.following(ids, cache)
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    top1 = float((expected.argmax(-1) == found.argmax(-1)).double().mean())
    return 8 * stored / (CONTEXT * subject.layout.values_per_token), kl, top1


def speed(subject: Subject, rounds: int) -> Iterator[SpeedRow]:
    samples = subject.samples()
    profile = codec.calibrate(samples, subject.layout)
    keys, values = (
        [np.ascontiguousarray(layer[:, CHUNK : 2 * CHUNK]) for layer in item]
        for item in (samples[0].keys, samples[0].values)
    )
    lossy = codec.encode(keys, values, layout=subject.layout, profile=profile, first_position=CHUNK)
    exact = codec.encode(keys, values, layout=subject.layout, first_position=CHUNK)
    chunk_values = CHUNK * subject.layout.values_per_token
    encode_job, decode_job = entropy_jobs()
    symbols = 60 * len(encode_job.symbols)
    stages: dict[tuple[str, str], tuple[int, Callable[[], object]]] = {
        ("whole, default threads", "decode standard"): (chunk_values, lambda: codec.decode(lossy, profile=profile)),
        ("whole, default threads", "decode draft"): (
            chunk_values,
            lambda: codec.decode(lossy, profile=profile, level="draft"),
        ),
        ("whole, default threads", "decode exact"): (chunk_values, lambda: codec.decode(exact)),
        ("whole, default threads", "encode lossy"): (
            chunk_values,
            lambda: codec.encode(keys, values, layout=subject.layout, profile=profile),
        ),
        ("whole, default threads", "encode exact"): (
            chunk_values,
            lambda: codec.encode(keys, values, layout=subject.layout),
        ),
        ("reference", "entropy decode"): (len(encode_job.symbols), lambda: reference.decode_streams([decode_job])),
    }
    if native.AVAILABLE:
        stages |= {
            (native.PATHS[-1], "entropy decode"): (
                symbols,
                lambda: native.decode_streams([decode_job] * 60, threads=1),
            ),
            ("scalar", "entropy decode"): (
                symbols,
                lambda: native.decode_streams([decode_job] * 60, threads=1, path="scalar"),
            ),
            (native.PATHS[-1], "entropy encode"): (
                symbols,
                lambda: native.encode_streams([encode_job] * 60, threads=1),
            ),
            ("scalar", "entropy encode"): (
                symbols,
                lambda: native.encode_streams([encode_job] * 60, threads=1, path="scalar"),
            ),
        }
    best = dict.fromkeys(stages, float("inf"))
    for _ in range(rounds):
        for name, (_, work) in stages.items():
            started = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - started)
    for (implementation, stage), (count, _) in stages.items():
        yield SpeedRow(implementation, stage, count / best[implementation, stage] / 1e9)


def entropy_jobs() -> tuple[EncodeJob, DecodeJob]:
    """A segment's worth of symbols drawn from the tables: 192 channels of 256 tokens."""
    rng = np.random.default_rng(1)
    classes = np.sort(rng.integers(5, 45, 192))[::-1]
    cumulative = np.cumsum(base_tables().frequencies.astype(np.int64), axis=1)
    points = rng.integers(0, 4096, (192, 256))
    symbols = (cumulative[classes][:, None, :] <= points[:, :, None]).sum(axis=2).astype(np.uint8).reshape(-1)
    job = EncodeJob(symbols, base_tables(), Runs.of_channels(classes, 256), 32)
    return job, DecodeJob(reference.encode_streams([job])[0], job.tables, job.runs, job.lanes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    both = not (options.quality or options.speed)
    subject = Subject()
    report: dict[str, list[dict[str, object]]] = {}
    if options.quality or both:
        report["quality"] = []
        print(f"{'scheme':18} {'level':9} {'bits/value':>10} {'KL (nats)':>10} {'top-1':>7}")
        for row in quality(subject):
            report["quality"].append(asdict(row))
            print(
                f"{row.scheme:18} {row.level:9} {row.bits_per_value:10.3f} {row.kl:10.5f} {row.top1_agreement:7.1%}",
                flush=True,
            )
    if options.speed or both:
        report["speed"] = []
        print(f"{'implementation':24} {'stage':16} {'Gvalue/s':>9}")
        for speed_row in speed(subject, options.rounds):
            report["speed"].append(asdict(speed_row))
            print(f"{speed_row.implementation:24} {speed_row.stage:16} {speed_row.gvalues_per_s:9.4f}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
