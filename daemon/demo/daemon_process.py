"""A daemon as a process of its own: started, stopped gently, killed, and started again over the same data."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ... import limits
from ...clients.client import KvloomClient
from ...clients.discovery import DaemonNote
from ...errors import DaemonUnavailable

__all__ = ["DaemonProcess"]

START_SECONDS_MAX = 30.0
POLL_SECONDS = 0.02


class DaemonProcess:
    """One data directory and the daemon that serves it on a free loopback port."""

    def __init__(
        self,
        data_dir: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.data_dir = data_dir
        self.starts = 0
        self.pids: list[int] = []
        self._clock, self._sleep = clock, sleep
        self._process: subprocess.Popen[bytes] | None = None
        self._log = data_dir.parent / "daemon.log"

    def start(self) -> KvloomClient:
        """Start the daemon, wait until it is ready, and return a client of it."""
        command = [sys.executable, "-m", "kvloom.daemon.cli", "serve", "--port", "0", "--data-dir", str(self.data_dir)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # noqa: S603
        self.starts += 1
        self.pids.append(self._process.pid)
        deadline = self._clock() + START_SECONDS_MAX
        while self._clock() < deadline:
            if self._process.poll() is not None:
                break
            client = self._ready_client()
            if client is not None:
                return client
            self._sleep(POLL_SECONDS)
        tail = self._log.read_text(errors="replace")[-500:]
        raise DaemonUnavailable(
            f"the demo's daemon was not ready within {START_SECONDS_MAX:.0f} s; its log ends: {tail}"
        )

    def stop(self) -> None:
        """Ask the daemon to drain and end (SIGTERM), and wait for it. Idempotent."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(limits.DRAIN_SECONDS_MAX + 5)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the daemon as a crash would (SIGKILL); nothing of it runs when this returns."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _ready_client(self) -> KvloomClient | None:
        note = DaemonNote.read(self.data_dir)
        if note is None or self._process is None or note.pid != self._process.pid:
            return None
        client = KvloomClient(str(note.endpoint), data_dir=self.data_dir, local=False)
        try:
            return client if client.health().phase == "ready" else None
        except DaemonUnavailable:
            return None
