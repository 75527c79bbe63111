"""Real servers for the network tiers: processes of their own on free loopback ports, ended whatever happens.

A server whose program or package is not on this machine skips the tests that ask for it, and says what is missing.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_SECONDS_MAX = 30
S3_BUCKET = "kvloom-tests"
S3_ENVIRON = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_REGION": "us-east-1",
}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and whose cluster port (10,000 higher) exists."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            if listener.getsockname()[1] < 50_000:
                ports.append(listener.getsockname()[1])
    return ports


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Ask again and again; fail after a bounded time."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {START_SECONDS_MAX} s"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether a connection to ``port`` is accepted."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class ServerProcess:
    """A server that may be killed and started again at its port."""

    command: Sequence[str]
    port: int
    directory: Path
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None

    def start(self) -> "ServerProcess":
        """Start it and wait until it accepts connections."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                env={**os.environ, **self.environ},
            )  # fmt: skip
        wait_until(lambda: self.ready() or self.process.poll() is not None, f"{self.command[0]} starts")
        assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
        return self

    def ready(self) -> bool:
        """Whether it accepts connections."""
        return listens(self.port)

    def signal(self, number: int) -> None:
        """Stop it, or let it go on."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class ValkeyServer(ServerProcess):
    """``valkey-server`` or ``redis-server``, with nothing on disk."""

    def ask(self, *command: str) -> str:
        """One inline command, the first line of the reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(" ".join(command).encode() + b"\r\n")
            return connection.makefile("rb").readline().decode().strip()

    def ready(self) -> bool:
        """Whether it answers, too."""
        return super().ready() and self.ask("PING")[:7] in ("+PONG", "-NOAUTH")


@dataclass
class ValkeyCluster:
    """Three primaries without replicas."""

    nodes: list[ValkeyServer]

    @property
    def hosts(self) -> str:
        """As they stand in the line of configuration."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)


def make_valkey(directory: Path, *flags: str, port: int | None = None) -> ValkeyServer:
    """A server that is not started yet."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        pytest.skip("needs valkey-server or redis-server (Debian: redis-server)")
    if importlib.util.find_spec("valkey") is None:
        pytest.skip("needs kvloom[valkey]")
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_ports(1)[0]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", *flags]
    return ValkeyServer(command, port, directory)


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One server that many tests share, each under a prefix of its own."""
    server = make_valkey(tmp_path_factory.mktemp("valkey"))
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture
def start_valkey(tmp_path: Path) -> Iterator[Callable[..., ValkeyServer]]:
    """A function that starts servers of the test's own."""
    started: list[ValkeyServer] = []

    def start(*flags: str) -> ValkeyServer:
        started.append(make_valkey(tmp_path / f"valkey{len(started)}", *flags))
        return started[-1].start()

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """A cluster of three; a test that kills a node starts it again."""
    flags = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
    directory = tmp_path_factory.mktemp("cluster")
    nodes = [
        make_valkey(directory / str(port), *flags, port=port) for port in free_ports(3)
    ]  # fmt: skip
    try:
        for index, node in enumerate(nodes):
            node.start()
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(index * 16384 // 3), str((index + 1) * 16384 // 3 - 1))
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(index + 1))
        for node in nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port))
        wait_until(lambda: all(whole(node) for node in nodes), "the cluster forms")
        yield ValkeyCluster(nodes)
    finally:
        for node in nodes:
            node.kill()


def whole(node: ValkeyServer) -> bool:
    """Whether ``node`` knows who has each of the slots."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
        connection.sendall(b"CLUSTER INFO\r\nQUIT\r\n")
        text = connection.makefile("rb").read().decode()
    return "cluster_state:ok" in text and "cluster_slots_ok:16384" in text and "cluster_known_nodes:3" in text


@dataclass
class S3Server:
    """Moto's server, with one bucket."""

    process: ServerProcess

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.process.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a daemon needs to reach it."""
        return {**S3_ENVIRON, "AWS_ENDPOINT_URL": self.endpoint}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server that many tests share, each under a prefix of its own; the ``AWS_*`` variables point to it."""
    for module, name in (("moto", "moto[s3,server]"), ("obstore", "kvloom[s3]")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {name}")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = S3Server(ServerProcess(command, port, tmp_path_factory.mktemp("s3")))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environ.items():
            patch.setenv(name, value)
        try:
            server.process.start()
            import boto3

            boto3.client("s3", endpoint_url=server.endpoint).create_bucket(Bucket=S3_BUCKET)
            yield server
        finally:
            server.process.kill()


@dataclass
class MooncakeServers:
    """A master, and one process that lends memory to the pool."""

    master: ServerProcess
    segment: ServerProcess
    admin_port: int
    clients: list = field(default_factory=list)

    def client(self):
        """One client for many tiers of this process: making one takes a second."""
        if not self.clients:
            from kvloom.kvstore.network.address import parse_network
            from kvloom.kvstore.network.mooncake_client import set_up_client

            self.clients.append(set_up_client(parse_network(self.url("unused"))))
        return self.clients[0]

    def url(self, prefix: str) -> str:
        """The line of configuration."""
        return f"mooncake://127.0.0.1:{self.master.port}/{prefix}?admin={self.admin_port}&buffer=64MiB"


class SegmentProcess(ServerProcess):
    """Says when it is ready in its log."""

    def ready(self) -> bool:
        """Whether its memory is part of the pool."""
        return "serving" in (self.directory / "log").read_text()


SEGMENT = """
import os, sys, time
os.environ.update(MC_TCP_BIND_ADDRESS="127.0.0.1", MC_LOG_LEVEL="ERROR", GLOG_minloglevel="3")
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
code = store.setup("127.0.0.1", "P2PHANDSHAKE", 256 << 20, 16 << 20, "tcp", "", sys.argv[1])
print("serving" if code == 0 else f"failed {code}", flush=True)
parent = os.getppid()
while os.getppid() == parent:  # a run of all tests takes longer than any number of minutes set here
    time.sleep(1)
"""


@pytest.fixture(scope="session")
def mooncake_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooncakeServers]:
    """One store that many tests share, each under a prefix of its own."""
    yield from run_mooncake(tmp_path_factory.mktemp("mooncake"))


@pytest.fixture
def own_mooncake(tmp_path: Path) -> Iterator[MooncakeServers]:
    """A store of the test's own, whose master it may stop and kill."""
    yield from run_mooncake(tmp_path)


def run_mooncake(directory: Path) -> Iterator[MooncakeServers]:
    """Start both processes, and end them."""
    program = Path(sys.executable).with_name("mooncake_master")
    if not program.exists():
        pytest.skip("needs kvloom[mooncake]")
    loads = subprocess.run([sys.executable, "-c", "import mooncake.store"], capture_output=True, text=True)
    if loads.returncode:
        pytest.skip(f"mooncake cannot be loaded (Debian: libibverbs1 librdmacm1): {loads.stderr.strip()[-200:]}")
    rpc_port, admin_port = free_ports(2)
    command = [
        str(program), "--rpc_address=127.0.0.1", f"--rpc_port={rpc_port}", "--metrics_host=127.0.0.1",
        f"--metrics_port={admin_port}", "--default_kv_lease_ttl=500", "--client_ttl=30",
    ]  # fmt: skip
    places = [directory / "master", directory / "segment"]
    for place in places:
        place.mkdir()
    master = ServerProcess(command, rpc_port, places[0])
    segment = SegmentProcess([sys.executable, "-c", SEGMENT, f"127.0.0.1:{rpc_port}"], 0, places[1])
    try:
        master.start()
        segment.start()
        yield MooncakeServers(master, segment, admin_port)
    finally:
        segment.kill()
        master.kill()
