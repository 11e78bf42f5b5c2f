"""A stand-in for ``cuda.bindings.runtime``, over the memory of this process."""

# ruff: noqa: N802, N815  (the names are CUDA's)

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace


class Code(IntEnum):
    cudaSuccess, cudaErrorMemoryAllocation = 0, 2


class HostRuntime:
    """``cuda.bindings.runtime`` over the memory of this process."""

    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1
    )
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.held: dict[int, object] = {}
        self.launched: list[object] = []

    def __getattr__(self, name: str) -> object:
        results = {
            "cudaGetDeviceCount": (1,),
            "cudaStreamCreate": (7,),
            "cudaStreamEndCapture": ("graph",),
            "cudaGraphInstantiate": ("runnable",),
        }
        return lambda *_: (Code.cudaSuccess, *results.get(name, ()))

    def cudaDeviceGetAttribute(self, which: int, device: int) -> tuple[Code, int]:
        return Code.cudaSuccess, (8, 9)[which]

    def cudaMalloc(self, size: int) -> tuple[Code, int]:
        if size > 1 << 20:
            return Code.cudaErrorMemoryAllocation, 0
        buffer = (ctypes.c_char * size)()
        self.held[ctypes.addressof(buffer)] = buffer
        return Code.cudaSuccess, ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> tuple[Code]:
        del self.held[address]
        return (Code.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, from_: int, size: int, *_: object) -> tuple[Code]:
        ctypes.memmove(to, from_, size)
        return (Code.cudaSuccess,)

    def cudaMemcpy2DAsync(
        self, to: int, to_pitch: int, from_: int, pitch: int, width: int, rows: int, *_: object
    ) -> tuple[Code]:
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, from_ + row * pitch, width)
        return (Code.cudaSuccess,)

    def cudaGraphLaunch(self, graph: object, stream: int) -> tuple[Code]:
        self.launched.append(graph)
        return (Code.cudaSuccess,)
