"""Where the kernels run: a GPU through CuPy, or (in the tests) the CPU, which the same source is compiled for."""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from ... import limits
from ...errors import InvalidTensor, MissingDependency

__all__ = ["KERNELS", "SOURCE", "CupyDevice", "Device", "Staging", "launch", "source_digest"]

SOURCE = Path(__file__).parent / "kernels.cu"
KERNELS = {
    "kvl_decode": 32,
    "kvl_synthesise": 256,
    "kvl_scatter": 256,
    "kvl_gather": 256,
    "kvl_quantise": 32,
    "kvl_encode": 32,
}
"""Every kernel and the threads of its blocks."""
_ALIGNMENT = 16


class Device(Protocol):
    """A place for arrays and kernels. Work is queued in order; only :meth:`download` waits for it.

    ``xp`` is the array module (``cupy`` or ``numpy``); ``memo`` keeps what is on the device already of a profile.
    """

    xp: Any
    memo: "WeakKeyDictionary[Any, Any]"

    def address(self, array: Any) -> int:
        """Where the array's first number is on the device."""
        ...

    def upload(self, array: NDArray[Any]) -> Any:
        """A copy on the device."""
        ...

    def download(self, array: Any) -> NDArray[Any]:
        """A copy in host memory, of what all work queued so far leaves."""
        ...

    def run(self, kernel: str, jobs: int, across: int, blocks: int) -> None:
        """Queue ``blocks`` blocks of a kernel on the jobs at address ``jobs``, ``across`` blocks each."""
        ...


class CupyDevice:
    """The GPU that is CuPy's current one, on its current stream. Raises :class:`MissingDependency` without CuPy."""

    def __init__(self) -> None:
        try:
            self.xp: Any = import_module("cupy")
        except ImportError as error:
            raise MissingDependency(
                "the codec on a GPU needs CuPy, which is not installed: pip install 'kvloom[gpu]'"
            ) from error
        self.memo: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        # CuPy names what it has compiled after the source it was given, of which the headers are no part.
        options = ("-std=c++17", "--fmad=false", f"-I{SOURCE.parent}", f"-DKVL_SOURCE={source_digest()}")
        module = self.xp.RawModule(code=SOURCE.read_text(), options=options, backend="nvrtc")
        self._kernels = {name: module.get_function(name) for name in KERNELS}

    def address(self, array: Any) -> int:
        """As :meth:`Device.address`."""
        return int(array.data.ptr)

    def upload(self, array: NDArray[Any]) -> Any:
        """As :meth:`Device.upload`."""
        return self.xp.asarray(array)

    def download(self, array: Any) -> NDArray[Any]:
        """As :meth:`Device.download`."""
        copied: NDArray[Any] = self.xp.asnumpy(array)
        return copied

    def run(self, kernel: str, jobs: int, across: int, blocks: int) -> None:
        """As :meth:`Device.run`."""
        arguments = (np.uint64(jobs), np.uint32(across))
        self._kernels[kernel]((blocks,), (KERNELS[kernel],), arguments)


def source_digest() -> str:
    """A number that names what the kernels are built from, headers included."""
    files = [
        *sorted(SOURCE.parent.glob("*.cu*")),
        SOURCE.parent / "shim.h",
        SOURCE.parent.parent / "entropy" / "rans.h",
    ]
    digest = blake3(b"".join(path.read_bytes() for path in files)).hexdigest(8)
    return f"0x{digest}ull"


class Staging:
    """Collects host arrays that travel to the device in one copy."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, NDArray[np.uint8]]] = []
        self._size = 0
        self._sent: Any = None

    def add(self, data: NDArray[Any] | memoryview) -> int:
        """The offset that the bytes of ``data`` will have; it is a multiple of 16."""
        if isinstance(data, memoryview):
            piece = np.frombuffer(data, np.uint8)
        else:
            piece = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        at = self._size
        self._pieces.append((at, piece))
        self._size += -(-len(piece) // _ALIGNMENT) * _ALIGNMENT
        return at

    def send(self, device: Device) -> int:
        """Copy everything; the address that offsets count from. The copy lives as long as this object."""
        host = np.zeros(max(self._size, _ALIGNMENT), np.uint8)
        for at, piece in self._pieces:
            host[at : at + len(piece)] = piece
        self._sent = device.upload(host)
        return device.address(self._sent)


def launch(device: Device, kernel: str, jobs: NDArray[np.void], across: int) -> Any:
    """Queue a kernel on every job; what is returned holds the jobs on the device until the caller lets go of it."""
    blocks = len(jobs) * across
    if blocks > limits.GPU_BLOCKS_MAX:
        raise InvalidTensor(f"{kernel} would take {blocks} blocks, the limit is {limits.GPU_BLOCKS_MAX}: fewer chunks")
    if not blocks:
        return None
    sent = device.upload(jobs.view(np.uint8))
    device.run(kernel, device.address(sent), across, blocks)
    return sent
