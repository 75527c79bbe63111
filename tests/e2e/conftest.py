"""Real daemons: processes of their own on loopback ports of their own, ended whatever happens to the test."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvloom.clients import KvloomClient
from kvloom.clients.access import TOKEN_NAME
from kvloom.clients.discovery import DaemonNote, Endpoint

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60
KVLOOM = (sys.executable, "-m", "kvloom.daemon.cli")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class DaemonProcess:
    """A daemon over one data directory; it may be stopped, killed and started again."""

    command = KVLOOM

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self.data_dir = data_dir
        self.flags = flags
        self.log: list[dict] = []
        self._process: subprocess.Popen | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> "DaemonProcess":
        """Start it and wait for the line that says it is ready."""
        ready = threading.Event()
        command = [
            *KVLOOM,
            "serve",
            "--port",
            "0",
            "--data-dir",
            str(self.data_dir),
            "--log-format",
            "json",
            *self.flags,
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read_log, args=(self._process, ready), daemon=True)
        self._reader.start()
        assert ready.wait(START_SECONDS_MAX), self.log
        assert self._process.poll() is None, self.log
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and give its exit status."""
        self._process.send_signal(number)
        status = self._process.wait(STOP_SECONDS_MAX)
        self._reader.join()
        return status

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    def signal(self, number: int) -> None:
        """Send it a signal and do not wait."""
        self._process.send_signal(number)

    @property
    def endpoint(self) -> Endpoint:
        """Where it serves, by the note it wrote."""
        return DaemonNote.read(self.data_dir).endpoint

    def client(self, api_key: str | None = None) -> KvloomClient:
        """A client of its own, over HTTP."""
        return KvloomClient(str(self.endpoint), data_dir=self.data_dir, local=False, api_key=api_key)

    @property
    def key(self) -> dict[str, str]:
        """The header by which this user's programs are known."""
        return {"Authorization": f"Bearer {(self.data_dir / TOKEN_NAME).read_text()}"}

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request over a connection of its own."""
        connection = http.client.HTTPConnection(self.endpoint.host, self.endpoint.port, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body, {**self.key, **given})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def run(self, *arguments: str, data: bytes = b"", **variables: str) -> subprocess.CompletedProcess:
        """Run the kvloom command against this daemon."""
        environ = {**os.environ, "KVLOOM_DATA_DIR": str(self.data_dir), "NO_COLOR": "1", **variables}
        return subprocess.run([*KVLOOM, *arguments], input=data, capture_output=True, env=environ, timeout=120)

    def _read_log(self, process: subprocess.Popen, ready: threading.Event) -> None:
        for line in process.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else {"event": line.rstrip()})
            if self.log[-1]["event"] == "ready":
                ready.set()
        ready.set()


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One daemon that many tests share; each uses keys of its own and leaves it running."""
    process = DaemonProcess(tmp_path_factory.mktemp("shared") / "data", "--memory", "64MiB", "--ssd", "256MiB")
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """A function that makes and starts daemons of the test's own."""
    started: list[DaemonProcess] = []

    def start(*flags: str, name: str = "data") -> DaemonProcess:
        process = DaemonProcess(tmp_path / name, *flags)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def tiny_pipeline(daemon: DaemonProcess) -> Iterator[Any]:
    """A :class:`RagPipeline` over the shared daemon that loads all there is, with a profile of its own."""
    from tiny_rag import LOAD_ALL, ByteTokenizer, tiny_model

    from kvloom.clients.rag import RagPipeline

    with closing(
        RagPipeline(tiny_model(), ByteTokenizer(), daemon.client(), chunk_tokens=100, planning=LOAD_ALL)
    ) as pipeline:
        pipeline.calibrate(["Number 7 follows number 6, as all of them do. " * 80])
        yield pipeline
