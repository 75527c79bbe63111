"""What vLLM says of a model becomes its name: what could change the KV changes it, and what is not known is refused."""

import os
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import pytest

from kvloom import limits
from kvloom.clients.vllm import model
from kvloom.codec.layout import AttentionKind, KvDtype
from kvloom.codec.level import EXACT, STANDARD
from kvloom.errors import ConfigError, UnsupportedModel


class FullAttentionSpec:
    """As vLLM's: the name of the class is what counts."""

    def __init__(self, **fields: Any) -> None:
        given = {
            "num_kv_heads": 3,
            "head_size": 64,
            "head_size_v": 64,
            "dtype": "torch.float32",
            "sliding_window": None,
        }
        self.__dict__.update({**given, **fields})


class SlidingWindowSpec(FullAttentionSpec):
    """Of layers that look back so far and no further."""


class MLAAttentionSpec(FullAttentionSpec):
    """One that is not supported."""


def caches(*specs: Any, names: tuple[str, ...] = ("model.layers.0.attn", "model.layers.1.attn")) -> Any:
    return Namespace(kv_cache_groups=[Namespace(kv_cache_spec=spec, layer_names=list(names)) for spec in specs])


def config(folder: Path, *, rope: Any = None, hf: Any = None, **fields: Any) -> Any:
    """The parts of a VllmConfig that are looked at."""
    described = {"hidden_size": 576, "rope_parameters": rope, **(hf or {})}
    told = {
        "dtype": "torch.float32",
        "quantization": None,
        "max_model_len": 2048,
        "cache_dtype": "auto",
        "policy": "recompute",
        "tensor": 1,
        "pipeline": 1,
        "method": None,
        "layer_types": None,
        **fields,
    }
    return Namespace(
        model_config=Namespace(
            model=str(folder),
            revision=None,
            hf_config=Namespace(to_dict=lambda: described),
            hf_text_config=Namespace(rope_parameters=rope, layer_types=told["layer_types"]),
            dtype=told["dtype"],
            quantization=told["quantization"],
            max_model_len=told["max_model_len"],
        ),
        cache_config=Namespace(cache_dtype=told["cache_dtype"]),
        parallel_config=Namespace(tensor_parallel_size=told["tensor"], pipeline_parallel_size=told["pipeline"]),
        kv_transfer_config=Namespace(kv_load_failure_policy=told["policy"]),
        speculative_config=None if told["method"] is None else Namespace(method=told["method"]),
    )


STATIC = {"rope_type": "llama3", "rope_theta": 1e5}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights, and a cache folder that is nobody's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(1000))
    return folder


def test_whatever_could_change_the_kv_changes_the_fingerprint(weights: Path) -> None:
    first = model.model_fingerprint(config(weights, rope=STATIC))
    assert first == model.model_fingerprint(config(weights, rope=STATIC))
    assert first == model.model_fingerprint(config(weights, rope=STATIC, max_model_len=4096))
    others = [
        model.model_fingerprint(config(weights, rope=STATIC), STANDARD),
        model.model_fingerprint(config(weights, rope=STATIC), EXACT, bytes(32)),
        model.model_fingerprint(config(weights, rope={**STATIC, "rope_theta": 1e6})),
        model.model_fingerprint(config(weights, rope=STATIC, hf={"hidden_size": 577})),
        model.model_fingerprint(config(weights, rope=STATIC, dtype="torch.bfloat16")),
        model.model_fingerprint(config(weights, rope=STATIC, quantization="awq")),
        model.model_fingerprint(config(weights, rope=STATIC, cache_dtype="fp8")),
    ]
    (weights / "model.safetensors").write_bytes(os.urandom(1000))
    others.append(model.model_fingerprint(config(weights, rope=STATIC)))
    assert len({first, *others}) == 1 + len(others)


def test_a_rotation_that_goes_by_the_longest_sequence_makes_it_part_of_the_name(weights: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e5}
    short, long = (model.model_fingerprint(config(weights, rope=rope, max_model_len=n)) for n in (2048, 4096))
    assert short != long


def test_the_digest_of_weights_is_remembered_and_wrong_memories_are_not_believed(weights: Path, tmp_path: Path) -> None:
    first = model.model_fingerprint(config(weights))
    (kept,) = (tmp_path / "cache" / "kvloom" / "weights").iterdir()
    kept.write_text("nonsense")
    assert model.model_fingerprint(config(weights)) == first


def test_weights_that_are_nowhere_have_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weights"):
        model.model_fingerprint(config(tmp_path))
    assert model.model_fingerprint(config(tmp_path), given=bytes(32))


def test_every_rank_has_a_layout_of_its_own_and_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = tuple(f"model.layers.{number}.attn" for number in (10, 9, 2))
    assert model.layer_order(names) == [names[2], names[1], names[0]]
    layouts = model.layouts_of(caches(FullAttentionSpec(sliding_window=512), names=names), config(tmp_path, tensor=3))
    assert [(layout.shard_rank, layout.shard_count) for layout in layouts] == [(0, 3), (1, 3), (2, 3)]
    assert len({layout.digest() for layout in layouts}) == 3
    layer = layouts[0].layers[0]
    assert (layouts[0].dtype, len(layouts[0].layers)) == (KvDtype.FLOAT32, 3)
    assert (layer.kv_heads, layer.head_dim, layer.rope) == (3, 64, None)
    assert (layer.attention, layer.window_tokens) == (AttentionKind.SLIDING, 512)


def mixed(window: int = 512) -> Any:
    """Layers 0 and 2 look at everything, layer 1 at a window."""
    groups = [
        Namespace(kv_cache_spec=FullAttentionSpec(block_size=16), layer_names=["layers.2.attn", "layers.0.attn"]),
        Namespace(kv_cache_spec=SlidingWindowSpec(block_size=32, sliding_window=window), layer_names=["layers.1.attn"]),
    ]
    return Namespace(kv_cache_groups=groups)


def test_groups_of_layers_make_one_layout_in_the_order_of_layers(tmp_path: Path) -> None:
    (layout,) = model.layouts_of(mixed(), config(tmp_path))
    assert [layer.window_tokens for layer in layout.layers] == [0, 512, 0]
    assert model.group_of_layers(mixed()) == {"layers.0.attn": 0, "layers.2.attn": 0, "layers.1.attn": 1}
    assert model.block_tokens_of(mixed(), 256) == (16, 32)


def test_one_group_of_all_layers_keeps_the_same_kv(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    one = caches(FullAttentionSpec(sliding_window=512), names=tuple(f"layers.{number}.attn" for number in range(3)))
    told = config(tmp_path, layer_types=kinds)
    assert model.layouts_of(one, told) == model.layouts_of(mixed(), told) == model.layouts_of(mixed(), config(tmp_path))


def test_a_window_shorter_than_a_chunk_is_refused_where_blocks_leave_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chunk_tokens to 128 or less"):
        model.block_tokens_of(mixed(window=128), 256)
    alone = caches(FullAttentionSpec(sliding_window=128, block_size=16))
    assert model.block_tokens_of(alone, 256) == (16,)


def test_an_engine_is_known_by_model_machine_and_ranks(tmp_path: Path) -> None:
    name = model.engine_name(config(tmp_path, tensor=2), bytes(32))
    assert name.startswith("vllm/")
    assert name.endswith("/0000000000000000/2")
    assert len(name) <= limits.ENGINE_NAME_CHARACTERS_MAX


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (caches(MLAAttentionSpec()), "MLAAttentionSpec"),
        (caches(FullAttentionSpec(head_size_v=32)), "keys and values"),
        (caches(FullAttentionSpec(dtype="torch.uint8")), "uint8"),
    ],
)
def test_a_cache_that_is_not_keys_and_values_by_token_is_refused(given: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=why):
        model.layouts_of(given, config(tmp_path))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"policy": "fail"}, '"kv_load_failure_policy": "recompute"'),
        ({"pipeline": 2}, "pipeline_parallel_size is 2"),
        ({"method": "eagle"}, "eagle"),
    ],
)
def test_ways_to_run_that_could_go_wrong_are_refused(fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    model.check_supported(config(tmp_path, method="ngram"))
    with pytest.raises(ConfigError, match=why):
        model.check_supported(config(tmp_path, **fields))


def test_an_adapter_is_known_by_its_weights_and_not_by_its_name(weights: Path, tmp_path: Path) -> None:
    assert model.adapter_name(None) == ""
    (weights / "adapter_config.json").write_text('{"lora_alpha": 16}')
    first = model.adapter_name(Namespace(lora_path=str(weights), lora_name="a", lora_int_id=1))
    assert first
    assert first == model.adapter_name(Namespace(lora_path=str(weights), lora_name="b", lora_int_id=2))
    (weights / "adapter_config.json").write_text('{"lora_alpha": 32}')
    assert first != model.adapter_name(Namespace(lora_path=str(weights), lora_name="a", lora_int_id=1))
    assert model.adapter_name(Namespace(lora_path=str(tmp_path / "nowhere"), lora_name="a", lora_int_id=1)) is None


def test_salts_are_told_apart_however_long() -> None:
    long = "s" * (limits.SALT_BYTES_MAX + 1)
    found = [model.salt_bytes(salt) for salt in (None, "a", "ä", long, long + "s")]
    assert len(set(found)) == len(found)
    assert all(len(salt) <= limits.SALT_BYTES_MAX for salt in found)
    assert found[0] == b""


def test_images_are_placed_by_their_digest() -> None:
    def request(identifier: str) -> Any:
        where = Namespace(offset=7, length=40)
        return Namespace(mm_features=[Namespace(modality="image", identifier=identifier, mm_position=where)])

    (one,), (other,) = model.features_of(request("cat")), model.features_of(request("dog"))
    assert (one.start, one.stop) == (7, 47)
    assert one.digest != other.digest


@pytest.mark.model
def test_the_rotation_is_the_one_that_transformers_gives_the_same_model(smollm2: Any) -> None:
    from kvloom.clients.transformers import model_layout

    text = smollm2.model.config
    seen = model_layout(smollm2.model)
    spec = FullAttentionSpec(num_kv_heads=text.num_key_value_heads, head_size=64)
    names = tuple(f"model.layers.{number}.self_attn" for number in range(text.num_hidden_layers))
    given = config(Path(), rope=text.rope_parameters)
    assert model.layouts_of(caches(spec, names=names), given) == [seen]
