"""vLLM's CPU build with real daemons: both are processes of their own, ended whatever becomes of a test."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from kvloom.clients.discovery import DaemonNote

ENGINE = Path(__file__).with_name("engine_process.py")
START_SECONDS_MAX, ANSWER_SECONDS_MAX = 1500, 1500
DRAIN_SECONDS_MAX = 120.0
GROUPS, QUESTIONS = 7, 8
ANSWER_TOKENS = 8
COMPILED = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(sys.prefix) / "pycache")}
"""For processes that import vLLM: compiling its modules anew each time would be half of an engine's start."""
COMPARED: list[tuple[int, int]] = []
"""Ties, and outputs compared, of every comparison since the last report."""
REPORTED: list[tuple[int, int]] = []
"""The same of all reports, also of those that came from other processes that run tests."""
TIE_LOGPROB_GAP = 2e-3
"""Two tokens this close in log-probability: float32 sums in another order may choose either."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """A report carries what was compared to the process that sums up: it may be another one."""
    report = yield
    report.compared = [*COMPARED]
    COMPARED.clear()
    return report


def pytest_runtest_logreport(report: Any) -> None:
    REPORTED.extend(getattr(report, "compared", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many outputs were compared, and how many of them differ at a tie."""
    if REPORTED:
        ties, outputs = (sum(column) for column in zip(*REPORTED, strict=True))
        terminalreporter.write_line(f"vLLM: {outputs} outputs compared, {ties} differ where two tokens tie")


@dataclass(frozen=True)
class Answer:
    """One prompt's output. ``gaps`` are the differences of the two best log-probabilities at each token.

    ``first`` are those of the first token, of the whole vocabulary where they were asked for.
    """

    tokens: list[int]
    gaps: list[float]
    cached: int
    ttft_s: float
    first: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """The outputs of prompts computed together, in their order, and what the engine has counted since it started."""

    answers: list[Answer]
    counted: dict[str, float]

    def of(self, part: slice) -> "Answers":
        """Those to a part of the prompts."""
        return Answers(self.answers[part], self.counted)

    @property
    def cached(self) -> list[int]:
        return [answer.cached for answer in self.answers]

    def ties(self, reference: "Answers") -> int:
        """How many outputs differ from ``reference``'s at a tie; any other difference fails."""
        found = 0
        for number, (ours, theirs) in enumerate(zip(self.answers, reference.answers, strict=True)):
            same = [one == other for one, other in zip(ours.tokens, theirs.tokens, strict=True)]
            if False not in same:
                continue
            gap = theirs.gaps[same.index(False)]
            assert gap < TIE_LOGPROB_GAP, f"prompt {number}: {ours.tokens}, not {theirs.tokens}; gap {gap}"
            found += 1
        COMPARED.append((found, len(self.answers)))
        return found


class Engine:
    """A vLLM engine. ``transfer`` is kv_connector_extra_config; None is an engine without us.

    Prompts are token ids, so it needs no tokenizer.
    """

    def __init__(self, model: Path, transfer: dict[str, Any] | None, environ: dict[str, str], **options: Any) -> None:
        chosen = {"model": str(model), "max_model_len": 2048, "skip_tokenizer_init": True, **options}
        if transfer is not None:
            chosen["transfer"] = {
                "kv_connector": "KvloomConnector",
                "kv_connector_module_path": "kvloom.clients.vllm",
                "kv_role": chosen.pop("role", "kv_both"),
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": transfer,
            }
        self._process = subprocess.Popen(
            [sys.executable, str(ENGINE), json.dumps(chosen)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **COMPILED, **environ},
            text=True,
        )
        self.wait_line(START_SECONDS_MAX)

    def wait_line(self, seconds: float) -> dict[str, Any]:
        """The next line that the engine says; a hang ends the engine and fails."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        assert line, f"the engine ended with status {self._process.wait()}"
        return json.loads(line)

    def ask(
        self,
        prompts: Sequence[list[int]],
        *,
        salt: str = "",
        max_tokens: int = ANSWER_TOKENS,
        drain_seconds: float = DRAIN_SECONDS_MAX,
        after_first: Callable[[], None] = lambda: None,
        **given: Any,
    ) -> Answers:
        """Compute ``prompts`` together and wait until what is saved of them is stored.

        ``after_first`` is called when the first of them has ended. What is ``given`` goes with every prompt.
        """
        self.send(prompts, salt=salt, max_tokens=max_tokens, drain_seconds=drain_seconds, **given)
        return self.receive(len(prompts), after_first)

    def send(
        self,
        prompts: Sequence[list[int]],
        *,
        salt: str = "",
        max_tokens: int = ANSWER_TOKENS,
        drain_seconds: float = DRAIN_SECONDS_MAX,
        **given: Any,
    ) -> None:
        """Have it begin to compute ``prompts``; what is ``given`` besides, its process describes."""
        asked = [{"tokens": tokens, "max_tokens": max_tokens, "salt": salt, **given} for tokens in prompts]
        self._process.stdin.write(json.dumps({"prompts": asked, "drain_seconds": drain_seconds}) + "\n")
        self._process.stdin.flush()

    def receive(self, count: int, after_first: Callable[[], None] = lambda: None) -> Answers:
        """What was sent before, answered."""
        answers: dict[int, Answer] = {}
        while "counted" not in (line := self.wait_line(ANSWER_SECONDS_MAX)):
            number = line.pop("index")
            answers[number] = Answer(**line)
            if len(answers) == 1:
                after_first()
        return Answers([answers[index] for index in range(count)], line["counted"])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def has_answered(self) -> bool:
        """Whether a line waits to be read."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def end(self) -> None:
        """Let it end by itself, with all that it saves stored."""
        if self._process.poll() is None:
            self._process.stdin.close()
            assert self.wait_line(ANSWER_SECONDS_MAX) == {"ended": True}
        self._process.wait(START_SECONDS_MAX)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(START_SECONDS_MAX)


class Daemon:
    """A daemon that keeps its address over restarts."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._process: subprocess.Popen | None = None
        self.start()

    @property
    def environ(self) -> dict[str, str]:
        """Where its clients find it."""
        return {"KVLOOM_DATA_DIR": str(self.data_dir), "KVLOOM_LOOKUP_SECONDS": "20"}

    def start(self, *options: str) -> None:
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "kvloom.daemon.cli", "serve", "--port", port, "--log-format", "json"]
        self._process = subprocess.Popen(
            [*command, "--data-dir", str(self.data_dir), *options],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        seen = threading.Event()
        threading.Thread(target=self._read, args=(self._process.stderr, seen), daemon=True).start()
        assert seen.wait(START_SECONDS_MAX), "the daemon did not become ready"
        assert DaemonNote.read(self.data_dir) is not None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(START_SECONDS_MAX)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        self._process.wait(START_SECONDS_MAX)

    def damage(self) -> int:
        """Flip a byte in every 64 KiB of what it has on disk; how many."""
        flipped = 0
        for file in self.data_dir.rglob("*"):
            if not file.is_file() or file.stat().st_size < 1024 * 1024:
                continue
            with file.open("r+b") as log:
                for place in range(32 * 1024, file.stat().st_size, 64 * 1024):
                    log.seek(place)
                    byte = log.read(1)[0]
                    log.seek(place)
                    log.write(bytes([byte ^ 0xFF]))
                    flipped += 1
        return flipped

    @staticmethod
    def _read(lines: Any, seen: threading.Event) -> None:
        for line in lines:
            with contextlib.suppress(ValueError):
                if json.loads(line).get("event") == "ready":
                    seen.set()


@pytest.fixture(scope="session")
def compiled() -> dict[str, str]:
    """What processes that import vLLM find in their environment."""
    return COMPILED


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """SmolLM2 in Transformers' format, converted once into the environment's own folder."""
    cache = Path(sys.prefix) / "models"
    code = (
        "import sys; from pathlib import Path; from kvloom.clients.transformers import load_smollm2;"
        "print(load_smollm2(Path(sys.argv[1])).folder)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def prompts(model_folder: Path) -> list[list[int]]:
    """Questions about texts of the Python documentation: each text is the beginning of several prompts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    names = [name for name in sorted(topics) if len(topics[name]) > 4000][:GROUPS]
    found = []
    for name in names:
        text = tokenizer(topics[name]).input_ids[: 270 + len(found)]
        for asked in sorted(topics)[:QUESTIONS]:
            question = f"\n\nQuestion: what does the text above say about {asked}? Explain it in one sentence.\nAnswer:"
            found.append(text + tokenizer(question, add_special_tokens=False).input_ids)
    return found


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon per module, with a store of its own."""
    started = Daemon(tmp_path_factory.mktemp("store"))
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def start_engine(model_folder: Path, daemon: Daemon) -> Iterator[Callable[..., Engine]]:
    """Starts engines over the module's daemon; ``transfer=None`` for one without us.

    Unless a test says otherwise, no planner is asked: what is loaded is then known.
    """
    engines: list[Engine] = []

    def start(
        transfer: dict[str, Any] | None,
        environ: dict[str, str] | None = None,
        *,
        model: Path | None = None,
        **options: Any,
    ) -> Engine:
        given = None if transfer is None else {"address": daemon.address, "ack": "disk", "plan": False, **transfer}
        engines.append(Engine(model or model_folder, given, {**daemon.environ, **(environ or {})}, **options))
        return engines[-1]

    try:
        yield start
    finally:
        for engine in engines:
            engine.kill()


@pytest.fixture(scope="module")
def unaided(start_engine: Callable[..., Engine]) -> Iterator[Engine]:
    """An engine without us, with its own prefix cache, for as long as it takes to know what it answers."""
    engine = start_engine(None, enable_prefix_caching=True)
    yield engine
    engine.end()


@pytest.fixture(scope="module")
def reference(unaided: Engine, prompts: list[list[int]]) -> Answers:
    """What vLLM's own prefix cache gives: every prompt asked when one that begins alike is in it."""
    unaided.ask(prompts[::QUESTIONS])
    answers = unaided.ask(prompts)
    assert all(cached >= 256 for cached in answers.cached)
    return answers
