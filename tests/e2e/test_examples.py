"""The examples run as they are written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "examples" / "tutorial.py"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tutorial_and_that_the_second_time_nothing_is_prefilled(start_daemon, smollm2, tmp_path):
    daemon = start_daemon()
    environ = {**os.environ, "KVLOOM_ADDRESS": str(daemon.endpoint), "KVLOOM_DATA_DIR": str(daemon.data_dir)}

    def run():
        found = subprocess.run(
            [sys.executable, TUTORIAL, "--folder", tmp_path],
            capture_output=True,
            text=True,
            env=environ,
            timeout=550,
        )
        assert found.returncode == 0, found.stderr[-2000:]
        return found.stdout

    first = run()
    assert "2. first: 0 of" in first
    assert "3. 3 of 3 documents" in first
    assert " 0 documents were there" in first
    assert "5. version 2" in first
    second = run()
    assert "2. first: 0 of" not in second, "another process has stored the prompt"
    assert "0 tokens prefilled, 3 documents were there" in second
