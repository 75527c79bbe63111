"""How a process that is timed talks to the one that times it: a line asks for a stage, a line tells how long it took.

Each implementation runs in a process of its own, on the cores it was given, so that implementations can be measured in
turn, each with its own libraries and as many threads as it has cores. Imports nothing of ours.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = "RESULT "
_BENCH = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Stage:
    """What is timed: one call of ``work`` codes ``values`` values."""

    values: int
    work: Callable[[], object]


def use_cores(numbers: str) -> int:
    """Run on the cores ``numbers``, with commas between; how many they are. Before anything counts its threads."""
    cores = {int(number) for number in numbers.split(",")}
    os.sched_setaffinity(0, cores)
    return len(cores)


def answer(stages: dict[str, Stage], **said: str | int) -> None:
    """Say what there is, then time each stage that the input names, until it ends."""
    print(_MARK + json.dumps({"stages": {name: stage.values for name, stage in stages.items()}, **said}), flush=True)
    for line in sys.stdin:
        work = stages[line.strip()].work
        started = time.perf_counter()
        work()
        print(_MARK + json.dumps(time.perf_counter() - started), flush=True)


class Worker:
    """A process that answers. Use as a context: it ends with it."""

    def __init__(self, python: str, module: str, arguments: Collection[str], *, keep_path: bool = True) -> None:
        environ = {key: value for key, value in os.environ.items() if keep_path or key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, "-m", f"codec_bench.{module}", *arguments],
            cwd=_BENCH,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: dict[str, Any] = self._read()
        self.stages: dict[str, int] = self.said["stages"]

    def seconds(self, stage: str) -> float:
        """Time one call of ``stage``."""
        assert self._process.stdin is not None
        self._process.stdin.write(stage + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line[len(_MARK) :])
        raise SystemExit(f"{' '.join(map(str, self._process.args))} ended with code {self._process.wait()}")  # type: ignore[arg-type]
