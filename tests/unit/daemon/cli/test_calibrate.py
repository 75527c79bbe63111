"""``kvloom calibrate``: what it reads, what it refuses before it starts, and what it writes."""

import json
import subprocess
import sys

import pytest

from kvloom.codec import KvDtype, LossyCodec, Profile, parse_profile
from kvloom.daemon.cli import main
from kvloom.kvstore.profiles import ProfileShelf

NOBODY = "127.0.0.1:1"
WORDS = "The quick brown fox jumps over the lazy dog while it rains in the north of the country. "


@pytest.fixture
def kvloom(monkeypatch, capsys):
    """``kvloom(*arguments)``: exit code, standard output and standard error of the command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kvloom", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return int(code), said.out, said.err

    return run


@pytest.fixture
def notes(tmp_path):
    """A plain text of 880 bytes."""
    file = tmp_path / "notes.txt"
    file.write_text(WORDS * 10)
    return file


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A Transformers folder: a tiny Llama of 64 positions, whose tokens are bytes, after a BOS."""
    torch = pytest.importorskip("torch", reason="calibrating runs a torch model")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=257, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    alphabet = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={item: index for index, item in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    return folder


def test_asking_for_help_loads_no_tensors():
    code = "import sys, kvloom.daemon.cli.calibrate; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "empty.txt has no text"),
        ("blank.md", b" \n\n ", "blank.md has no text"),
        ("empty.jsonl", b"\n", "empty.jsonl has no text"),
        ("latin.txt", b"caf\xe9", "latin.txt is not text in UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"', "broken.jsonl, line 2 is not JSON"),
        ("other.jsonl", b'{"body": "a"}', "other.jsonl, line 1 has neither a field 'text' nor 'context'"),
        ("list.jsonl", b'["text"]', "list.jsonl, line 1 has neither a field"),
        ("number.jsonl", b'{"text": 3}', "number.jsonl, line 1 has neither a field"),
    ],
)
def test_text_that_is_none_is_named(kvloom, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    code, out, err = kvloom("calibrate", "smollm2", "--text", tmp_path / name)
    assert (code, out) == (2, "")
    assert says in err


def test_what_is_missing_is_named(kvloom, tmp_path, notes):
    code, _, err = kvloom("calibrate", "smollm2")
    assert (code, err) == (2, "kvloom: no text to calibrate on; name files with --text FILE...\n")
    code, _, err = kvloom("calibrate", "smollm2", "--text", notes, tmp_path / "gone.txt")
    assert (code, err) == (2, f"kvloom: {tmp_path / 'gone.txt'} cannot be read: no such file or directory\n")
    code, _, err = kvloom("calibrate", "smollm2", "--text", notes, "--out", tmp_path / "no" / "such.kvlp")
    assert code == 2
    assert f"{tmp_path / 'no'} is not a folder" in err
    code, _, err = kvloom("calibrate", "smollm2", "--text", notes, "--put", "--address", NOBODY)
    assert code == 4
    assert "no daemon answers at 127.0.0.1:1" in err
    assert kvloom("calibrate", "smollm2", "--text", notes, "--tokens", "1")[0] == 2


def test_errors_are_json_for_programs(kvloom, tmp_path):
    code, out, _ = kvloom("calibrate", "smollm2", "--text", tmp_path / "gone", "--json")
    assert (code, json.loads(out)["error"]) == (2, "invalid_request")


@pytest.mark.model
def test_a_model_that_is_none_is_named(kvloom, tmp_path, notes):
    for name in (str(tmp_path / "nothing"), str(tmp_path), str(tmp_path / "gone.gguf")):
        code, _, err = kvloom("calibrate", name, "--text", notes)
        assert code == 2
        assert f"model '{name}' is none of smollm2, gemma3, a folder with a config.json, and a .gguf file" in err
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code, _, err = kvloom("calibrate", tmp_path, "--text", notes)
    assert code == 1
    assert f"{tmp_path} cannot be loaded by Transformers: " in err


@pytest.mark.model
def test_too_little_text_is_told(kvloom, tmp_path, model_folder):
    (tmp_path / "a.txt").write_text("x" * 40)
    (tmp_path / "b.txt").write_text("y" * 22)
    code, out, err = kvloom("calibrate", model_folder, "--text", tmp_path / "a.txt", tmp_path / "b.txt")
    assert (code, out) == (2, "")
    assert "the text has 62 tokens, at least 63 are needed for one sequence" in err


@pytest.mark.model
def test_a_profile_is_written_where_it_was_asked_for(kvloom, tmp_path, model_folder, notes):
    out = tmp_path / "notes.kvlp"
    code, said, err = kvloom("calibrate", model_folder, "--text", notes, "--out", out)
    assert code == 0
    assert "Calibrating on 832 tokens" in err
    profile = Profile.from_bytes(out.read_bytes())
    for word in (profile.digest.hex(), "832 in 13 sequences, 26 gradients", str(out), "of the model's"):
        assert word in said
    folder = tmp_path / "profiles"
    folder.mkdir()
    assert kvloom("calibrate", model_folder, notes, "--out", folder)[0] == 0
    assert [file.name for file in folder.iterdir()] == [profile.digest.hex()]


@pytest.mark.model
def test_by_default_it_lies_on_the_shelf_of_this_users_daemon(kvloom, tmp_path, model_folder, notes, monkeypatch):
    monkeypatch.setenv("KVLOOM_DATA_DIR", str(tmp_path / "data"))
    code, out, _ = kvloom("calibrate", model_folder, "--text", notes, "--tokens", "200", "--json")
    assert code == 0
    said = json.loads(out)
    file = tmp_path / "data" / ProfileShelf.name / said["digest"]
    assert said["file"] == str(file)
    profile = Profile.from_bytes(file.read_bytes())
    assert profile.digest.hex() == said["digest"]
    assert (said["sequences"], said["tokens"], said["gradients"], said["put_to"]) == (3, 192, 6, None)
    assert said["profile_bytes"] == len(profile.data)
    assert said["share_of_model"] == pytest.approx(len(profile.data) / said["model_bytes"])


@pytest.mark.model
def test_the_engines_dtype_is_the_profiles(kvloom, tmp_path, model_folder, notes):
    found = {}
    for dtype in KvDtype:
        out = tmp_path / dtype
        code, said, _ = kvloom(
            "calibrate", model_folder, "--text", notes, "--dtype", dtype, "--no-gradients", "--out", out, "--json"
        )
        assert (code, json.loads(said)["gradients"]) == (0, 0)
        found[dtype] = Profile.from_bytes(out.read_bytes()).layout
        assert json.loads(said)["model_bytes"] % dtype.bits == 0
    assert {dtype: layout.dtype for dtype, layout in found.items()} == {dtype: dtype for dtype in KvDtype}
    assert len({layout.layers for layout in found.values()}) == 1


@pytest.mark.model
def test_json_lines_are_read_as_text(kvloom, tmp_path, model_folder, notes):
    lines = tmp_path / "notes.jsonl"
    records = [{"text": WORDS * 5, "context": 1}, {"context": WORDS * 3}]
    lines.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    plain = tmp_path / "plain.md"
    plain.write_text(WORDS * 5 + "\n\n" + WORDS * 3)
    digests = [
        json.loads(kvloom("calibrate", model_folder, "--text", file, "--out", tmp_path / "out", "--json")[1])["digest"]
        for file in (lines, plain, notes)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.model
def test_torch_that_is_missing_is_named(kvloom, notes, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", None)
    code, _, err = kvloom("calibrate", "smollm2", "--text", notes)
    assert (code, "pip install 'kvloom[torch]'" in err) == (1, True)


def test_long_files_are_read_in_part(monkeypatch, tmp_path, notes):
    from kvloom.daemon.cli import calibrate as module

    lines = tmp_path / "many.jsonl"
    lines.write_text("\n".join(json.dumps({"text": "abcdefghij"}) for _ in range(20)))
    monkeypatch.setattr(module.limits, "CALIBRATION_CHARACTERS_MAX", 50)
    assert [len(text) for text in module._read_texts((notes, lines))] == [25, 10 + 2 + 10 + 2 + 5]


def test_a_profile_for_cachegen(kvloom, notes, model_folder, tmp_path):
    out = tmp_path / "made.kvlg"
    arguments = ("--text", notes, "--codec", "cachegen", "--dtype", "bfloat16", "--out", out, "--json")
    code, said, _ = kvloom("calibrate", model_folder, *arguments)
    assert code == 0
    profile = parse_profile(out.read_bytes())
    assert profile.codec is LossyCodec.CACHEGEN
    assert profile.layout.dtype is KvDtype.BFLOAT16
    report = json.loads(said)
    assert report["digest"] == profile.digest.hex()
    assert report["gradients"] == 0
