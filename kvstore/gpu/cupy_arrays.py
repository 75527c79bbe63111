"""Pages as CuPy arrays, for programs on a GPU that have no torch."""

from contextlib import AbstractContextManager
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...codec.cuda.device import CupyDevice, Device
from ...codec.layout import KvDtype
from ...errors import ConfigError, MissingDependency
from .arrays import Mark, PoolArrays

__all__ = ["CupyArrays"]


class CupyArrays(PoolArrays):
    """CuPy arrays on the GPU of that number: float32 and float16, all that CuPy has of what engines use."""

    on_host = False

    def __init__(self, number: int) -> None:
        try:
            self._cupy: Any = import_module("cupy")
        except ImportError as error:
            raise MissingDependency(
                "a pool of CuPy's needs CuPy, which is not installed: pip install 'kvloom[gpu]'"
            ) from error
        self._number = number
        self.name = f"cupy:{number}"
        try:
            count = int(self._cupy.cuda.runtime.getDeviceCount())
        except self._cupy.cuda.runtime.CUDARuntimeError:
            count = 0
        if number >= count:
            raise ConfigError(f"pool device {self.name} is not here: CuPy sees {count} devices")

    @cached_property
    def kernels(self) -> Device | None:
        """As :attr:`PoolArrays.kernels`."""
        with self.active():
            return CupyDevice()

    def active(self) -> AbstractContextManager[Any]:
        """As :meth:`PoolArrays.active`."""
        entered: AbstractContextManager[Any] = self._cupy.cuda.Device(self._number)
        return entered

    def free_bytes(self) -> int:
        """As :meth:`PoolArrays.free_bytes`."""
        return int(self._cupy.cuda.runtime.memGetInfo()[0])

    def empty(self, count: int, dtype: KvDtype) -> Any:
        """As :meth:`PoolArrays.empty`."""
        if dtype not in (KvDtype.FLOAT32, KvDtype.FLOAT16):
            raise ConfigError(f"CuPy has no {dtype}; a pool of it needs torch: device cuda:{self._number}")
        return self._cupy.empty(count, dtype.value)

    def host(self, array: Any) -> NDArray[Any]:
        """As :meth:`PoolArrays.host`."""
        copied: NDArray[Any] = self._cupy.asnumpy(array)
        return copied

    def upload(self, array: NDArray[Any]) -> Any:
        """As :meth:`PoolArrays.upload`."""
        return self._cupy.asarray(np.ascontiguousarray(array))

    def blank(self, array: Any) -> Any:
        """As :meth:`PoolArrays.blank`."""
        return self._cupy.empty_like(array)

    def mark(self) -> Mark:
        """An event in CuPy's current stream."""
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record()

        def passed() -> bool:
            return bool(event.done)

        return passed

    def synchronise(self) -> None:
        """As :meth:`PoolArrays.synchronise`."""
        self._cupy.cuda.runtime.deviceSynchronize()
