"""Where a daemon runs."""

import subprocess
import sys

import pytest

from kvloom.daemon.machine import require_linux
from kvloom.errors import ConfigError


def test_linux_is_taken():
    require_linux("linux")


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_elsewhere_the_daemon_says_so_and_that_clients_work(platform):
    with pytest.raises(ConfigError, match=f"this is {platform}; clients work here, over HTTP and gRPC"):
        require_linux(platform)


PRETEND = """
import sys
from kvloom.daemon import machine
from kvloom.daemon.cli import main

machine.require_linux.__defaults__ = ("darwin",)
sys.argv = ["kvloom", "serve"]
main()
"""


def test_the_command_says_it_in_one_line():
    done = subprocess.run([sys.executable, "-c", PRETEND], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("kvloom: the daemon runs on Linux, this is darwin")
    assert len(done.stderr.splitlines()) == 1
