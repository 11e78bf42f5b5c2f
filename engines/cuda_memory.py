"""A GPU's memory and a stream of work: the little that an adapter needs of CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from specplug.types import EngineError, MissingExtraError

Array = np.ndarray[Any, Any]


class Device(Protocol):
    """What adapters ask of a GPU. Work goes to one stream, in order."""

    name: str
    """Such as ``"cuda:0"``."""
    compute_capability: str
    """Such as ``"8.9"``."""
    stream: int
    """Handle of the stream."""

    def allocate(self, size: int) -> int:
        """Address of new memory, all zeros, of so many bytes."""
        ...

    def free(self, address: int) -> None:
        """Give memory back."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device."""
        ...

    def download(self, array: Array, address: int) -> None:
        """Copy into a contiguous array, once all work before it is done."""
        ...

    def move(self, to: int, from_: int, *, width: int, rows: int, pitch: int) -> None:
        """Copy ``rows`` rows of ``width`` bytes that lie ``pitch`` bytes apart."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what is put on the stream; calling the result does it again."""
        ...

    def close(self) -> None:
        """Release the stream and what is left of the memory."""
        ...


def cuda_number(device: str, runs_on: str) -> int:
    """Which GPU a name such as ``"cuda"`` or ``"cuda:1"`` is of.

    Raises:
        EngineError: the name is of something else; says what the engine ``runs_on``.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise EngineError(f"device {device!r}: {runs_on}")
    return int(number or "0")


def open_device(name: str | None) -> Device:
    """A GPU by name, ``"cuda"`` or ``"cuda:1"``; None: the first.

    Raises:
        EngineError: no such GPU here.
        MissingExtraError: no library to reach it with.
    """
    number = cuda_number(name or "cuda", "TensorRT runs on cuda, cuda:1, …")
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingExtraError(
            "TensorRT needs cuda-bindings to reach a GPU: pip install 'specplug[tensorrt]'"
        ) from error
    return CudaDevice(runtime, number)


class CudaDevice:
    """A GPU through NVIDIA's bindings of the CUDA runtime (``cuda.bindings.runtime``)."""

    def __init__(self, runtime: Any, number: int) -> None:
        self._cuda = runtime
        self.name = f"cuda:{number}"
        error, count = runtime.cudaGetDeviceCount()
        if int(error) != 0:
            raise EngineError(f"no GPU here that CUDA can use: {error.name}")
        if number >= count:
            raise EngineError(f"device {self.name}: this machine has {count} GPUs")
        self._do("use the GPU", runtime.cudaSetDevice, number)
        which = runtime.cudaDeviceAttr
        major, minor = (
            self._do("read the GPU's attributes", runtime.cudaDeviceGetAttribute, each, number)
            for each in (
                which.cudaDevAttrComputeCapabilityMajor,
                which.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.compute_capability = f"{major}.{minor}"
        self._stream = self._do("make a stream", runtime.cudaStreamCreate)
        self.stream = int(self._stream)
        self._held: set[int] = set()
        self._graphs: list[Any] = []

    def _do(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        error, *result = function(*arguments)
        if int(error) != 0:
            raise EngineError(f"CUDA cannot {what}: {error.name}")
        return result[0] if result else None

    def allocate(self, size: int) -> int:
        """Address of new memory, all zeros, of so many bytes."""
        address = int(self._do(f"allocate {size / 1e6:.0f} MB", self._cuda.cudaMalloc, size))
        self._held.add(address)
        self._do("clear memory", self._cuda.cudaMemsetAsync, address, 0, size, self._stream)
        return address

    def free(self, address: int) -> None:
        """Give memory back."""
        self._held.discard(address)
        self._do("free memory", self._cuda.cudaFree, address)

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: Array, address: int) -> None:
        """Copy into a contiguous array, once all work before it is done."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")
        self._do("finish its work", self._cuda.cudaStreamSynchronize, self._stream)

    def _copy(self, to: int, from_: int, size: int, kind: str) -> None:
        kinds = self._cuda.cudaMemcpyKind
        copy = self._cuda.cudaMemcpyAsync
        self._do("copy", copy, to, from_, size, getattr(kinds, kind), self._stream)

    def move(self, to: int, from_: int, *, width: int, rows: int, pitch: int) -> None:
        """Copy ``rows`` rows of ``width`` bytes that lie ``pitch`` bytes apart."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        copy = self._cuda.cudaMemcpy2DAsync
        self._do("copy", copy, to, pitch, from_, pitch, width, rows, kind, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what is put on the stream; calling the result does it again."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("begin a graph", cuda.cudaStreamBeginCapture, self._stream, mode)
        try:
            work()
        finally:
            graph = self._do("end a graph", cuda.cudaStreamEndCapture, self._stream)
        runnable = self._do("make a graph", cuda.cudaGraphInstantiate, graph, 0)
        self._do("drop a graph", cuda.cudaGraphDestroy, graph)
        self._graphs.append(runnable)
        return lambda: self._do("run a graph", cuda.cudaGraphLaunch, runnable, self._stream)

    def close(self) -> None:
        """Release the stream and what is left of the memory."""
        self._do("finish its work", self._cuda.cudaStreamSynchronize, self._stream)
        for graph in self._graphs:
            self._do("drop a graph", self._cuda.cudaGraphExecDestroy, graph)
        for address in [*self._held]:
            self.free(address)
        self._do("drop a stream", self._cuda.cudaStreamDestroy, self._stream)
