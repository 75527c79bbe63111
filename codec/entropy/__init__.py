"""Entropy coding: 32-lane interleaved rANS in several executions that make the same bytes.

``reference`` (NumPy) is the specification, ``native`` (C++) is what runs where the package was built with a compiler.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import native, reference
from .stream import DecodeJob, EncodeJob, Runs, lanes_for

__all__ = ["DecodeJob", "EncodeJob", "Runs", "decode_streams", "encode_streams", "lanes_for"]


def decode_streams(jobs: Sequence[DecodeJob]) -> list[NDArray[np.uint8]]:
    """Decode every job's symbols ``[n]`` uint8; :class:`kvloom.errors.InvalidData` where a stream holds others."""
    if native.AVAILABLE:
        return native.decode_streams(jobs)
    _say_once()
    return reference.decode_streams(jobs)


def encode_streams(jobs: Sequence[EncodeJob]) -> list[bytes]:
    """Encode every job; the same bytes whichever execution does it."""
    if native.AVAILABLE:
        return native.encode_streams(jobs)
    _say_once()
    return reference.encode_streams(jobs)


@lru_cache(maxsize=1)
def _say_once() -> None:
    warnings.warn(
        "kvloom's compiled core is not installed: coding runs on the NumPy reference, with the same bytes and far "
        "slower; install a C++ compiler and reinstall kvloom",
        RuntimeWarning,
        stacklevel=3,
    )
