"""The kernels' own source, compiled for the CPU: what runs on a GPU runs here, warp by warp, and is checked."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from numpy.typing import NDArray

from kvloom.codec.cuda import jobs
from kvloom.codec.cuda.device import KERNELS, SOURCE

JOBS = {
    "kvl_decode": jobs.DECODE,
    "kvl_synthesise": jobs.SYNTHESIS,
    "kvl_scatter": jobs.PAGES,
    "kvl_gather": jobs.PAGES,
    "kvl_quantise": jobs.QUANTISE,
    "kvl_encode": jobs.ENCODE,
}
FLAGS = ("-x", "c++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-ffp-contract=off")


class HostDevice:
    """A device whose memory is the host's and whose warps are loops."""

    def __init__(self, library: Path) -> None:
        self.xp: Any = np
        self.memo: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self.library = ctypes.CDLL(str(library))
        for name in KERNELS:
            getattr(self.library, name).argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64]
            getattr(self.library, name).restype = None

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def upload(self, array: NDArray[Any]) -> Any:
        return np.array(array, order="C")

    def download(self, array: Any) -> NDArray[Any]:
        return np.array(array)

    def run(self, kernel: str, jobs: int, across: int, blocks: int) -> None:
        getattr(self.library, kernel)(jobs, across, blocks)


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostDevice:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here: the kernels cannot be built for the CPU")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(library)], check=True)
    return HostDevice(library)
