"""Importing kvloom or its plain client loads nothing heavy: a program that only asks for a cache pays only for that."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "cupy", "accelerate", "gguf", "bm25s", "matplotlib", "constriction"}
SERVER = {"lmdb", "xxhash", "prometheus_client", "psutil", "rich", "structlog", "click"}
MODULES = "import json, sys; json.dump(sorted({name.partition('.')[0] for name in sys.modules}), sys.stdout)"


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in a fresh interpreter after ``statement``."""
    command = [sys.executable, "-c", f"{statement}\n{MODULES}"]
    return set(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


BASELINE = loaded_by("")  # some environments import things at start-up (coverage, .pth files)


@pytest.mark.parametrize(
    "statement",
    [
        "import kvloom",
        "import kvloom.clients",
        "from kvloom.clients import KvloomClient; KvloomClient('127.0.0.1:1')",
        "from kvloom.clients import AsyncKvloomClient",
        "import kvloom.codec",
        "import kvloom.kvstore.key",
    ],
)
def test_nothing_heavy_is_loaded(statement: str) -> None:
    loaded = loaded_by(statement) - BASELINE
    assert "kvloom" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "statement", ["import kvloom", "import kvloom.clients", "from kvloom.clients import KvloomClient"]
)
def test_a_client_does_not_load_the_daemon(statement: str) -> None:
    assert not loaded_by(statement) & (SERVER - BASELINE)


def test_the_package_itself_loads_only_the_standard_library() -> None:
    assert loaded_by("import kvloom") - BASELINE == {"kvloom"}


def test_the_ssd_tier_leaves_lmdb_to_the_process_of_its_index() -> None:
    assert "lmdb" not in loaded_by("import kvloom.kvstore.ssd.tier, kvloom.kvstore.ssd.fsck") - BASELINE


def test_the_version_and_help_do_not_load_a_web_server() -> None:
    command = "from kvloom.daemon.cli import cli; cli.main(['{}'], standalone_mode=False)"
    for flag in ("--version", "--help"):
        shown = f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): {command.format(flag)}"
        assert not loaded_by(shown) & (HEAVY | {"aiohttp", "xxhash"})
