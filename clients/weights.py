"""Which model an engine runs, where it says only how it is called: a digest of its weights, or what stands for that."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from blake3 import blake3

from ..errors import ConfigError
from ..kvstore.atomic_file import replace_file
from ..kvstore.key import KEY_BYTES

__all__ = ["opaque_fingerprint", "parse_fingerprint", "weights_digest"]

_WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin", "*.pt")


def opaque_fingerprint(form: bytes, described: Mapping[str, Any], model: str, fingerprint: str | None) -> bytes:
    """The digest of what shapes an engine's own rows besides their tokens, for :class:`ModelIdentity`.

    ``form`` says whose rows these are, ``described`` (plain JSON) how and by how many workers they are laid out.
    ``fingerprint`` (64 hexadecimal digits) stands for weights and configuration; without it these are read where
    ``model`` is a folder or a file. Raises :class:`ConfigError` where it is neither.
    """
    parts = [json.dumps(described, sort_keys=True).encode()]
    if fingerprint is not None:
        parts.append(parse_fingerprint(fingerprint))
    else:
        place = Path(model)
        if not model or not place.exists():
            raise ConfigError(
                f"the model is {model!r}, whose weights are in no folder of that name: "
                "say which they are with fingerprint (64 hexadecimal digits of your choice)"
            )
        described_by = place / "config.json"
        parts += [weights_digest(place), described_by.read_bytes() if described_by.exists() else b""]
    hasher = blake3(form)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.digest()


def parse_fingerprint(digits: str) -> bytes:
    """What stands for a model's weights, from hexadecimal digits."""
    try:
        fingerprint = bytes.fromhex(digits)
    except ValueError as error:
        raise ConfigError(f"fingerprint is {digits[:80]!r}: {error}") from error
    if len(fingerprint) != KEY_BYTES:
        raise ConfigError(f"fingerprint has {len(fingerprint)} bytes, must have {KEY_BYTES}, in hexadecimal")
    return fingerprint


def weights_digest(folder: Path) -> bytes:
    """BLAKE3 of the files with weights in ``folder``, remembered in the user's cache while they are unchanged."""
    files = (
        [folder]
        if folder.is_file()
        else next((found for pattern in _WEIGHT_FILES if (found := sorted(folder.glob(pattern)))), [])
    )
    if not files:
        raise ConfigError(f"{folder} holds no weights ({', '.join(_WEIGHT_FILES)})")
    state = blake3()
    for file in files:
        stat = file.stat()
        state.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\0".encode())
    kept = Path(platformdirs.user_cache_dir("kvloom", appauthor=False)) / "weights" / state.hexdigest()
    try:
        return bytes.fromhex(kept.read_text())
    except (OSError, ValueError):
        pass  # not hashed yet
    hasher = blake3(max_threads=blake3.AUTO)
    for file in files:
        hasher.update(f"{file.name} {file.stat().st_size}\0".encode())
        hasher.update_mmap(file)
    kept.parent.mkdir(parents=True, exist_ok=True)
    replace_file(kept, hasher.hexdigest().encode())
    return hasher.digest()
