"""What a user gets: sdist and wheel built from a folder of any name, installed in an empty environment, and used.

These build and install for minutes, so ``make test`` leaves them to ``make wheel-check``.
"""

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import kvloom

pytestmark = [pytest.mark.package, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis"
)
COMPILER = shutil.which(os.environ.get("CXX", "c++")) is not None
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

# Run inside the installed environment: what does the codec run on, and which bytes does it make?
ENCODE = """
import hashlib, json, sys
import numpy as np
from kvloom import codec
from kvloom.codec.entropy import native
rng = np.random.default_rng(7)
layout = codec.Layout.uniform(layers=2, kv_heads=2, head_dim=16)
keys, values = rng.standard_normal((2, 2, 2, 64, 16)).astype(np.float32)
blob = codec.encode(keys, values, layout=layout, exact_packed=True)
again = codec.decode(blob)
assert all((np.asarray(a) == b).all() for a, b in zip(again[0], keys)) and len(blob) < keys.nbytes + values.nbytes
heavy = sorted({"torch", "transformers", "cupy"} & set(sys.modules))
json.dump({"native": native.AVAILABLE, "bytes": hashlib.sha256(blob).hexdigest(), "heavy": heavy}, sys.stdout)
"""

# Run inside the installed environment: a put and a get through the client that a user imports.
PUT_AND_GET = """
import sys
import numpy as np
from kvloom import codec
from kvloom.clients import KvloomClient
from kvloom.kvstore.key import ContextMarker, ModelIdentity, content_key
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.tier import Ack
layout = codec.Layout.uniform(layers=2, kv_heads=1, head_dim=8)
key = content_key(ModelIdentity(b"f" * 32, layout.digest()), [1, 2, 3], ContextMarker.START)
kv = np.arange(96, dtype=np.float32).reshape(2, 2, 1, 3, 8)
blob = codec.encode(*kv, layout=layout, content_key=key)
with KvloomClient() as client:
    assert isinstance(client.get(key), Miss)
    print(client.put(key, blob, ack=Ack.DISK).ack)
    outcome = client.get(key)
    assert isinstance(outcome, Hit), outcome
    assert bytes(outcome.value.data) == blob
"""


@dataclass(frozen=True, slots=True)
class Distribution:
    """One build: where it was built from, and what came out."""

    source: Path
    sdist: Path
    wheel: Path


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with kvloom's own dependencies and nothing else."""

    folder: Path
    home: Path

    def run(self, name: str, *arguments: str, **variables: str) -> str:
        """Run a command of the environment far from the source tree; its output, or a failure that shows it."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("KVLOOM_", "PYTHON"))}
        done = subprocess.run(
            [self.folder / "bin" / name, *arguments],
            cwd=self.home,
            env={**clean, "KVLOOM_DATA_DIR": str(self.home / "data"), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name} {arguments[:3]} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *what: str, **variables: str) -> None:
        """Install kvloom over whatever kvloom is there."""
        self.run("python", "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", *what, **variables)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """The sdist, and the wheel built from the sdist, of a copy whose folder is not called kvloom."""
    work = tmp_path_factory.mktemp("dist")
    source = work / "my clone-2.0"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    subprocess.run([sys.executable, "-m", "build", "--outdir", work / "out", source], check=True)
    (sdist,) = (work / "out").glob("*.tar.gz")
    (wheel,) = (work / "out").glob("*.whl")
    return Distribution(source, sdist, wheel)


@pytest.fixture(scope="module")
def empty(dist: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment made for this: the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder / "venv", with_pip=True)
    (folder / "home").mkdir()
    environment = Environment(folder / "venv", folder / "home")
    environment.run("python", "-m", "pip", "install", "--quiet", str(dist.wheel))
    return environment


def expected_modules() -> set[str]:
    folders = {name: ROOT.joinpath(*name.split(".")[1:]) for name in SETUP["packages"]}
    return {
        f"{name.replace('.', '/')}/{file.name}"
        for name, folder in folders.items()
        for file in folder.glob("*.py")
        if file != ROOT / "setup.py"
    }


def test_the_wheel_holds_the_package_and_nothing_else(dist: Distribution) -> None:
    names = [name for name in zipfile.ZipFile(dist.wheel).namelist() if ".dist-info/" not in name]
    data = {f"{package.replace('.', '/')}/{name}" for package, files in SETUP["package-data"].items() for name in files}
    native = {name for name in names if name.startswith("kvloom/codec/entropy/_native")}
    assert set(names) - native == expected_modules() | data
    assert len(native) == COMPILER
    assert "kvloom/py.typed" in names
    assert "kvloom/codec/entropy/rans.h" in names
    assert not [name for name in names if {"tests", "bench", "docs", "examples", "setup.py"} & set(name.split("/"))]


def test_the_metadata_say_what_it_is(dist: Distribution) -> None:
    archive = zipfile.ZipFile(dist.wheel)
    folder = f"kvloom-{kvloom.__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert metadata["Name"] == "kvloom"
    assert metadata["Version"] == kvloom.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert b"kvloom = kvloom.daemon.cli:main" in archive.read(f"{folder}/entry_points.txt")
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in needed if line.startswith(("torch", "transformers", "cupy"))]


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="free-threaded builds have no stable ABI")
def test_one_wheel_serves_every_python_from_3_11(dist: Distribution) -> None:
    assert "-cp311-abi3-" in dist.wheel.name
    assert [name for name in zipfile.ZipFile(dist.wheel).namelist() if "_native" in name] == (
        ["kvloom/codec/entropy/_native.abi3.so"] if COMPILER else []
    )


def test_the_sdist_holds_what_a_build_needs(dist: Distribution) -> None:
    with tarfile.open(dist.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {f"codec/entropy/{name}" for name in SETUP["package-data"]["kvloom.codec.entropy"]}
    assert names >= {"pyproject.toml", "setup.py", "README.md", "LICENSE", "py.typed", *native}
    assert names >= {name.removeprefix("kvloom/") for name in expected_modules()}


def test_the_wheel_works_in_an_empty_environment(dist: Distribution, empty: Environment) -> None:
    empty.install(str(dist.wheel))
    empty.run("python", "-m", "pip", "check")
    assert empty.run("kvloom", "--version").split() == ["kvloom", kvloom.__version__]
    assert Path(empty.run("python", "-c", "import kvloom; print(kvloom.__file__)").strip()).is_relative_to(empty.folder)
    assert json.loads(empty.run("python", "-c", ENCODE))["native"] is COMPILER
    installed = json.loads(empty.run("python", "-m", "pip", "list", "--format", "json"))
    assert not {"torch", "transformers", "cupy"} & {package["name"] for package in installed}


def test_serve_put_and_get_from_the_wheel(dist: Distribution, empty: Environment) -> None:
    empty.install(str(dist.wheel))
    data_dir = empty.home / "data"
    shutil.rmtree(data_dir, ignore_errors=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KVLOOM_", "PYTHON"))}
    with subprocess.Popen(
        [empty.folder / "bin" / "kvloom", "serve", "--port", "0", "--data-dir", data_dir, "--log-format", "json"],
        cwd=empty.home,
        env=clean,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            assert daemon.stderr is not None
            lines = []
            for line in daemon.stderr:  # the daemon says when it is ready; a test never sleeps to wait
                lines.append(line)
                if json.loads(line)["event"] == "ready":
                    break
            assert daemon.poll() is None, "".join(lines)
            assert empty.run("python", "-c", PUT_AND_GET).strip() == "disk"
            assert json.loads(empty.run("kvloom", "ls", "--json"))
            daemon.terminate()
            daemon.communicate(timeout=60)
        finally:
            daemon.kill()
    assert daemon.returncode == 0


def test_without_a_compiler_the_install_succeeds_and_makes_the_same_bytes(
    dist: Distribution, empty: Environment
) -> None:
    empty.install(str(dist.wheel))
    compiled = json.loads(empty.run("python", "-c", ENCODE))
    empty.install(str(dist.sdist), CC="/bin/false", CXX="/bin/false")
    reference = json.loads(empty.run("python", "-c", ENCODE))
    assert reference == {**compiled, "native": False}
    assert reference["heavy"] == []


def test_an_editable_install_follows_the_source(dist: Distribution, empty: Environment) -> None:
    empty.install("--editable", str(dist.source))
    assert json.loads(empty.run("python", "-c", ENCODE))["native"] is COMPILER
    where = Path(empty.run("python", "-c", "import kvloom.codec.layout as m; print(m.__file__)").strip())
    assert where == dist.source / "codec" / "layout.py"
    version = dist.source / "__init__.py"
    before = version.read_text()
    version.write_text(before.replace(kvloom.__version__, "9.9.9"))
    try:
        assert "9.9.9" in empty.run("kvloom", "--version")
    finally:
        version.write_text(before)
