"""The blending bench on a model small enough to run: what it measures, and that a killed run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEXTS = [
    f"Fact {n}: the colour of house {n} is {colour}. " * 4 for n, colour in enumerate(("red", "blue", "green", "grey"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a tokenizer of bytes, in a folder."""
    torch = pytest.importorskip("torch", reason="the model runs on torch")
    tokenizers = pytest.importorskip("tokenizers", reason="the bench reads fast tokenizers")
    transformers = pytest.importorskip("transformers", reason="the model is one of Transformers'")
    folder = tmp_path_factory.mktemp("model")
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    plain.train_from_iterator(TEXTS, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        initializer_range=0.3,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Two questions of MuSiQue's form."""
    items = [
        {
            "question": f"What is the colour of house {n}?",
            "answers": [colour],
            "ctxs": [{"title": f"House {m}", "text": text} for m, text in enumerate(TEXTS)],
        }
        for n, colour in ((1, "blue"), (3, "grey"))
    ]
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa/musique_100.json").write_text(json.dumps(items))
    return tmp_path


def bench(*arguments) -> str:
    """What ``bench/blend.py`` prints."""
    done = subprocess.run(
        [sys.executable, BENCH / "blend.py", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_every_strategy_has_its_row_and_a_killed_run_goes_on(model, data, tmp_path):
    shard, table = tmp_path / "shard.jsonl", tmp_path / "rows.json"
    arguments = (
        "--data", data, "--models", model, "--datasets", "musique", "--ratios", 0.2, 1.0, "--threads", 1,
        "--shard", shard, "--json", table,
    )  # fmt: skip
    printed = bench(*arguments, "--questions", 2)
    rows = {(row["strategy"], row["ratio"]): row for row in json.loads(table.read_text())}
    assert {name for name, _ in rows} >= {"full", "naive", "default", "cacheblend", "cache-craft", "epic", "ape"}
    assert all(f"| {name} | {ratio:.2f} |" in printed for name, ratio in rows)
    assert {row["n"] for row in rows.values()} == {2}
    assert rows["naive", 0.0]["gap_closed"] == 0.0
    assert rows["full", 1.0]["token_layer_cost"] == 1.0
    for name in ("default", "cacheblend", "cache-craft", "epic"):
        assert abs(rows[name, 1.0]["kl"]) <= 1e-6
        assert rows[name, 1.0]["first_token_agreement"] == 1.0
        assert rows[name, 0.2]["token_layer_cost"] < rows[name, 1.0]["token_layer_cost"]
        assert rows[name, 0.2]["kl_ci95"][0] <= rows[name, 0.2]["kl"] <= rows[name, 0.2]["kl_ci95"][1]
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    again = bench(*arguments, "--questions", 2)
    assert [json.loads(line)["strategy"] for line in shard.read_text().splitlines()] == [
        json.loads(line)["strategy"] for line in lines
    ]
    assert "musique 0: " in again
    assert ", 0 strategies" in again, "what stood in the file was not measured again"
    repeated = {(row["strategy"], row["ratio"]): row for row in json.loads(table.read_text())}
    assert {key: row["kl"] for key, row in repeated.items()} == pytest.approx(
        {key: row["kl"] for key, row in rows.items()}, abs=1e-7
    )
    summed = bench("--data", data, "--sum", shard)
    assert "full | 1.00 | 1.000 | 0.0000" in summed
