"""The peers' servers, each from the environment that ``make bench-peers`` made, or the reason why there is none."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["SUBJECTS", "Peer", "running_peers"]

ENVIRONMENTS = Path(os.environ.get("KVLOOM_PEERS", Path(__file__).parents[2] / "build" / "peers"))
CLIENT = Path(__file__).with_name("peer_client.py")
SUBJECTS = ("redis", "mooncake", "lmcache", "lmcache fs")
START_SECONDS_MAX = 60.0


class Absent(Exception):
    """Why a peer cannot be measured here."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that runs: the interpreter of its clients, where it is reached, and the processes that serve them."""

    subject: str
    python: Path
    place: str
    servers: tuple[psutil.Process, ...] = ()

    def command(self, what: str, value_bytes: int, values: int) -> list[str]:
        """What starts a client."""
        return [str(self.python), str(CLIENT), what, self.subject, str(value_bytes), str(values), self.place]


@contextlib.contextmanager
def running_peers(absent: dict[str, str]) -> Iterator[dict[str, Peer]]:
    """All that can run, until the context ends; ``absent`` is told why the others cannot."""
    starters = {"redis": _redis, "mooncake": _mooncake, "lmcache": _lmcache, "lmcache fs": _lmcache_files}
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for subject, start in starters.items():
            try:
                peers[subject] = start(stack, _python(subject.split()[0]))
            except Absent as error:
                absent[subject] = str(error)
        yield peers


def _python(environment: str) -> Path:
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.exists():
        raise Absent(f"{python} is missing: make bench-peers")
    return python


def _redis(stack: ExitStack, python: Path) -> Peer:
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise Absent("neither valkey-server nor redis-server is installed")
    port = _free_port()
    options = ["--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--protected-mode", "no"]
    return Peer("redis", python, str(port), (_started(stack, [program, *options], port),))


def _mooncake(stack: ExitStack, python: Path) -> Peer:
    loads = subprocess.run([python, "-c", "import mooncake.store"], capture_output=True, text=True)
    if loads.returncode:
        raise Absent(f"it cannot be loaded (Debian: libibverbs1 librdmacm1): {loads.stderr.strip()[-120:]}")
    port, metrics = _free_port(), _free_port()
    master = [
        str(python.with_name("mooncake_master")),
        "--rpc_address=127.0.0.1",
        f"--rpc_port={port}",
        "--metrics_host=127.0.0.1",
        f"--metrics_port={metrics}",
        "--default_kv_lease_ttl=5000",
    ]
    servers = [_started(stack, master, port)]
    lender = [str(python), str(CLIENT), "serve", "mooncake", "1024", "0", str(port)]
    servers.append(_started(stack, lender, None))
    return Peer("mooncake", python, str(port), tuple(servers))


def _lmcache(stack: ExitStack, python: Path) -> Peer:
    port = _free_port()
    command = [str(python.with_name("lmcache_server")), "127.0.0.1", str(port)]
    return Peer("lmcache", python, str(port), (_started(stack, command, port),))


def _lmcache_files(stack: ExitStack, python: Path) -> Peer:
    """Files in memory where the system has such a file system: the backend at its best."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = stack.enter_context(tempfile.TemporaryDirectory(dir=memory, prefix="lmcache-"))
    return Peer("lmcache fs", python, directory)


def _started(stack: ExitStack, command: list[str], port: int | None) -> psutil.Process:
    """A server that listens on ``port``, or says ``ready``; it is killed when the context ends."""
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    environment = os.environ | {"LMCACHE_LOG_LEVEL": "ERROR", "LMCACHE_DISABLE_BANNER": "1"}
    output = log if port is not None else subprocess.PIPE
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=log, env=environment)
    stack.callback(_stop, process)
    listens = False
    if port is None:
        listens = process.stdout is not None and process.stdout.readline() == b"ready\n"
    else:
        with contextlib.suppress(psutil.Error):
            listens = _listens(psutil.Process(process.pid), port)
    if not listens:
        log.seek(0)
        raise Absent(f"{Path(command[0]).name} did not start: {log.read()[-200:].decode(errors='replace').strip()}")
    return psutil.Process(process.pid)


def _listens(process: psutil.Process, port: int) -> bool:
    """Wait until a connection to ``port`` is accepted; False where the process ends or takes too long."""
    tries = 0
    while process.status() != psutil.STATUS_ZOMBIE and tries < START_SECONDS_MAX / 0.1:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        tries += 1
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.1)
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
