"""Two network namespaces with one link between them, whose rate ``tc tbf`` sets. Linux, as root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAEMON_ADDRESS, ENGINE_ADDRESS = "10.77.0.1", "10.77.0.2"
BURST_SECONDS, BURST_BYTES_MIN = 0.004, 16_384
"""A bucket of what the kernel's clock lets pass between two ticks."""
QUEUE_SECONDS, QUEUE_BYTES_MIN = 0.05, 262_144
FRAME_SHARE = 1448 / 1514
"""What of a full Ethernet frame, as tbf counts it, is TCP's payload."""


class Link:
    """What is sent to the engine passes through one queue of the daemon's namespace."""

    def __init__(self, name: str) -> None:
        self.daemon, self.engine = f"{name}d", f"{name}e"
        self._device = f"v{name}"

    def inside(self, namespace: str, *command: str) -> list[str]:
        """The command line that runs ``command`` in a namespace."""
        return ["ip", "netns", "exec", namespace, *command]

    def set_rate(self, bits_per_s: float | None) -> None:
        """From now on, in mid-transfer too; ``None``: as fast as the machine is."""
        tc = ("tc", "qdisc")
        if bits_per_s is None:
            with suppress(subprocess.CalledProcessError):
                _run(*self.inside(self.daemon, *tc, "del", "dev", f"{self._device}d", "root"))
            return
        burst = max(BURST_BYTES_MIN, int(bits_per_s / 8 * BURST_SECONDS))
        queue = max(QUEUE_BYTES_MIN, int(bits_per_s / 8 * QUEUE_SECONDS))
        shape = ("tbf", "rate", f"{int(bits_per_s)}bit", "burst", str(burst), "limit", str(queue))
        _run(*self.inside(self.daemon, *tc, "replace", "dev", f"{self._device}d", "root", *shape))

    @property
    def received_file(self) -> str:
        """Where, within the engine's namespace, the bytes are counted that came over the link."""
        return f"/sys/class/net/{self._device}e/statistics/rx_bytes"


@contextmanager
def connected() -> Iterator[Link]:
    """A link; the namespaces go when it ends."""
    link = Link(f"kvl{os.getpid() % 100_000}")
    device = link._device
    try:
        for namespace in (link.daemon, link.engine):
            _run("ip", "netns", "add", namespace)
        _run("ip", "link", "add", f"{device}d", "netns", link.daemon, "type", "veth", "peer", "name", f"{device}e",
             "netns", link.engine)  # fmt: skip
        for namespace, end, address in (
            (link.daemon, "d", DAEMON_ADDRESS),
            (link.engine, "e", ENGINE_ADDRESS),
        ):
            ip = ("ip", "-n", namespace)
            _run(*ip, "addr", "add", f"{address}/24", "dev", f"{device}{end}")
            _run(*ip, "link", "set", f"{device}{end}", "up")
            _run(*ip, "link", "set", "lo", "up")
        yield link
    finally:
        for namespace in (link.daemon, link.engine):
            if Path("/run/netns", namespace).exists():
                _run("ip", "netns", "del", namespace)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
