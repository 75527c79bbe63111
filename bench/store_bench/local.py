"""Local reads and writes timed: a daemon's mapped chunks beside a plain memcpy and the peers, in the same run.

Every subject keeps as many values (the working set is larger than the caches) and is asked for them in random order by
one client process, then by eight. Subjects take turns within each round, so a machine that is busy meanwhile disturbs
all of them alike. A client of ``kvloom local`` reads every byte of what it is given, since it verifies it; ``+ copy``
copies it out as well. What a client has read it may read again without asking the daemon: that is ``kvloom local``, the
steady state. ``first`` makes it ask each time, as for a chunk that it never had. Before an ``untouched`` read the
client's mapping is emptied too (not timed), so that every page faults as in a process that has just mapped it.
``memcpy`` copies the same bytes within a client. ``x32`` asks for 32 chunks at a time. What the peers do is in
``peer_client``. ``contains_many`` asks about 1,000 keys. CPU is that of clients and servers together.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from kvloom.clients import KvloomClient
from kvloom.clients.discovery import DATA_DIR_VARIABLE

from .own_client import chunk, key_of
from .peers import Peer, running_peers
from .rows import Row, Timed, say
from .turns import WORKING_SET_BYTES

BENCH = Path(__file__).parents[1]
OWN = {
    "get": (
        "memcpy",
        "kvloom local",
        "kvloom local x32",
        "kvloom local first",
        "kvloom local x32 first",
        "kvloom local untouched",
        "kvloom local + copy",
        "kvloom http",
    ),
    "put": ("kvloom local", "kvloom http"),
    "contains_many": ("kvloom local", "kvloom http"),
}
PEERS = {
    "get": ("redis", "mooncake", "lmcache", "lmcache fs"),
    "put": ("redis", "mooncake", "lmcache", "lmcache fs"),
    "contains_many": ("redis", "mooncake"),
}
KEYS_BYTES = 32_000
"""Of a question about 1,000 keys."""
START_SECONDS_MAX = 120.0
"""For all clients of a subject together: one of LMCache takes 4 s of a core and 340 MB."""
TURN_SECONDS_MAX = 60.0
"""Beyond the turn itself."""


class Stuck(Exception):
    """Clients of a subject ended, or took too long, and what they were doing."""


class Clients:
    """Some client processes of one subject, started once and set to work together."""

    def __init__(self, command: list[str], timed: Timed, servers: tuple[psutil.Process, ...]) -> None:
        self.timed = timed
        self._servers = servers
        path = os.pathsep.join((str(BENCH), os.environ.get("PYTHONPATH", "")))
        environment = os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is gone with the clients
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment,
            )
            for _ in range(timed.clients)
        ]

    def await_ready(self) -> None:
        """All of them have done what is timed once; :class:`Stuck` where they do not get there."""
        with self._at_most(START_SECONDS_MAX):
            for process in self._processes:
                if not any(line == "ready\n" for line in process.stdout):
                    why = f"{self.timed.clients} clients did not start within {START_SECONDS_MAX:.0f} s"
                    raise Stuck(f"{why}: {self._last_words()}")

    def measure(self, seconds: float) -> None:
        """One turn; :class:`Stuck` where it does not end."""
        before, start = self._server_cpu(), time.perf_counter()
        with self._at_most(seconds + TURN_SECONDS_MAX):
            try:
                for process in self._processes:
                    process.stdin.write(f"{seconds}\n")
                    process.stdin.flush()
                results = [json.loads(process.stdout.readline()) for process in self._processes]
            except (OSError, ValueError) as error:
                why = f"a client ended, or a turn took more than {TURN_SECONDS_MAX:.0f} s"
                raise Stuck(f"{why}: {self._last_words()}") from error
        wall_seconds = time.perf_counter() - start - sum(each["preparing"] for each in results) / len(results)
        cpu_seconds = self._server_cpu() - before + sum(result["cpu"] for result in results)
        latencies = [latency for result in results for latency in result["seconds"]]
        self.timed.add(latencies, wall_seconds, cpu_seconds, sum(result["bytes"] for result in results))

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        with self._at_most(TURN_SECONDS_MAX):
            for process in self._processes:
                process.wait()

    def kill(self) -> None:
        """End the processes, whatever they do."""
        for process in self._processes:
            process.kill()
        self.stop()

    @contextlib.contextmanager
    def _at_most(self, seconds: float) -> Iterator[None]:
        """Kill the clients if this takes longer."""
        timer = threading.Timer(seconds, lambda: [process.kill() for process in self._processes])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-200:].decode(errors="replace").strip()

    def _server_cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._servers)


@contextlib.contextmanager
def running_daemon(directory: Path) -> Iterator[psutil.Process]:
    """A daemon with memory only; clients started meanwhile find it."""
    os.environ[DATA_DIR_VARIABLE] = str(directory)
    memory = f"{16 * WORKING_SET_BYTES}"  # eight clients hold 32 chunks of 4 MiB at a time, and may hold half of it
    command = [sys.executable, "-m", "kvloom.daemon.cli", "serve", "--port", "0", "--memory", memory, "--ssd", "off"]
    process = subprocess.Popen([*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True)
    try:
        while '"ready"' not in (line := process.stderr.readline()):
            if not line:
                raise SystemExit("the daemon did not start")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def rows(
    *, seconds: float, rounds: int, values: tuple[int, ...], clients: tuple[int, ...], absent: dict[str, str]
) -> Iterator[Row]:
    """Measure everything; rows of one table stand together. ``absent`` is told which peers are not here, and why."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running_peers(absent) as peers,
        running_daemon(Path(directory) / "data") as daemon,
    ):
        plan = (seconds, rounds)
        yield from _turns("contains_many", KEYS_BYTES, 1, 1000, plan, daemon, peers, absent)
        for value_bytes in values:
            count = max(1, WORKING_SET_BYTES // value_bytes)
            _fill(value_bytes, count, peers, absent)
            for number in clients:
                yield from _turns("get", value_bytes, number, count, plan, daemon, peers, absent)
                yield from _turns("put", value_bytes, number, count, plan, daemon, peers, absent)


def _fill(value_bytes: int, count: int, peers: dict[str, Peer], absent: dict[str, str]) -> None:
    """Put the working set into every store; a peer that cannot take it drops out."""
    say(f"local: filling every store with {count} values of {value_bytes} bytes")
    with KvloomClient() as client:
        for number in range(count):
            client.delete(key_of(number))
            client.put(key_of(number), chunk(number, value_bytes))
    for subject, peer in list(peers.items()):
        command = peer.command("fill", value_bytes, count)
        try:
            filled = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            why = f"it was not filled within {START_SECONDS_MAX:.0f} s"
        else:
            why = "" if "ready" in filled.stdout else (filled.stderr or filled.stdout).strip()[-200:]
        if why:
            absent[f"{subject}, {value_bytes} bytes"] = why
            say(f"left out: {subject}: {why}")
            del peers[subject]


def _turns(
    what: str,
    value_bytes: int,
    clients: int,
    values: int,
    plan: tuple[float, int],
    daemon: psutil.Process,
    peers: dict[str, Peer],
    absent: dict[str, str],
) -> Iterator[Row]:
    seconds, rounds = plan
    everybody: list[Clients] = []
    wanted: list[tuple[list[str], Timed, tuple[psutil.Process, ...]]] = []
    for subject in OWN[what]:
        command = [sys.executable, "-m", "store_bench.own_client", what, subject, str(value_bytes), str(values)]
        servers = () if subject == "memcpy" else (daemon,)
        wanted.append((command, Timed(what, subject, value_bytes, clients), servers))
    for subject in PEERS[what]:
        if subject in peers:
            peer = peers[subject]
            timed = Timed(what, subject, value_bytes, clients)
            wanted.append((peer.command(what, value_bytes, values), timed, peer.servers))
    about = f"{what} {value_bytes} bytes, {clients} clients"
    try:
        for command, timed, servers in wanted:  # one after the other: eight at once start as long as eighty do
            say(f"local: {about}: {timed.subject}")
            everybody.append(Clients(command, timed, servers))
            _drop_if_stuck(everybody, everybody[-1], everybody[-1].await_ready, about, absent)
        say(f"local: {about}: {rounds} rounds of {seconds} s for each of {len(everybody)}")
        for _ in range(rounds):
            for each in everybody.copy():
                _drop_if_stuck(everybody, each, partial(each.measure, seconds), about, absent)
    finally:
        for each in everybody:
            each.stop()
    for each in everybody:
        yield each.timed.row()


def _drop_if_stuck(
    everybody: list[Clients], each: Clients, work: Callable[[], None], about: str, absent: dict[str, str]
) -> None:
    """Do ``work`` of ``each``, which drops out where it gets stuck: no peer keeps the others from being measured."""
    try:
        work()
    except Stuck as error:
        absent[f"{each.timed.subject}, {about}"] = str(error)
        say(f"left out: {each.timed.subject}: {error}")
        everybody.remove(each)
        each.kill()
