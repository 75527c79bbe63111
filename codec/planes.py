"""The bit planes of the exact level: what of a value is entropy-coded, and what is stored as it is.

A value is a sign, a magnitude, and the rest of its mantissa. The magnitude is the exponent and the top bits of the
mantissa, counted as one number; sign and magnitude make the symbol, the rest is noise and is stored.

=============  ============================================  ==========================================
dtype          symbol                                        rest
=============  ============================================  ==========================================
float8 (both)  2 * (bits 6-0) + sign                         none
float16        2 * (bits 14-8) + sign                        bits 7-0, a byte each
bfloat16       2 * window(bits 14-6) + sign                  bits 5-0, six bits each
float32        2 * window(bits 30-22) + sign                 bits 21-16, six bits each; bits 15-0, two bytes
=============  ============================================  ==========================================

A magnitude of nine bits goes through a window of 64 octaves: index 1 is magnitude 0, indices 2 to 127 are the
magnitudes ``base + index``, and index 0 says that the magnitude (an infinity, a NaN, a number 63 octaves below the
largest) is written elsewhere. Six-bit rests are packed in blocks of 64 values, the last one filled up with zeros: 32
bytes, byte ``i`` with the low four bits of values ``i`` and ``i + 32``, then 16 bytes, byte ``i`` with the upper two
bits of values ``i``, ``i + 16``, ``i + 32`` and ``i + 48``, lower values in lower bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entropy import native, native_planes
from .entropy.native_planes import JoinJob, SplitResult
from .layout import KvDtype

__all__ = ["BASE_MAX", "FORMS", "MAGNITUDE_MAX", "Form", "JoinJob", "SplitResult", "join", "split"]

BLOCK_VALUES, BLOCK_BYTES = 64, 48
WINDOW = 128
MAGNITUDE_MAX = 511
BASE_MAX = MAGNITUDE_MAX - (WINDOW - 1)
MAGNITUDE_SPECIAL = 510
"""Infinities and NaN have this magnitude or the next."""
ByteArray = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Form:
    """How the bits of a dtype are shared out; ``code`` is its name in ``planes.h``."""

    code: int
    bits: int
    rest_bits: int

    @property
    def windowed(self) -> bool:
        """Whether magnitudes have nine bits and go through the window."""
        return self.bits - self.rest_bits == 10

    @property
    def word(self) -> "np.dtype[Any]":
        """The unsigned integer as wide as a value."""
        return np.dtype(f"u{self.bits // 8}")

    def rest_bytes(self, values: int) -> int:
        """Bytes that the rests of so many values take."""
        if not self.windowed:
            return values * self.rest_bits // 8
        return -(-values // BLOCK_VALUES) * BLOCK_BYTES + values * (self.rest_bits - 6) // 8


FORMS = {
    KvDtype.FLOAT8_E4M3FN: Form(code=0, bits=8, rest_bits=0),
    KvDtype.FLOAT8_E5M2: Form(code=0, bits=8, rest_bits=0),
    KvDtype.FLOAT16: Form(code=1, bits=16, rest_bits=8),
    KvDtype.BFLOAT16: Form(code=2, bits=16, rest_bits=6),
    KvDtype.FLOAT32: Form(code=3, bits=32, rest_bits=22),
}


def split(tensors: Sequence[NDArray[Any]], form: Form) -> list[SplitResult]:
    """Split tensors ``[kv_heads, tokens, head_dim]`` of ``form``'s width, any strides; the results own their memory."""
    if not native.AVAILABLE:
        return [_split(tensor, form) for tensor in tensors]
    dense = [
        item if item.strides[-1] == item.itemsize and item.flags.aligned else np.array(item, order="C")
        for item in tensors
    ]
    return native_planes.split(dense, form=form.code, rest_bytes=[form.rest_bytes(item.size) for item in dense])


def join(jobs: Sequence[JoinJob], form: Form) -> None:
    """Write the values of each job into its ``out``; where a symbol's index is 0 the magnitude comes out as 0."""
    compiled = [job for job in jobs if native.AVAILABLE and job.out.flags.aligned]
    if compiled:
        native_planes.join(compiled, form=form.code)
    for job in jobs:
        if not (native.AVAILABLE and job.out.flags.aligned):
            _join(job, form)


def _split(tensor: NDArray[Any], form: Form) -> SplitResult:
    heads, tokens, head_dim = tensor.shape
    bits = np.ascontiguousarray(tensor).view(form.word).astype(np.int64)
    sign = bits >> form.bits - 1
    index = magnitude = (bits & (1 << form.bits - 1) - 1) >> form.rest_bits
    base = 0
    if form.windowed:
        largest = int(np.where(magnitude < MAGNITUDE_SPECIAL, magnitude, 0).max())
        base = max(0, largest - (WINDOW - 1))
        inside = (magnitude > base + 1) & (magnitude - base < WINDOW)
        index = np.where(magnitude == 0, 1, np.where(inside, magnitude - base, 0))
    by_channel = (2 * index + sign).transpose(0, 2, 1).reshape(heads * head_dim, tokens)
    places = np.arange(len(by_channel))[:, None] * 256 + by_channel
    counts = np.bincount(places.reshape(-1), minlength=256 * len(by_channel)).reshape(-1, 256)
    rest = _pack_rest(bits.reshape(-1), form)
    return SplitResult(by_channel.astype(np.uint8), rest, counts.astype(np.uint16), base)


def _join(job: JoinJob, form: Form) -> None:
    heads, tokens, head_dim = job.out.shape
    symbols = (
        job.symbols.reshape(-1, tokens)[job.places].reshape(heads, head_dim, tokens).transpose(0, 2, 1).astype(np.int64)
    )
    magnitude = symbols >> 1
    if form.windowed:
        magnitude = np.where(magnitude > 1, magnitude + job.base, 0)
    bits = (symbols & 1) << form.bits - 1 | magnitude << form.rest_bits
    bits |= _unpack_rest(job.rest, bits.size, form).reshape(bits.shape)
    job.out.view(form.word)[...] = bits


def _pack_rest(bits: NDArray[np.int64], form: Form) -> ByteArray:
    if not form.windowed:
        return bits.astype(np.uint8) if form.rest_bits else np.empty(0, dtype=np.uint8)
    six = np.zeros(-(-len(bits) // BLOCK_VALUES) * BLOCK_VALUES, dtype=np.uint8)
    six[: len(bits)] = bits >> form.rest_bits - 6 & 0x3F
    blocks = six.reshape(-1, BLOCK_VALUES)
    halves = blocks[:, :32] & 15 | (blocks[:, 32:] & 15) << 4
    quarters = (blocks >> 4).reshape(-1, 4, 16) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    packed = np.concatenate([halves, np.bitwise_or.reduce(quarters, axis=1)], axis=1)
    low = bits.astype("<u2").view(np.uint8) if form.rest_bits > 6 else np.empty(0, dtype=np.uint8)
    return np.concatenate([packed.reshape(-1), low])


def _unpack_rest(rest: ByteArray, values: int, form: Form) -> NDArray[np.int64]:
    if not form.windowed:
        return rest.astype(np.int64) if form.rest_bits else np.zeros(values, dtype=np.int64)
    packed_bytes = -(-values // BLOCK_VALUES) * BLOCK_BYTES
    packed = rest[:packed_bytes].reshape(-1, BLOCK_BYTES)
    low = np.concatenate([packed[:, :32] & 15, packed[:, :32] >> 4], axis=1)
    high = np.concatenate([packed[:, 32:] >> shift & 3 for shift in range(0, 8, 2)], axis=1)
    six: NDArray[np.int64] = (low | high << 4).reshape(-1)[:values].astype(np.int64)
    if form.rest_bits > 6:
        six = six << 16 | np.frombuffer(rest[packed_bytes:].tobytes(), dtype="<u2")
    return six
