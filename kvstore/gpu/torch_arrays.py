"""Pages as torch tensors: what an engine's attention kernels read, on a GPU or (for those without one) on the host."""

from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ...codec.cuda.device import CupyDevice, Device
from ...codec.layout import KvDtype
from ...errors import ConfigError, MissingDependency
from .arrays import Mark, PoolArrays, always_passed

__all__ = ["TorchArrays"]


class TorchArrays(PoolArrays):
    """Tensors on ``device`` (``cpu``, ``cuda:0``). Lossy levels are decoded there where CuPy is installed too."""

    def __init__(self, device: str) -> None:
        try:
            self._torch: Any = import_module("torch")
        except ImportError as error:
            raise MissingDependency(
                f"a pool on {device} needs torch, which is not installed: pip install 'kvloom[torch]'"
            ) from error
        try:
            self._device: Any = self._torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"torch knows no device {device[:40]!r}") from error
        self.on_host = self._device.type == "cpu"
        self.name = f"torch:{device}" if self.on_host else device
        count = self._torch.cuda.device_count() if self._device.type == "cuda" else 0
        if not self.on_host and not 0 <= (self._device.index or 0) < count:
            raise ConfigError(f"pool device {device} is not here: torch sees {count} CUDA devices")

    @cached_property
    def kernels(self) -> Device | None:
        """CuPy's, on the same GPU."""
        if self.on_host:
            return None
        try:
            with self.active():
                return CupyDevice()
        except MissingDependency:
            return None

    def active(self) -> AbstractContextManager[Any]:
        """As :meth:`PoolArrays.active`, for CuPy as well where it is there: its kernels work on these tensors."""
        stack = ExitStack()
        if not self.on_host:
            stack.enter_context(self._torch.cuda.device(self._device))
            if self._cupy is not None:
                stream = self._torch.cuda.current_stream(self._device)
                stack.enter_context(self._cupy.cuda.Device(self._device.index or 0))
                stack.enter_context(self._cupy.cuda.ExternalStream(stream.cuda_stream))
        return stack

    @cached_property
    def _cupy(self) -> Any:
        try:
            return import_module("cupy")
        except ImportError:
            return None

    def free_bytes(self) -> int:
        """As :meth:`PoolArrays.free_bytes`."""
        if self.on_host:
            return int(psutil.virtual_memory().available)
        return int(self._torch.cuda.mem_get_info(self._device)[0])

    def empty(self, count: int, dtype: KvDtype) -> Any:
        """As :meth:`PoolArrays.empty`."""
        return self._torch.empty(count, dtype=getattr(self._torch, dtype.value), device=self._device)

    def host(self, array: Any) -> NDArray[Any]:
        """As :meth:`PoolArrays.host`."""
        near = array.cpu()
        kind = KvDtype(str(near.dtype).removeprefix("torch."))
        if kind in (KvDtype.FLOAT32, KvDtype.FLOAT16):
            numbers: NDArray[Any] = near.numpy()
        else:  # NumPy has these from ml_dtypes, which torch does not know
            raw = near.view(self._torch.int16 if kind.bits == np.dtype(np.int16).itemsize * 8 else self._torch.uint8)
            numbers = raw.numpy().view(kind.numpy)
        return numbers

    def upload(self, array: NDArray[Any]) -> Any:
        """As :meth:`PoolArrays.upload`."""
        if array.dtype.kind in "iu" or array.dtype in (np.float32, np.float16):
            return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
        raw = np.ascontiguousarray(array).view(np.int16 if array.itemsize == np.dtype(np.int16).itemsize else np.uint8)
        return self._torch.from_numpy(raw).view(getattr(self._torch, array.dtype.name)).to(self._device)

    def heads_first(self, array: Any) -> Any:
        """As :meth:`PoolArrays.heads_first`."""
        return array.permute(1, 0, 2)

    def wide(self, array: Any) -> Any:
        """As :meth:`PoolArrays.wide`."""
        return array.to(self._torch.float32)

    def blank(self, array: Any) -> Any:
        """As :meth:`PoolArrays.blank`."""
        return self._torch.empty_like(array)

    def mark(self) -> Mark:
        """An event in torch's current stream."""
        if self.on_host:
            return always_passed
        event = self._torch.cuda.Event()
        event.record(self._torch.cuda.current_stream(self._device))
        query: Mark = event.query
        return query

    def synchronise(self) -> None:
        """As :meth:`PoolArrays.synchronise`."""
        if not self.on_host:
            self._torch.cuda.synchronize(self._device)
