"""Where a pool's pages lie: the one seam between the pool and the array library. NumPy here, torch and CuPy beside it.

The pool itself slices, indexes, reshapes, assigns and multiplies, which all three spell alike. What they spell
differently is a method here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ...codec.cuda.device import Device
from ...codec.layout import KvDtype
from ...errors import ConfigError

__all__ = ["HostArrays", "Mark", "PoolArrays", "always_passed", "open_arrays"]

Mark = Callable[[], bool]
"""Says whether the device has done all that was queued when the mark was made."""


class PoolArrays(ABC):
    """Arrays of one library in one place. Methods are called from many threads, each within :meth:`active`."""

    name: str
    """The place, as users write it: ``host``, ``cuda:0``."""
    on_host = True
    """Whether :meth:`host` gives the memory itself; else what travels is copied."""

    @property
    def kernels(self) -> Device | None:
        """What runs the codec's kernels on these arrays; None where chunks are decoded on the host."""
        return None

    def active(self) -> AbstractContextManager[Any]:
        """Make the device the calling thread's current one."""
        return nullcontext()

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes that can be allocated now."""

    @abstractmethod
    def empty(self, count: int, dtype: KvDtype) -> Any:
        """A new flat array, of whatever content; :class:`ConfigError` for a dtype that the library has not."""

    @abstractmethod
    def host(self, array: Any) -> NDArray[Any]:
        """The same numbers for NumPy: the very memory where :attr:`on_host`, else a copy."""

    @abstractmethod
    def upload(self, array: NDArray[Any]) -> Any:
        """The same numbers for this library: the very memory where :attr:`on_host`, else a copy."""

    def heads_first(self, array: Any) -> Any:
        """``[tokens, heads, dim]`` seen as ``[heads, tokens, dim]``; nothing is copied."""
        return array.transpose(1, 0, 2)

    def wide(self, array: Any) -> Any:
        """The same in float32: itself where it is that."""
        return array.astype(np.float32, copy=False)

    def blank(self, array: Any) -> Any:
        """A new array like ``array``, of whatever content."""
        return np.empty_like(array)

    def mark(self) -> Mark:
        """A mark in the calling thread's stream of work."""
        return always_passed

    def synchronise(self) -> None:  # noqa: B027 - nothing is queued on a host
        """Wait until the device has done all that any thread has queued."""


class HostArrays(PoolArrays):
    """NumPy, in this machine's memory."""

    name = "host"

    def free_bytes(self) -> int:
        """As :meth:`PoolArrays.free_bytes`."""
        return int(psutil.virtual_memory().available)

    def empty(self, count: int, dtype: KvDtype) -> Any:
        """As :meth:`PoolArrays.empty`."""
        return np.empty(count, dtype.numpy)

    def host(self, array: Any) -> NDArray[Any]:
        """The array itself."""
        found: NDArray[Any] = array
        return found

    def upload(self, array: NDArray[Any]) -> Any:
        """The array itself."""
        return array


def open_arrays(place: str) -> PoolArrays:
    """The arrays of a place that a user named: ``host``, ``torch:cpu``, ``torch:cuda:0`` (or ``cuda:0``), ``cupy:0``.

    ``cuda:N`` is torch's, since that has every element type that engines use. Raises :class:`ConfigError` for another
    name or a device that is not there, and :class:`MissingDependency` without the library.
    """
    library, _, device = place.partition(":")
    if library == "host" and not device:
        return HostArrays()
    if library == "cuda":
        library, device = "torch", place
    if library == "torch" and device:
        from .torch_arrays import TorchArrays  # here: a pool on the host loads no torch

        return TorchArrays(device)
    if library == "cupy" and device.isdecimal():
        from .cupy_arrays import CupyArrays

        return CupyArrays(int(device))
    raise ConfigError(f"pool device {place[:40]!r} is not host, torch:cpu, cuda:N, torch:cuda:N or cupy:N")


def always_passed() -> bool:
    """The mark of a place where nothing is queued."""
    return True
