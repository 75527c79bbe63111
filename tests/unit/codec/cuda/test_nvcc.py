"""The kernels compile for the GPUs they are meant for, where there is a compiler that can tell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kvloom.codec.cuda.device import KERNELS, SOURCE

NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="no nvcc here: whether the kernels compile for a GPU is not checked")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_nvcc_compiles_the_kernels_without_a_warning(arch: str, tmp_path: Path) -> None:
    cubin = tmp_path / "kernels.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "--fmad=false", f"-arch={arch}", "--cubin", "-Werror", "all-warnings"]
    command += ["-Xptxas", "-v", str(SOURCE), "-o", str(cubin)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert built.stderr.count(" 0 bytes spill stores, 0 bytes spill loads") == len(KERNELS), built.stderr
    assert all(name.encode() in cubin.read_bytes() for name in KERNELS)
