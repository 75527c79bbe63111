"""Sockets that a service manager passes: one of TCP that listens where the configuration says, or an error."""

import contextlib
import os
import socket

import pytest

from kvloom.daemon.passed_socket import passed_listener
from kvloom.errors import ConfigError

MINE = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}


@pytest.fixture
def pass_on():
    """A function that makes a socket's descriptor somebody else's."""
    passed = []

    def pass_on(made: socket.socket) -> int:
        passed.append(made.detach())
        return passed[-1]

    yield pass_on
    for descriptor in passed:
        with contextlib.suppress(OSError):  # taken over, as it should be
            os.close(descriptor)


def test_one_that_listens_is_taken_over_and_is_for_no_child(pass_on):
    made = socket.create_server(("127.0.0.1", 0))
    address = made.getsockname()
    descriptor = pass_on(made)
    with passed_listener(MINE, host="127.0.0.1", first=descriptor) as found:
        assert found.getsockname() == address
        assert found.fileno() == descriptor
        assert not found.get_inheritable()
        socket.create_connection(address, timeout=20).close()


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {**MINE, "LISTEN_FDS": "0"}, {"LISTEN_PID": "x"}],
)
def test_what_was_meant_for_nobody_or_another_process_is_left_alone(environ):
    assert passed_listener(environ, host="127.0.0.1") is None


def refused(pass_on, made, host="127.0.0.1", says="", environ=MINE):
    descriptor = pass_on(made)
    with pytest.raises(ConfigError, match=says):
        passed_listener(environ, host=host, first=descriptor)
    os.fstat(descriptor)  # it was not taken


def test_what_http_cannot_be_served_on_is_refused(pass_on, tmp_path):
    refused(pass_on, socket.socket(), says="does not listen")
    refused(pass_on, socket.socket(type=socket.SOCK_DGRAM), says="not one of TCP")
    refused(pass_on, socket.socket(socket.AF_UNIX), says="not one of TCP")
    for count in ("2", "999", "x"):
        refused(pass_on, socket.socket(), says="sockets were passed", environ={**MINE, "LISTEN_FDS": count})


def test_a_port_for_everybody_is_not_taken_for_one_of_this_machine(pass_on):
    """A daemon on loopback needs no TLS and no keys: a socket must not make it serve others."""
    refused(pass_on, socket.create_server(("0.0.0.0", 0)), host="127.0.0.1", says=r"listens on 0\.0\.0\.0, host says")
    refused(pass_on, socket.create_server(("127.0.0.1", 0)), host="0.0.0.0", says="host says 0")


def test_a_descriptor_that_is_no_socket_is_said_so(tmp_path):
    with (tmp_path / "file").open("wb") as file, pytest.raises(ConfigError, match="is no socket"):
        passed_listener(MINE, host="127.0.0.1", first=file.fileno())
    with pytest.raises(ConfigError, match="is no socket"):
        passed_listener(MINE, host="127.0.0.1", first=9999)
