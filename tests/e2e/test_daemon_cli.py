"""The ``kvloom`` command as a person or a script runs it: what it prints, and how it ends."""

import json
import os
import subprocess

import pytest

import kvloom
from kvloom.codec.container import verify
from kvloom.codec.level import DRAFT, EXACT
from kvloom.daemon.cli import VERBS, cli

NOBODY = "127.0.0.1:1"


@pytest.fixture
def chunk_file(daemon, container_bytes, tmp_path):
    """A container in a file, whose key's digits nobody else's begin with."""
    profile = daemon.client().put_profile(b"a profile of the commands")
    key = os.urandom(32)
    file = tmp_path / "chunk.kvlc"
    file.write_bytes(container_bytes(content_key=key, layers=4, segment_bytes=500, profile_digest=profile))
    return file


@pytest.fixture
def stored(daemon, chunk_file):
    """The key of a chunk that the command has stored."""
    result = daemon.run("put", "--json", str(chunk_file))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)[0]["key"]


def test_put_stores_a_file_and_says_what_was_reached(daemon, chunk_file):
    result = daemon.run("put", str(chunk_file))
    assert (result.returncode, result.stdout) == (0, b"")
    assert b"disk" in result.stderr
    as_json = json.loads(daemon.run("put", "--ack", "memory", "--json", str(chunk_file)).stdout)
    assert as_json[0]["ack"] == "memory"
    assert as_json[0]["container_bytes"] == chunk_file.stat().st_size


def test_put_reads_standard_input(daemon, chunk_file):
    result = daemon.run("put", "--json", "-", data=chunk_file.read_bytes())
    assert json.loads(result.stdout)[0]["file"] == "-"


def test_get_writes_the_container_to_a_file_or_to_standard_output(daemon, chunk_file, stored, tmp_path):
    out = tmp_path / "out.kvlc"
    result = daemon.run("get", stored[:16], "-o", str(out))
    assert (result.returncode, out.read_bytes()) == (0, chunk_file.read_bytes())
    assert b"5 tokens" in result.stderr
    assert daemon.run("get", stored).stdout == chunk_file.read_bytes()


def test_get_of_a_level_and_layers(daemon, stored, tmp_path):
    out = tmp_path / "part.kvlc"
    result = daemon.run("get", stored, "--level", "draft", "--layers", "1-2", "-o", str(out), "--json")
    assert json.loads(result.stdout)["levels"] == ["draft"]
    header = verify(out.read_bytes(), content_key=bytes.fromhex(stored))
    assert (header.levels, header.layers) == ((DRAFT,), range(1, 3))


def test_ls_lists_what_is_stored(daemon, stored):
    assert stored[:12] in daemon.run("ls", stored[:8]).stdout.decode()
    assert daemon.run("ls", stored[:8], "--full").stdout.decode().split() == [stored]
    listed = json.loads(daemon.run("ls", "--json", stored[:8]).stdout)
    assert [item["key"] for item in listed["chunks"]] == [stored]
    assert listed["truncated"] is False
    assert b"there are more" in daemon.run("ls", "--limit", "1").stderr or len(listed["chunks"]) == 1


def test_show_tells_levels_and_sizes(daemon, stored):
    shown = daemon.run("show", stored[:10]).stdout.decode()
    for word in (stored, "draft", "economy", "exact", "4 layers of float32", "memory, ssd"):
        assert word in shown
    assert [item["level"] for item in json.loads(daemon.run("show", stored, "--json").stdout)["levels"]] == [
        "draft",
        "economy",
        "exact",
    ]


def test_status_shows_every_tier(daemon, stored):
    shown = daemon.run("status").stdout.decode()
    assert f"kvloom {kvloom.__version__} at {daemon.endpoint}" in shown
    assert {line.split()[0] for line in shown.splitlines()[2:4]} == {"memory", "ssd"}
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert shown.splitlines()[-1] == "eviction: memory gittins, ssd gittins"
    assert json.loads(daemon.run("status", "--json").stdout)["phase"] == "ready"


def test_rm_forgets_and_says_what_was_not_there(daemon, stored):
    result = daemon.run("rm", stored[:16])
    assert (result.returncode, result.stderr.decode().split()) == (0, [stored[:12], "forgotten"])
    gone = daemon.run("rm", stored, "--json")
    assert (gone.returncode, json.loads(gone.stdout)) == (3, [{"key": stored, "deleted": False}])
    assert daemon.run("show", stored).returncode == 3


def test_bench_measures_and_leaves_nothing_behind(start_daemon, tmp_path):
    daemon = start_daemon("--memory", "512MiB", "--ssd", "1GiB")
    result = daemon.run("bench", "--seconds", "0.05", "--json", "--directory", str(tmp_path / "raw"))
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {(row["value_bytes"], row["clients"]) for row in rows if row["subject"] == "kvloom"} == {
        (size, clients) for size in (256 * 1024, 4096 * 1024) for clients in (1, 4)
    }
    assert {row["subject"] for row in rows} == {
        "kvloom, ack=disk",
        "kvloom, ack=memory",
        "kvloom",
        "raw write and fdatasync",
        "memory copy",
    }
    assert all(row["mb_per_s"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    assert daemon.client().list_chunks().chunks == ()
    assert list((tmp_path / "raw").iterdir()) == []


def test_doctor_finds_a_daemon_that_is_fine_and_one_that_is_gone(daemon):
    findings = {item["check"]: item for item in json.loads(daemon.run("doctor", "--json").stdout)}
    assert {"daemon", "native coder", "data directory", "disk", "memory", "open files", "clock"} <= set(findings)
    assert findings["daemon"]["state"] == "ok"
    assert findings["data directory"]["state"] == "ok"
    assert findings["eviction"]["detail"] == "memory: gittins, ssd: gittins"
    lost = daemon.run("doctor", "--address", NOBODY, "--json")
    found = {item["check"]: item for item in json.loads(lost.stdout)}
    assert (lost.returncode, found["daemon"]["state"]) == (1, "problem")
    assert found["daemon"]["fix"]
    assert "fix:" in daemon.run("doctor", "--address", NOBODY).stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("status", "--address", NOBODY), 4, "no daemon answers at 127.0.0.1:1: connection refused; start one with"),
        (("get", "0" * 64, "--address", NOBODY), 4, "no daemon answers"),
        (("ls", "--address", "host:port"), 2, "address 'host:port'"),
        (("get", "0" * 64), 3, "chunk 0000000000000000… is not stored"),
        (("show", "0" * 64), 3, "is not stored"),
        (("show", "00000000000000000000"), 3, "no stored chunk's key begins with"),
        (("show", "XYZ"), 2, "key 'XYZ' is neither 64 lower-case hexadecimal digits nor the first 4 or more"),
        (
            ("get", "0" * 64, "--level", "best"),
            2,
            "level 'best' is unknown; levels are draft, economy, standard, fine, exact",
        ),
        (("get", "0" * 64, "--layers", "x"), 2, "layers 'x' are not A-B"),
        (("put", "/nonexistent/file"), 2, "/nonexistent/file cannot be read: no such file or directory"),
        (("scrub", "--wait", "--address", NOBODY), 4, "no daemon answers at 127.0.0.1:1: connection refused"),
        (("top", "--once", "--address", NOBODY), 4, "no daemon answers"),
        (("bench", "--address", NOBODY), 4, "no daemon answers"),
        (("ls", "XYZ"), 2, "prefix 'XYZ' is not up to 64 lower-case hexadecimal digits"),
        (("fsck", "/proc"), 2, "/proc holds no SSD tier"),
        (("config", "explain", "--memory", "lots"), 2, "memory 'lots' is not a size such as 512MiB"),
        (("serve", "--host", "0.0.0.0"), 2, "host '0.0.0.0' is not a loopback address"),
        (("serve", "--memory", "lots"), 2, "memory 'lots' is not a size such as 512MiB"),
        (("serve", "--data-dir", "/proc/kvloom"), 2, "data directory /proc/kvloom cannot be made"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(daemon, arguments, status, says):
    result = daemon.run(*arguments)
    assert (result.returncode, result.stdout) == (status, b"")
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("kvloom: ")
    assert says in lines[0]


def test_with_json_an_error_is_json(daemon):
    result = daemon.run("status", "--address", NOBODY, "--json")
    assert (result.returncode, json.loads(result.stdout)["error"]) == (4, "daemon_unavailable")


def test_a_file_that_is_no_container_is_named(daemon, tmp_path):
    (tmp_path / "notes.txt").write_text("hello, this is not a container at all" * 10)
    result = daemon.run("put", str(tmp_path / "notes.txt"))
    assert result.returncode == 1
    assert b"notes.txt: container starts with b'hell', expected b'KVLC'" in result.stderr


def test_a_file_that_cannot_be_written_is_named(daemon, stored):
    result = daemon.run("get", stored, "-o", "/nonexistent/folder/x")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"kvloom: /nonexistent/folder/x: no such file or directory\n"


def test_output_into_a_closed_pipe_is_no_traceback(daemon, stored):
    environ = {**os.environ, "KVLOOM_DATA_DIR": str(daemon.data_dir)}
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        result = subprocess.run([*daemon.command, "ls", "--full"], stdout=closed, stderr=subprocess.PIPE, env=environ)
    assert b"Traceback" not in result.stderr


def test_a_level_that_is_not_stored_is_explained(daemon, container_bytes, tmp_path):
    key = os.urandom(32)
    daemon.client().put(key, container_bytes([EXACT], content_key=key))
    result = daemon.run("get", key.hex(), "--level", "economy", "-o", str(tmp_path / "x"))
    assert result.returncode == 3
    assert b"is not stored at level economy; stored: exact" in result.stderr
    assert not (tmp_path / "x").exists()


def test_a_container_is_not_written_into_json_output(daemon, stored):
    result = daemon.run("get", stored, "--json")
    assert (result.returncode, json.loads(result.stdout)["error"]) == (2, "invalid_request")


def test_usage_errors_end_with_status_2(daemon):
    assert daemon.run("frobnicate").returncode == 2
    assert daemon.run("ls", "--limit", "0").returncode == 2
    assert daemon.run("rm").returncode == 2
    assert daemon.run("fsck", "/nonexistent").returncode == 2
    for wrong in ("nan", "-1", "0", "1e9", "soon"):
        for arguments in (("bench", "--seconds", wrong), ("top", "--once", "--interval", wrong)):
            result = daemon.run(*arguments)
            assert (result.returncode, result.stdout) == (2, b"")
            assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("name", [verb.name for verb in VERBS if verb.name != "demo"])
def test_every_verb_explains_itself_with_examples_in_80_columns(daemon, name):
    result = daemon.run(name, "--help", COLUMNS="80")
    text = result.stdout.decode()
    assert result.returncode == 0
    assert "Examples:\n    kvloom " in text
    assert "--json" in text or name == "completion"  # what that prints is for a program
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_command_lists_every_verb_and_its_version(daemon):
    text = daemon.run("--help").stdout.decode()
    for verb in VERBS:
        assert f"  {verb.name} " in text
        assert verb.line in text
    assert daemon.run("--version").stdout.decode() == f"kvloom {kvloom.__version__}\n"


def test_every_verb_in_the_list_exists():
    for verb in VERBS:
        if verb.name != "demo":
            assert cli.get_command(None, verb.name).name == verb.name
