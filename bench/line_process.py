"""An engine in a process of its own, asked and answering in lines of JSON."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LineProcess"]


class LineProcess:
    """``command``, running; it says a line when it is ready. One that keeps silent for ``seconds_max`` is killed.

    Without ``wait`` that line is the first that :meth:`line` returns.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        seconds_max: float,
        stderr: int | None = None,
        wait: bool = True,
    ) -> None:
        self._seconds_max = seconds_max
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **environ},
            text=True,
        )
        if wait:
            self.line()

    def tell(self, told: Any) -> None:
        """Write a line."""
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()

    def line(self) -> Any:
        """The next line it says; ends this program where it says none."""
        timer = threading.Timer(self._seconds_max, self._process.kill)
        timer.daemon = True  # an interrupt does not wait for it
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            sys.exit(f"the engine ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait(self._seconds_max)
