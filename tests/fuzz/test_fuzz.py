"""The fuzz targets run for some cases, those of the compiled core with sanitizers; `make fuzz` runs a million."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "c++")
CASES = 10_000


@pytest.fixture(scope="module")
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where nothing can be built: no make, no compiler, or a compiler without the sanitizers' libraries."""
    for tool in ("make", "bash", COMPILER):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "nothing.cpp").write_text("int main() { return 0; }\n")
    command = [COMPILER, "-fsanitize=address,undefined", "-o", "nothing", "nothing.cpp"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"{COMPILER} has no sanitizer libraries: {built.stderr[-200:]}")
    if subprocess.run([folder / "nothing"], capture_output=True, check=False).returncode:
        pytest.skip("programs built with sanitizers do not run here")


@pytest.mark.slow
@pytest.mark.usefixtures("sanitizers")
def test_the_compiled_core_stays_in_bounds_and_all_paths_agree(tmp_path: Path) -> None:
    command = [
        "make",
        "-s",
        "-C",
        str(ROOT),
        "fuzz-native",
        f"FUZZ_CASES={CASES}",
        f"FUZZ_FOLDER={tmp_path}",
        f"CXX={COMPILER}",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.count(f"{CASES} cases ran")) == (0, 4), run.stdout + run.stderr


def test_hostile_containers_are_invalid_data_whatever_their_checksums_say(seed: int) -> None:
    command = [sys.executable, str(Path(__file__).parent / "fuzz_containers.py"), f"--cases={CASES}", f"--seed={seed}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    assert run.stdout.startswith(f"{CASES} cases")
