"""The package can be imported without SGLang, and the backend says what is missing."""

import importlib.util

import pytest

import kvloom.clients.sglang
from kvloom.errors import MissingDependency


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="SGLang is installed here")
def test_without_sglang_the_backend_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependency, match=r"kvloom\[sglang\]"):
        kvloom.clients.sglang.KvloomHiCache  # noqa: B018


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="KvloomHicache"):
        kvloom.clients.sglang.KvloomHicache  # noqa: B018
    assert "KvloomHiCache" in dir(kvloom.clients.sglang)
