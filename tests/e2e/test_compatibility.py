"""The compatibility table: what tests have shown is written down, and a page that says anything else is found out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci/compatibility.py"
TESTS = """
import functools, pytest
feature = functools.partial(pytest.mark.feature, "Engine", package="pytest", how="here")

@feature("works")
def test_it_works(): pass

@feature("works")
@feature("works twice")
def test_it_works_again(): pass

@feature("partly", how="there")
@pytest.mark.parametrize("number", [1, 2])
def test_partly(number):
    if number == 1: pytest.skip("no such number")

@feature("fails when it ends")
def test_an_end(ending): pass

@pytest.fixture
def ending():
    yield
    raise ValueError
"""
SETTINGS = "[pytest]\nmarkers =\n    feature: what a test shows\n"


def run_tests(folder: Path, records: Path, *arguments: str) -> None:
    (folder / "pytest.ini").write_text(SETTINGS)
    (folder / "test_engine.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "compatibility", "--compatibility", str(records), *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests/servers")}
    subprocess.run(command, cwd=folder, env=environ, check=False, stdout=subprocess.DEVNULL)


def shown(records: Path) -> dict[tuple[str, str], str]:
    return {
        (item["feature"], item["test"].rpartition("::")[2]): item["outcome"] for item in json.loads(records.read_text())
    }


def render(project: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script as it is in a project of its own."""
    script = project / ".ci/compatibility.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    (project / "docs/measurements").mkdir(parents=True, exist_ok=True)
    script.write_bytes(SCRIPT.read_bytes())
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def records(tmp_path: Path) -> Path:
    file = tmp_path / "build/compatibility.json"
    run_tests(tmp_path, file)
    return file


def test_every_phase_and_every_case_of_a_test_counts(records: Path) -> None:
    assert shown(records) == {
        ("works", "test_it_works"): "passed",
        ("works", "test_it_works_again"): "passed",
        ("works twice", "test_it_works_again"): "passed",
        ("partly", "test_partly"): "skipped",
        ("fails when it ends", "test_an_end"): "failed",
    }
    (partly,) = [item for item in json.loads(records.read_text()) if item["feature"] == "partly"]
    assert (partly["version"], partly["how"], partly["reason"]) == (pytest.__version__, "there", "no such number")


def test_a_run_of_some_tests_replaces_their_records_only(records: Path, tmp_path: Path) -> None:
    before = json.loads(records.read_text())
    run_tests(tmp_path, records, "-k", "again")
    assert json.loads(records.read_text()) == before


def test_the_page_says_what_was_shown_and_anything_else_is_found_out(records: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    assert "is not on the page" in render(project, "--check", records).stderr
    assert render(project, records).returncode == 0
    page = (project / "docs/COMPATIBILITY.md").read_text()
    assert f"| Engine | {pytest.__version__} | works | here | 2 tests |" in page
    assert "| *not run*: no such number |" in page
    assert "| **fails**: `test_an_end` |" in page
    assert render(project, "--check", records).returncode == 0

    (project / "docs/COMPATIBILITY.md").write_text(page.replace("2 tests", "3 tests"))
    assert "COMPATIBILITY.md is not what its records say" in render(project, "--check", records).stderr
    render(project, records)

    def changed(**fields: Any) -> subprocess.CompletedProcess[str]:
        ran = json.loads(records.read_text())
        ran[0].update(fields)
        other = tmp_path / "changed.json"
        other.write_text(json.dumps(ran))
        return render(project, "--check", other)

    assert "is skipped, was failed" in changed(outcome="skipped").stderr
    assert "did not run" in changed(test="another").stderr
    newer = changed(version="99")
    assert newer.returncode == 0
    assert "99 ran" in newer.stdout


def test_an_engine_that_cannot_run_here_keeps_its_lines(records: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    render(project, records)
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps([{**json.loads(records.read_text())[0], "engine": "Other"}]))
    assert render(project, elsewhere).returncode == 0
    page = (project / "docs/COMPATIBILITY.md").read_text()
    assert "| Other |" in page
    assert "| Engine |" in page
    checked = render(project, "--check", elsewhere)
    assert checked.returncode == 0
    assert "Engine was not run here" in checked.stdout


def test_without_records_the_script_says_where_they_come_from(tmp_path: Path) -> None:
    missing = render(tmp_path, tmp_path / "nothing.json")
    assert missing.returncode != 0
    assert "make test-vllm" in missing.stderr
