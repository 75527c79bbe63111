"""The package can be imported without vLLM, and the connector says what is missing."""

import importlib.util

import pytest

import kvloom.clients.vllm
from kvloom.errors import MissingDependency


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_connector_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependency, match=r"kvloom\[vllm\]"):
        kvloom.clients.vllm.KvloomConnector  # noqa: B018


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="KvloomConector"):
        kvloom.clients.vllm.KvloomConector  # noqa: B018
    assert "KvloomConnector" in dir(kvloom.clients.vllm)
