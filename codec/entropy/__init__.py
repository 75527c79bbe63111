"""Entropy coding: 32-lane interleaved rANS in several executions that make the same bytes.

``reference`` (NumPy) is the specification, ``native`` (C++) is what runs where the package was built with a compiler.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import native, reference
from .stream import DecodeJob, EncodeJob, Runs, lanes_for

__all__ = ["DecodeJob", "EncodeJob", "Runs", "decode_streams", "encode_streams", "lanes_for"]


def decode_streams(jobs: Sequence[DecodeJob]) -> list[NDArray[np.uint8]]:
    """Decode every job's symbols ``[n]`` uint8; :class:`kvloom.errors.InvalidData` where a stream holds others."""
    return native.decode_streams(jobs) if native.AVAILABLE else reference.decode_streams(jobs)


def encode_streams(jobs: Sequence[EncodeJob]) -> list[bytes]:
    """Encode every job; the same bytes whichever execution does it."""
    return native.encode_streams(jobs) if native.AVAILABLE else reference.encode_streams(jobs)
