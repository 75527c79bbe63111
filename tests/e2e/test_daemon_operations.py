"""A daemon as its operators meet it: probes, service manager, draining, watching, completion."""

import http.client
import json
import os
import socket
import subprocess
import sys

import pytest

from kvloom.codec.level import EXACT
from kvloom.daemon.cli import VERBS

KVLOOM = (sys.executable, "-m", "kvloom.daemon.cli")


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """What systemd is to a daemon started from here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        yield receiver


def heard(manager, beginning):
    """The next message that begins so; how many watchdog beats came before it."""
    beats = 0
    while not (message := manager.recv(4096).decode()).startswith(beginning):
        assert message == "WATCHDOG=1"
        beats += 1
    return message, beats


def test_the_service_manager_hears_of_readiness_life_and_the_end(manager, start_daemon):
    daemon = start_daemon("--memory", "16MiB", "--ssd", "0")
    message, _ = heard(manager, "READY=1")
    assert f"STATUS=serving at {daemon.endpoint}" in message
    for _ in range(3):
        heard(manager, "WATCHDOG=1")
    assert daemon.stop() == 0
    assert "STATUS=finishing requests" in heard(manager, "STOPPING=1")[0]


def test_a_draining_daemon_finishes_what_it_has_and_takes_no_more(start_daemon, container_bytes):
    daemon = start_daemon("--memory", "16MiB", "--ssd", "64MiB")
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key)
    endpoint, token = daemon.endpoint, daemon.key
    assert daemon.ask("GET", "/readyz").status == 200
    slow = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=30)
    probe = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=30)
    slow.putrequest("PUT", f"/chunks/{key.hex()}")
    for name, value in {**token, "Content-Length": str(len(data)), "Expect": "100-continue"}.items():
        slow.putheader(name, value)
    slow.endheaders()
    assert slow.sock.recv(100).startswith(b"HTTP/1.1 100")  # the request is inside
    slow.send(data[:10])
    daemon.signal(15)
    while True:
        probe.request("GET", "/readyz")
        answer = probe.getresponse()
        body = json.loads(answer.read())
        if answer.status == 503:
            break
    assert "daemon is draining" in body["message"]
    assert answer.headers["Retry-After"] == "1"
    probe.request("GET", f"/chunks/{key.hex()}", headers=token)
    refused = probe.getresponse()
    assert (refused.status, json.loads(refused.read())["error"]) == (503, "overloaded")
    slow.send(data[10:])
    assert slow.getresponse().status == 201
    slow.close()
    probe.close()
    assert daemon.stop(0) == 0
    daemon.start()
    assert daemon.ask("GET", f"/chunks/{key.hex()}").body == data


def test_health_is_for_probes_without_a_key(daemon, tmp_path):
    answer = daemon.run("health", "--json")
    assert (answer.returncode, json.loads(answer.stdout)["phase"]) == (0, "ready")
    assert b": ready" in daemon.run("health", "--address", str(daemon.endpoint)).stdout
    assert daemon.run("health", KVLOOM_DATA_DIR=str(tmp_path), KVLOOM_ADDRESS="127.0.0.1:1").returncode == 4


def test_top_shows_once_what_happened_between_two_looks(daemon, container_bytes):
    key = os.urandom(32)
    daemon.ask("PUT", f"/chunks/{key.hex()}", container_bytes([EXACT], content_key=key))
    seen = json.loads(daemon.run("top", "--once", "--json", "--interval", "0.1").stdout)
    assert {tier["name"] for tier in seen["tiers"]} == {"memory", "ssd"}
    assert seen["seconds"] > 0
    assert all(0 <= tier["fill"] <= 1 and tier["breaker"] == "none" for tier in seen["tiers"])
    shown = daemon.run("top", "--once", "--interval", "0.1").stdout.decode()
    assert "memory" in shown
    assert "puts 0.0/s" in shown


def test_a_daemon_takes_its_settings_from_a_file(start_daemon, tmp_path):
    file = tmp_path / "kvloom.toml"
    file.write_text('memory = "9MiB"\nssd = "17MiB"\n')
    daemon = start_daemon("--config", str(file), "--ssd", "18MiB")
    stats = daemon.client().stats()
    assert {tier.name: tier.limit_bytes for tier in stats.tiers} == {"memory": 9 * 1024**2, "ssd": 18 * 1024**2}


def test_a_daemon_refuses_a_file_that_says_nothing_it_knows(tmp_path):
    file = tmp_path / "kvloom.toml"
    file.write_text('memroy = "9MiB"\n')
    result = subprocess.run([*KVLOOM, "serve", "--config", str(file)], capture_output=True, timeout=60)
    assert result.returncode == 2
    assert f"{file}:1: 'memroy' is not a setting; did you mean memory?" in result.stderr.decode()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_completion_script(daemon, shell):
    script = daemon.run("completion", shell).stdout.decode()
    assert f"{shell}_complete" in script
    assert "_KVLOOM_COMPLETE" in script
    assert daemon.run("completion", "tcsh").returncode == 2


def completed(*words):
    environ = {**os.environ, "_KVLOOM_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words))}
    environ["COMP_WORDS"] = " ".join(("kvloom", *words))
    command = [sys.executable, "-c", "from kvloom.daemon.cli import cli; cli(prog_name='kvloom')"]
    result = subprocess.run(command, env=environ, capture_output=True, timeout=60, text=True)
    return {line.split(",", 1)[1] for line in result.stdout.splitlines()}


def test_verbs_options_and_choices_complete():
    assert completed("") == {verb.name for verb in VERBS}
    assert {"--memory", "--config", "--log-level"} <= completed("serve", "--")
    assert completed("serve", "--log-level", "w") == {"warning"}
