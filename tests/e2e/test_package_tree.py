"""Rules of the house that neither ruff nor import-linter knows: they hold for every file, or the test names the one."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ROOMS = sorted({name.split(".")[1] for name in SETUP["packages"] if "." in name})
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "numpy.save", "np.save"}
EMPTY_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|misc|v1)(_|$)")


def python_files(*folders: str) -> list[Path]:
    found = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return sorted([*found, *ROOT.glob("*.py")])


OURS = python_files(*ROOMS)
EVERYTHING = python_files(*ROOMS, "tests", "bench", "examples", "docs")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or attribute, else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            names = [dotted(node.func)]
            if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                yield f"line {node.lineno}: allow_pickle"
        else:
            continue
        for name in names:
            if name.partition(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS:
                yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert list(unsafe_in(tree_of(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import pickle as p", "eval('1')", "exec('1')",
        "import torch\ntorch.load('x')", "from torch import load", "np.load('x', allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_rule_above_finds_what_it_looks_for(source: str) -> None:
    assert list(unsafe_in(ast.parse(source)))


def test_the_rule_above_lets_a_model_be_put_in_evaluation_mode() -> None:
    assert not list(unsafe_in(ast.parse("model.eval()\nre.compile('x')\nnp.load('x')")))


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_module_holds_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


def test_every_file_has_a_name_that_says_what_is_in_it() -> None:
    files = [path.relative_to(ROOT) for path in EVERYTHING]
    assert not [str(file) for file in files for part in (*file.parts[:-1], file.stem) if EMPTY_NAMES.search(part)]


def test_every_folder_of_a_room_is_a_package_that_is_installed() -> None:
    folders = {file.parent.relative_to(ROOT) for file in OURS}
    packages = {".".join(("kvloom", *folder.parts)) for folder in folders}
    assert packages == set(SETUP["packages"])
    assert [name_of(ROOT / folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
