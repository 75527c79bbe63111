"""The identity of a model: a digest of its weights and configuration, computed once per folder of weights."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from ...codec.layout import Layout
from ...errors import InvalidRequest
from ...kvstore.key import ModelIdentity
from .probing import model_layout

__all__ = ["model_identity"]

DIGEST_FILE = "kvloom-weights.json"
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "architectures", "use_cache")


def model_identity(
    model: Any, *, layout: Layout | None = None, adapter: str = "", salt: bytes = b"", folder: Path | None = None
) -> ModelIdentity:
    """The identity of ``model``: a digest of every weight and of the configuration, and its layout's.

    Hashing takes about a second per 2 GB. With ``folder`` the caller says that the weights are, unchanged, those of
    the safetensors files in it: their digest is kept there and read again while size, time and name of every file and
    name, shape and dtype of every tensor are the same.
    """
    config = {name: item for name, item in model.config.to_dict().items() if name not in _NOT_IDENTITY}
    hasher = blake3(json.dumps(config, sort_keys=True, default=str).encode())
    hasher.update(_weights_digest(model) if folder is None else _remembered_digest(model, folder))
    return ModelIdentity(hasher.digest(), (layout or model_layout(model)).digest(), adapter=adapter, salt=salt)


def _weights_digest(model: Any) -> bytes:
    """BLAKE3 of name, dtype, shape and bytes of every parameter and every buffer that is saved with the model."""
    hasher = blake3(max_threads=blake3.AUTO)
    for name, tensor in _weights(model):
        hasher.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        if flat.numel():
            hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.digest()


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters (tied ones once) and persistent buffers by name: what rotary modules recompute is not among them."""
    saved = model.state_dict().keys()
    yield from sorted(model.named_parameters(), key=lambda item: str(item[0]))
    yield from sorted((item for item in model.named_buffers() if item[0] in saved), key=lambda item: str(item[0]))


def _remembered_digest(model: Any, folder: Path) -> bytes:
    """:func:`_weights_digest`, kept in ``folder`` and taken from there while nothing tells the files have changed."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InvalidRequest(f"{folder} holds no safetensors files")
    hasher = blake3()
    for file in files:
        stat = file.stat()
        hasher.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\0".encode())
    for name, tensor in _weights(model):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
    state, kept = hasher.hexdigest(), folder / DIGEST_FILE
    try:
        remembered = json.loads(kept.read_bytes())
        if remembered["state"] == state:
            return bytes.fromhex(remembered["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not written yet, or not by us: hash again
    digest = _weights_digest(model)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as draft:
        json.dump({"state": state, "digest": digest.hex()}, draft)
    Path(draft.name).replace(kept)
    return digest
