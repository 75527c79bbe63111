"""``kvloom calibrate --put``: a profile that was learnt here is read back from a daemon process."""

import json

import pytest

from kvloom.codec.profiles import parse_profile
from kvloom.kvstore.outcome import Hit

pytestmark = pytest.mark.model


def test_put_sends_the_profile_to_the_daemon(start_daemon, tmp_path):
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=4096, **sizes)).save_pretrained(tmp_path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={item: index for index, item in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("A profile is what calibration learnt of one model. " * 20)
    daemon = start_daemon()
    out = tmp_path / "notes.kvlp"
    result = daemon.run(
        "calibrate",
        str(tmp_path),
        "--text",
        str(tmp_path / "notes.txt"),
        *("--tokens", "600", "--blend", "--trials", "1", "--out", str(out), "--put", "--json"),
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["put_to"] == str(daemon.endpoint)
    outcome = daemon.client().get_profile(bytes.fromhex(said["digest"]))
    assert isinstance(outcome, Hit)
    assert outcome.value == out.read_bytes()
    assert said["blend"]["prompts"] == 1
    assert (said["blend"]["ratio"] is None) == bool(said["blend"]["reason"])
    assert parse_profile(outcome.value).blend_gate
