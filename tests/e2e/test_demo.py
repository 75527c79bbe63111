"""The main job on the real model, small: what the demo promises must hold at any size."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def figures(tmp_path_factory, smollm2):
    target = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "kvloom.daemon.cli", "demo", "--documents", "8", "--questions", "2"]
    command += ["--json", str(target / "demo.json"), "--plot", str(target / "demo.svg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (target / "demo.svg").read_text().startswith("<?xml")
    return json.loads((target / "demo.json").read_text()), done.stdout


def test_the_json_has_what_was_promised(figures):
    report, _ = figures
    assert set(report["ttft_s"]) == {"recompute", "blend", "prefix"}
    assert all(seconds > 0 for seconds in report["ttft_s"].values())
    for name in ("first_token", "first_20"):
        assert set(report["agreement"][name]) == {"blend", "prefix"}
    assert set(report["kl"]) == {"blend", "prefix"}
    assert (report["documents"], report["questions"]) == (8, 2)


def test_nothing_acknowledged_was_lost(figures):
    report, _ = figures
    assert report["daemon_restarted"] is True
    killed = report["killed_in_mid_ingest"]
    assert killed["acknowledged"] == killed["found"] > 0


def test_quality(figures):
    report, _ = figures
    assert report["agreement"]["first_token"]["prefix"] == 1.0
    assert report["agreement"]["first_20"]["prefix"] == 1.0
    assert report["kl"]["prefix"] < 1e-6
    assert report["kl"]["blend"] < 0.5
    assert 0.8 < report["bits_per_value"] < 2.5


def test_it_says_so_in_words(figures):
    _, printed = figures
    for words in ("recompute everything", "load and blend", "load exact prefix", "bits per value", "memory tier"):
        assert words in printed
