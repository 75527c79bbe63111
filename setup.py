"""Builds the optional native entropy coder; everything else about the package stands in ``pyproject.toml``.

The extension is a shared library of ``extern "C"`` functions that ctypes loads; it touches no Python object, so one
build serves every CPython from 3.11 on (abi3). It is compiled for a generic CPU and chooses its instructions at run
time. Where no compiler is found the install goes on without it, and the package runs on its NumPy reference.
"""

import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ENTROPY = "codec/entropy"
LOSSY = ("segments", "synthesis", "synthesis_avx2", "synthesis_avx512", "rotation", "quantise")
DIRECT = ("direct", "direct_avx2", "direct_avx512")
RANS = ("rans", "rans_avx2", "rans_avx512", "rans_avx512_vbmi2")
SOURCES = ("module", *RANS, "planes", "clusters", "tables", *LOSSY, *DIRECT)
HEADERS = (
    *("coder", "direct", "groups", "jobs", "planes", "rans", "rans_words"),
    *("rounding", "segments", "spread", "synthesis"),
)
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # CPython has no stable ABI there
FLAGS_UNIX = ["-std=c++17", "-O3", "-g0", "-fno-rtti", "-fvisibility=hidden", "-pthread", "-ffp-contract=off"]
FLAGS_MSVC = ["/std:c++17", "/O2", "/EHsc"]


class BuildNative(build_ext):
    """``build_ext`` with the flags of the compiler it found."""

    def build_extensions(self) -> None:
        """Set the flags, then build."""
        msvc = self.compiler.compiler_type == "msvc"
        for extension in self.extensions:
            extension.extra_compile_args = FLAGS_MSVC if msvc else FLAGS_UNIX
            extension.extra_link_args = [] if msvc else ["-pthread"]
        super().build_extensions()


class BuildPython(build_py):
    """``build_py`` that leaves this script out: the repository root is the package, and it lies in the root."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Every module of ``package`` but this script."""
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if Path(found[2]).resolve() != Path(__file__).resolve()]


setup(
    ext_modules=[
        Extension(
            "kvloom.codec.entropy._native",
            sources=[f"{ENTROPY}/{name}.cpp" for name in SOURCES],
            depends=[f"{ENTROPY}/{name}.h" for name in HEADERS],
            define_macros=[] if FREE_THREADED else [("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=not FREE_THREADED,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
