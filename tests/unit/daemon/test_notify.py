import asyncio
import os
import socket

import pytest

from kvloom.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket as a service manager has it, and what it is called in the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@kvloom-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(10)
        yield receiver, name


def test_what_is_said_arrives(manager):
    receiver, name = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": name})
    notifier.ready("serving at 127.0.0.1:7117")
    assert receiver.recv(4096).decode().splitlines() == [
        "READY=1",
        "STATUS=serving at 127.0.0.1:7117",
        f"MAINPID={os.getpid()}",
    ]
    notifier.stopping("draining")
    assert receiver.recv(4096) == b"STOPPING=1\nSTATUS=draining"


async def test_the_watchdog_hears_three_beats_in_its_time_until_the_end(manager):
    receiver, name = manager
    receiver.setblocking(False)
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environ(environ)
    assert notifier.watchdog_seconds == 0.03
    loop = asyncio.get_running_loop()
    async with notifier.beating():
        beats = [await loop.sock_recv(receiver, 100) for _ in range(4)]
    assert beats == [b"WATCHDOG=1"] * 4
    await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        receiver.recv(100)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "5000000"}, 5.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_only_a_watchdog_that_means_this_process_counts(environ, seconds):
    assert Notifier.from_environ(environ).watchdog_seconds == seconds


async def test_without_a_manager_nothing_is_said(tmp_path):
    for environ in ({}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "9"}):
        notifier = Notifier.from_environ(environ)
        notifier.ready("serving")
        async with notifier.beating():
            pass
        notifier.stopping("draining")


def test_a_manager_that_does_not_read_holds_up_nobody(tmp_path):
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        notifier = Notifier(name)
        for _ in range(2000):  # more than a queue of datagrams holds
            notifier.ready("serving")
