"""Speed of every implementation on one real chunk: each in a process of its own, all in turn in every round."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvloom.codec.cachegen import CacheGenUnit
from kvloom.codec.entropy import native

from .answering import Worker
from .profiles import Profiles
from .progress import Progress
from .reference import references
from .schemes import chunks_of
from .subject import Subject
from .texts import Texts

SLOW_S = 2.0
"""What takes longer is measured in the first round only."""
CALLS = 3
"""One after the other in every round: LMCache takes more than twice as long when others have run since its last."""

Place = tuple[str, int]
"""An implementation, and on how many cores."""


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """Speed of one stage on ``cores`` cores, best of the rounds."""

    implementation: str
    stage: str
    cores: int
    gvalues_per_s: float


def write_chunk(path: Path, subject: Subject, texts: Texts, profiles: Profiles, cache: Path) -> None:
    """The second chunk of the first evaluation context, with the layout and profiles that code it."""
    first = next(references(subject, texts, cache))
    chunk = list(chunks_of(first.kv))[1]
    np.savez(
        path,
        keys=np.stack(chunk.kv.keys),
        values=np.stack(chunk.kv.values),
        first_position=np.int64(chunk.start),
        layout=np.frombuffer(subject.layout.to_bytes(), np.uint8),
        profile=np.frombuffer(profiles.kvloom().data, np.uint8),
        cachegen_profile=np.frombuffer(profiles.cachegen(CacheGenUnit.LAYER).data, np.uint8),
    )


def measure(
    subject: Subject,
    texts: Texts,
    profiles: Profiles,
    cache: Path,
    rounds: int,
    lmcache: Path | None,
    progress: Progress,
) -> Iterator[list[SpeedRow]]:
    """Every implementation on one core, and on all of them those that use threads: the rows after each round."""
    available = sorted(os.sched_getaffinity(0))
    one, every = str(available[-1]), ",".join(map(str, available))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_workers:
        chunk = Path(folder) / "chunk.npz"
        write_chunk(chunk, subject, texts, profiles, cache)
        workers: dict[Place, Worker] = {}

        def start(name: str, cores: str, path: str) -> None:
            progress.say(f"speed: {name or 'entropy coders'} gets ready")
            worker = Worker(sys.executable, "speed_worker", [str(chunk), cores, path])
            workers[name, cores.count(",") + 1] = open_workers.enter_context(worker)

        for path in ("reference", *native.PATHS):
            start(path, one, path)
        if len(available) > 1:
            start(native.PATHS[-1] if native.PATHS else "reference", every, "auto")
        start("cachegen (ours)", one, "cachegen")
        if native.AVAILABLE:
            start("", one, "entropy")
        if lmcache is not None:
            progress.say(f"speed: LMCache of {lmcache} gets ready")
            for cores in dict.fromkeys((one, every)):
                # Not resolved: an environment's interpreter is a link, and would not know where it is without it.
                worker = Worker(
                    str(lmcache.absolute()),
                    "lmcache_worker",
                    [str(chunk), str(subject.folder), cores],
                    keep_path=False,
                )
                workers["cachegen (LMCache)", cores.count(",") + 1] = open_workers.enter_context(worker)
        best: dict[tuple[Place, str], float] = {}
        for number in range(rounds):
            for place, worker in workers.items():
                for stage in worker.stages:
                    for _ in range(CALLS):
                        if best.get((place, stage), 0.0) < SLOW_S:
                            best[place, stage] = min(best.get((place, stage), float("inf")), worker.seconds(stage))
            progress.say(f"speed: round {number + 1} of {rounds}")
            yield _rows(workers, best)


def _rows(workers: Mapping[Place, Worker], best: Mapping[tuple[Place, str], float]) -> list[SpeedRow]:
    rows: list[SpeedRow] = []
    for ((name, cores), stage), seconds in best.items():
        # The entropy coder's process names the implementation in the stage.
        implementation, _, rest = stage.rpartition(": ") if not name else (name, "", stage)
        rows.append(SpeedRow(implementation, rest, cores, workers[name, cores].stages[stage] / seconds / 1e9))
    return rows


def show(rows: Sequence[SpeedRow]) -> None:
    """Print the table."""
    print(f"\n{'implementation':20} {'stage':28} {'cores':>5} {'Gvalue/s':>9}")
    for row in rows:
        print(f"{row.implementation:20} {row.stage:28} {row.cores:5} {row.gvalues_per_s:9.4f}")
