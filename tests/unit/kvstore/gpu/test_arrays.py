"""The places that a pool can be in, by name."""

import importlib.util

import pytest

from kvloom.errors import ConfigError, MissingDependency
from kvloom.kvstore.gpu.arrays import open_arrays


@pytest.mark.parametrize("place", ["", "gpu", "host:0", "torch", "torch:", "cupy", "cupy:x", "cpu", "x" * 100])
def test_other_names_are_refused(place):
    with pytest.raises(ConfigError, match=r"is not host, torch:cpu, cuda:N, torch:cuda:N or cupy:N"):
        open_arrays(place)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(MissingDependency, match=r"pip install 'kvloom\[gpu\]'"):
        open_arrays("cupy:0")


@pytest.mark.model
def test_a_device_that_is_not_there_is_named():
    for place in ("cuda:99", "torch:cuda:99"):
        with pytest.raises(ConfigError, match=r"pool device cuda:99 is not here: torch sees \d+ CUDA devices"):
            open_arrays(place)
    with pytest.raises(ConfigError, match="torch knows no device 'nonsense'"):
        open_arrays("torch:nonsense")
