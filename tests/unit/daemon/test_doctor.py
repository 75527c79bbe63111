import os
import stat
from dataclasses import replace
from datetime import timedelta

import pytest

from kvloom.clients.discovery import DaemonNote, Endpoint
from kvloom.daemon import doctor
from kvloom.daemon.authenticator import utc_now
from kvloom.daemon.caller import Scope
from kvloom.daemon.credentials import new_key
from kvloom.daemon.credentials_file import CredentialsFile
from kvloom.daemon.doctor import State, diagnose
from kvloom.daemon.machine import Machine

GIB = 1024**3
HEALTHY = Machine(16 * GIB, 8 * GIB, 100 * GIB, 0, 65536)
NOBODY = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def huge_pages(tmp_path, monkeypatch):
    """What the kernel says of shared memory, as on a machine where all is well."""
    file = tmp_path / "shmem_enabled"
    file.write_text("always within_size [advise] never deny force\n")
    monkeypatch.setattr(doctor, "_SHARED_HUGE_PAGES", file)
    return file


@pytest.fixture
def data_dir(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


def found(data_dir, machine=HEALTHY, environ=None):
    return {item.check: item for item in diagnose(NOBODY, data_dir, machine, environ or {})}


def test_every_finding_that_is_not_fine_says_what_to_do(data_dir):
    data_dir.chmod(0o755)
    poor = Machine(GIB, GIB, 1000, 0, 256)
    doctor._SHARED_HUGE_PAGES.write_text("[never]")
    findings = found(data_dir, poor, {"KVLOOM_MEMROY": "1GiB"})
    bad = {name: item for name, item in findings.items() if item.state is not State.OK}
    assert {"daemon", "data directory", "disk", "open files", "huge pages", "environment"} <= set(bad)
    assert all(item.fix for item in bad.values())
    assert bad["environment"].fix == "did you mean KVLOOM_MEMORY?"
    assert f"chmod 700 {data_dir}" in bad["data directory"].fix


def test_a_healthy_machine_has_only_the_daemon_to_complain_of(data_dir):
    findings = found(data_dir, environ={"KVLOOM_MEMORY": "1GiB", "KVLOOM_ADDRESS": "x", "PATH": "/bin"})
    assert findings["daemon"].state is State.PROBLEM
    assert all(item.state is State.OK for name, item in findings.items() if name not in ("daemon", "native coder"))
    assert "environment" not in findings


def test_a_directory_that_is_not_there_yet_is_fine(tmp_path):
    assert found(tmp_path / "none")["data directory"].state is State.OK


def test_a_daemon_that_crashed_is_named(data_dir, monkeypatch):
    DaemonNote(Endpoint("127.0.0.1", 1), 2**22 + 1, "0.1.0").write(data_dir)
    assert f"pid {2**22 + 1}) is gone" in found(data_dir)["daemon"].fix


@pytest.mark.parametrize(("system", "state"), [("nfs4", State.PROBLEM), ("tmpfs", State.WARNING), ("ext4", State.OK)])
def test_file_systems_that_lose_or_break_the_database_are_named(data_dir, monkeypatch, system, state):
    monkeypatch.setattr(doctor, "_file_system", lambda path: system)
    assert found(data_dir)["data directory"].state is state


@pytest.mark.parametrize(
    ("mode", "state"), [("never", State.WARNING), ("deny", State.WARNING), ("within_size", State.OK)]
)
def test_huge_pages_that_are_off_for_shared_memory_are_named(data_dir, huge_pages, mode, state):
    huge_pages.write_text("always within_size advise never deny force".replace(mode, f"[{mode}]"))
    finding = found(data_dir)["huge pages"]
    assert finding.state is state
    assert (f"tee {huge_pages}" in finding.fix) is (state is State.WARNING)


def test_a_kernel_without_huge_pages_is_fine(data_dir, huge_pages):
    huge_pages.unlink()
    assert found(data_dir)["huge pages"].state is State.OK


def test_a_clock_behind_its_own_files_is_named(data_dir):
    file = data_dir / "file"
    file.write_bytes(b"")
    os.utime(file, (2**33, 2**33))
    assert found(data_dir)["clock"].state is State.WARNING


def test_a_disk_that_is_nearly_full_is_a_problem(data_dir):
    assert found(data_dir, replace(HEALTHY, disk_free_bytes=1000))["disk"].state is State.PROBLEM


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_a_problem(data_dir):
    data_dir.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert found(data_dir)["data directory"].state is State.PROBLEM


def test_keys_that_end_soon_and_files_that_do_not_hold_are_named(data_dir):
    assert found(data_dir)["keys"].state is State.OK
    file = CredentialsFile(data_dir / "credentials.toml")
    now = utc_now()
    made = [
        new_key(os.urandom(38), tenant="acme", scopes=[Scope.READ], now=now, expires=expires)
        for expires in (None, now + timedelta(days=6), now - timedelta(days=1))
    ]
    file.add(made[0])
    file.add(made[2])
    assert (found(data_dir)["keys"].state, "1 of 2 keys" in found(data_dir)["keys"].detail) == (State.OK, True)
    file.add(made[1])
    soon = found(data_dir)["keys"]
    assert soon.state is State.WARNING
    assert soon.detail.endswith(f"within a week end: {made[1].key.key_id} of acme")
    file.path.chmod(0o644)
    assert found(data_dir)["keys"].state is State.PROBLEM
    elsewhere = {"KVLOOM_CREDENTIALS": str(data_dir / "none")}
    assert found(data_dir, environ=elsewhere)["keys"].state is State.OK
