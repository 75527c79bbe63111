"""A model's identity: weights and configuration, hashed once per folder."""

import json

import pytest

torch = pytest.importorskip("torch", reason="the Transformers client runs torch models")

from kvloom.clients.transformers import identity, model_identity, model_layout  # noqa: E402
from kvloom.errors import InvalidRequest  # noqa: E402


def test_identity_is_of_weights_and_configuration(tiny, llama):
    mine = model_identity(llama)
    assert mine == model_identity(tiny("Llama"))
    assert mine.layout_digest == model_layout(llama).digest()
    assert mine.fingerprint != model_identity(tiny("Llama", seed=3)).fingerprint
    assert mine.fingerprint != model_identity(tiny("Llama", rms_norm_eps=1e-4)).fingerprint
    assert mine.fingerprint != model_identity(tiny("Llama").to(torch.bfloat16)).fingerprint
    changed = tiny("Llama")
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert mine.fingerprint != model_identity(changed).fingerprint
    assert model_identity(llama, adapter="sql", salt=b"team").adapter == "sql"
    assert model_identity(llama, salt=b"team").salt == b"team"


def test_the_weights_digest_is_remembered_beside_the_weights(tiny, llama, tmp_path, monkeypatch):
    llama.save_pretrained(tmp_path)
    plain = model_identity(llama)
    assert model_identity(llama, folder=tmp_path) == plain
    kept = tmp_path / identity.DIGEST_FILE
    assert kept.exists()
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_weights_digest", lambda _: pytest.fail("hashed again"))
        assert model_identity(llama, folder=tmp_path) == plain
    other = tiny("Llama", seed=3)
    other.save_pretrained(tmp_path)
    assert model_identity(other, folder=tmp_path) == model_identity(other)
    assert model_identity(llama.to(torch.bfloat16), folder=tmp_path) == model_identity(llama)
    llama.to(torch.float32)


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"state": "STATE", "digest": "xyz"}'])
def test_a_damaged_note_is_written_anew(tiny, tmp_path, damage):
    model = tiny("Llama")
    model.save_pretrained(tmp_path)
    expected = model_identity(model, folder=tmp_path)
    kept = tmp_path / identity.DIGEST_FILE
    state = json.loads(kept.read_bytes())["state"]
    kept.write_bytes(damage.replace(b"STATE", state.encode()))
    assert model_identity(model, folder=tmp_path) == expected
    assert len(json.loads(kept.read_bytes())["digest"]) == 64


def test_a_folder_without_weights_cannot_vouch(llama, tmp_path):
    with pytest.raises(InvalidRequest, match="no safetensors"):
        model_identity(llama, folder=tmp_path)
