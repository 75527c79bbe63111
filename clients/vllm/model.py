"""What vLLM says of a model, as kvloom names it: layout, weights, adapters, images.

Read from vLLM's configuration objects, which are passed in: nothing here imports vLLM.
"""

import json
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from ... import limits
from ...codec.layout import AttentionKind, KvDtype, LayerLayout, Layout, Rope
from ...codec.level import EXACT, Level
from ...errors import ConfigError, UnsupportedModel
from ...kvstore.key import ModelIdentity
from ..sequence import Feature
from ..weights import weights_digest

__all__ = [
    "adapter_name",
    "block_tokens_of",
    "check_blendable",
    "check_supported",
    "engine_name",
    "features_of",
    "group_of_layers",
    "layer_order",
    "layouts_of",
    "model_fingerprint",
    "salt_bytes",
    "with_request",
]

_FORMAT = b"kvloom vllm 1"
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "architectures", "use_cache")
_WHOLE = "full_attention"
_STATIC_ROPES = ("default", "linear", "llama3", "yarn", "proportional")


def check_supported(config: Any) -> None:
    """Raise for what would put wrong or unknown KV into the store: ways to run that no test of ours has shown."""
    parallel = config.parallel_config
    for name, what in (
        ("pipeline_parallel_size", "pipeline parallelism"),
        ("decode_context_parallel_size", "context parallelism"),
        ("prefill_context_parallel_size", "context parallelism"),
    ):
        if (getattr(parallel, name, 1) or 1) > 1:
            raise ConfigError(f"{name} is {getattr(parallel, name)}: kvloom does not support {what} yet")
    if config.kv_transfer_config.kv_load_failure_policy != "recompute":
        raise ConfigError(
            'kv_load_failure_policy is "fail": a daemon that dies would fail requests; '
            'set "kv_load_failure_policy": "recompute" in --kv-transfer-config'
        )
    speculative = config.speculative_config
    if speculative is not None and speculative.method not in ("ngram", "suffix"):
        raise ConfigError(f"speculative decoding by {speculative.method} keeps KV of a second model: not supported yet")


def check_blendable(config: Any, groups: int, load_format: str) -> None:
    """Raise :class:`ConfigError` where documents cannot be blended with the engine's own weights."""
    if config.load_config.load_format != load_format:
        raise ConfigError(
            f"blend needs the engine's weights: pass --load-format {load_format}, not {config.load_config.load_format}"
        )
    if config.parallel_config.tensor_parallel_size > 1:
        raise ConfigError(f"blend with {config.parallel_config.tensor_parallel_size} ranks is not supported yet")
    if groups > 1:
        raise ConfigError(f"blend with {groups} groups of KV caches is not supported yet")
    if config.lora_config is not None:
        raise ConfigError("blend with LoRA adapters is not supported yet")


def layer_order(names: Iterable[str]) -> list[str]:
    """Layers in the order of their numbers, the same in every process of an engine."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def layouts_of(kv_cache_config: Any, config: Any) -> list[Layout]:
    """The layout of each rank's KV, of all groups; :class:`UnsupportedModel` for caches of other things."""
    specs = _specs(kv_cache_config)
    names = layer_order(specs)
    types = getattr(config.model_config.hf_text_config, "layer_types", None) or ()
    # Where all layers are kept in one group vLLM names the window of the short ones for each of them.
    whole = {name for name, kind in zip(names, types, strict=False) if len(types) == len(names) and kind == _WHOLE}
    layers = [_layer(name, specs[name], config, whole=name in whole) for name in names]
    dtypes = {str(spec.dtype).removeprefix("torch.") for spec in specs.values()}
    held = {KvDtype.FLOAT32.value, KvDtype.FLOAT16.value, KvDtype.BFLOAT16.value}
    if len(dtypes) != 1 or not dtypes <= held:
        raise UnsupportedModel(
            f"the KV cache is of {', '.join(sorted(dtypes))}: one of {', '.join(sorted(held))} is supported"
        )
    shards = config.parallel_config.tensor_parallel_size
    return [Layout(KvDtype(dtypes.copy().pop()), tuple(layers), rank, shards) for rank in range(shards)]


def block_tokens_of(kv_cache_config: Any, chunk_tokens: int) -> tuple[int, ...]:
    """Tokens of a block, by group of layers.

    Raises :class:`ConfigError` where a chunk's first tokens may have left the blocks of a layer with a short window
    before its last are computed.
    """
    groups = kv_cache_config.kv_cache_groups
    windows = [spec.sliding_window for spec in _specs(kv_cache_config).values() if getattr(spec, "sliding_window", 0)]
    if len(groups) > 1 and windows and min(windows) < chunk_tokens:
        raise ConfigError(
            f"chunk_tokens is {chunk_tokens}, longer than a window of {min(windows)} tokens: "
            f"set chunk_tokens to {min(windows)} or less, or pass --disable-hybrid-kv-cache-manager"
        )
    return tuple(group.kv_cache_spec.block_size for group in groups)


def group_of_layers(kv_cache_config: Any) -> dict[str, int]:
    """In which group of KV caches each layer is."""
    groups = kv_cache_config.kv_cache_groups
    return {name: index for index, group in enumerate(groups) for name in group.layer_names}


def engine_name(config: Any, fingerprint: bytes) -> str:
    """Under which name the planner knows what this engine costs: one model, on one machine, run in one way."""
    parallel = config.parallel_config
    host = "".join(letter if "!" <= letter <= "~" else "-" for letter in platform.node())[:64]
    return f"vllm/{host}/{fingerprint.hex()[:16]}/{parallel.tensor_parallel_size}"


def _specs(kv_cache_config: Any) -> dict[str, Any]:
    """What each layer keeps."""
    found: dict[str, Any] = {}
    for group in kv_cache_config.kv_cache_groups:
        specs = getattr(group.kv_cache_spec, "kv_cache_specs", None)
        found |= {name: group.kv_cache_spec if specs is None else specs[name] for name in group.layer_names}
    return found


def _layer(name: str, spec: Any, config: Any, *, whole: bool) -> LayerLayout:
    kind = type(spec).__name__
    if kind not in ("FullAttentionSpec", "SlidingWindowSpec") or spec.head_size != spec.head_size_v:
        raise UnsupportedModel(f"{name} has a KV cache of kind {kind}, keys and values of every token are supported")
    window = 0 if whole else spec.sliding_window or 0
    attention = AttentionKind.SLIDING if window else AttentionKind.FULL
    rope = _rope(config.model_config.hf_text_config, spec.head_size)
    return LayerLayout(spec.num_kv_heads, spec.head_size, rope, attention, window)


def _rope(config: Any, head_dim: int) -> Rope | None:
    """The rotation of keys where it is the ordinary one of all layers; else None, and keys are coded as they are."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict) or parameters.get("rope_type") != "default":
        return None
    if parameters.get("mrope_section") or float(parameters.get("partial_rotary_factor") or 1.0) != 1.0:
        return None
    import torch  # here: the scheduler needs no tensors but these

    # As rotary modules form them, in float32: a profile that was learnt with Transformers names the same frequencies.
    powers = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    return Rope(tuple((1.0 / (float(parameters["rope_theta"]) ** powers)).double().tolist()))


def model_fingerprint(config: Any, level: Level = EXACT, given: bytes | None = None) -> bytes:
    """The digest of everything but tokens and layout that shapes the KV; ``given`` stands for the weights.

    What is computed after KV that was loaded at a lossy ``level`` is not what the model makes of the tokens, so it has
    another name: an engine at ``exact`` never meets it.
    """
    model = config.model_config
    described = {name: item for name, item in model.hf_config.to_dict().items() if name not in _NOT_IDENTITY}
    rope = getattr(model.hf_text_config, "rope_parameters", None) or {}
    changing = not isinstance(rope, dict) or rope.get("rope_type") not in _STATIC_ROPES
    settings = {
        "compute_dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "level": str(level),
        "longest": model.max_model_len if changing else 0,  # some rotations go by the longest sequence there may be
    }
    hasher = blake3(_FORMAT)
    for part in (described, settings):
        data = json.dumps(part, sort_keys=True, default=str).encode()
        hasher.update(len(data).to_bytes(8, "little") + data)
    hasher.update(given if given is not None else weights_digest(_weights_folder(model)))
    return hasher.digest()


def with_request(identities: Sequence[ModelIdentity], *, adapter: str, salt: bytes) -> list[ModelIdentity]:
    """The identities for a request with an adapter and a salt."""
    return [ModelIdentity(item.fingerprint, item.layout_digest, adapter, salt) for item in identities]


def salt_bytes(salt: str | None) -> bytes:
    """The ``cache_salt`` of a request as a field of the key: a long one by its digest."""
    data = (salt or "").encode()
    return data if len(data) <= limits.SALT_BYTES_MAX else blake3(data).digest()


def adapter_name(lora: Any) -> str | None:
    """What names a LoRA in the key: its weights. The number vLLM gives it means nothing elsewhere, and a name can lie.

    Empty without one, None where its files cannot be read: KV of such requests is neither stored nor loaded.
    """
    if lora is None:
        return ""
    folder = Path(lora.lora_path)
    try:
        described = (folder / "adapter_config.json").read_bytes()
        return blake3(weights_digest(folder) + described).hexdigest()
    except (OSError, ConfigError):
        return None


def features_of(request: Any) -> list[Feature]:
    """The images and sounds of a request's prompt, by their digests."""
    found = []
    for item in request.mm_features:
        position = item.mm_position
        digest = blake3(f"{item.modality}\0{item.identifier}".encode()).digest()
        found.append(Feature(digest, position.offset, position.offset + position.length))
    return found


def _weights_folder(model: Any) -> Path:
    path = Path(model.model)
    if path.exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ConfigError(
            f"the weights of {model.model!r} are in no folder here, so they cannot be told from others: "
            "say which they are with the setting fingerprint (64 hexadecimal digits of your choice)"
        ) from error
