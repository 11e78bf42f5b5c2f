"""A stand-in for TensorRT's runtime and a GPU, which runs the same ONNX file in ONNX Runtime.

It refuses what TensorRT refuses: shapes outside the active profile, tensors without an address or
at an address that is not large enough or was freed, data of another type, caches that are not
updated in place. Recorded work is not done while it is recorded, and done with the shapes and
addresses of then.
"""

from __future__ import annotations

import ctypes
import itertools
import json
from collections.abc import Callable
from enum import Enum
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx

from specplug import EngineOptions
from specplug.engines.ort_session import open_session
from specplug.engines.tensorrt_library import Library
from specplug.types import HIDDEN_STATES

_DTYPES = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.INT64: np.int64,
}


class HostDevice:
    """Memory of this process, given out and taken back as a GPU's is."""

    by_stream: ClassVar[dict[int, HostDevice]] = {}
    _streams = itertools.count(1)

    def __init__(self, compute_capability: str = "8.9") -> None:
        self.name, self.compute_capability = "cuda:0", compute_capability
        self.stream = next(self._streams)
        self.by_stream[self.stream] = self
        self.held: dict[int, Any] = {}
        self.recorded: list[Callable[[], None]] | None = None
        self.uploaded: dict[int, np.dtype[Any]] = {}
        self.downloaded_bytes = 0
        self.graphs_run = 0

    def allocate(self, size: int) -> int:
        buffer = (ctypes.c_char * size)()
        address = ctypes.addressof(buffer)
        self.held[address] = buffer
        return address

    def free(self, address: int) -> None:
        del self.held[address]

    def check(self, address: int, size: int) -> None:
        for start, buffer in self.held.items():
            if start <= address and address + size <= start + len(buffer):
                return
        raise AssertionError(f"{size} bytes at an address that does not hold them")

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.check(address, array.nbytes)
        self.uploaded[address] = array.dtype
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        self.check(address, array.nbytes)
        self.downloaded_bytes += array.nbytes
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def move(self, to: int, from_: int, *, width: int, rows: int, pitch: int) -> None:
        for row in range(rows):
            for address in (to + row * pitch, from_ + row * pitch):
                self.check(address, width)
            ctypes.memmove(to + row * pitch, from_ + row * pitch, width)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded = []
        work()
        recorded, self.recorded = self.recorded, None

        def again() -> None:
            self.graphs_run += 1
            for each in recorded:
                each()

        return again

    def close(self) -> None:
        self.held.clear()
        del self.by_stream[self.stream]


class TensorIOMode(Enum):
    INPUT, OUTPUT = range(2)


class DataType(Enum):
    FLOAT, HALF, INT64 = np.float32, np.float16, np.int64


def write_plan(graph: Path, plan: Path, capacity: int, profiles: list[tuple[int, int]]) -> None:
    """What stands for a plan: where the graph is, and the (batch, width) of its profiles."""
    written = {"graph": str(graph), "capacity": capacity, "profiles": profiles}
    plan.write_text(json.dumps(written))


class Engine:
    """ICudaEngine."""

    def __init__(self, plan: bytes) -> None:
        described = json.loads(plan)
        graph = Path(described["graph"])
        model = onnx.load(graph, load_external_data=False)
        self._outputs = {value.name for value in model.graph.output}
        self.values = {v.name: v for v in (*model.graph.input, *model.graph.output)}
        self._names = list(self.values)
        self._capacity = described["capacity"]
        self._profiles = described["profiles"]
        self.session = open_session(graph, EngineOptions())

    num_io_tensors = property(lambda self: len(self._names))
    num_optimization_profiles = property(lambda self: len(self._profiles))

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name in self._outputs else TensorIOMode.INPUT

    def numpy(self, name: str) -> Any:
        return _DTYPES[self.values[name].type.tensor_type.elem_type]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.numpy(name))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(
            self._capacity if dim.dim_param == "capacity" else dim.dim_value or -1
            for dim in self.values[name].type.tensor_type.shape.dim
        )

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [self.filled(name, *sizes) for sizes in ((1, 1), (1, 1), self._profiles[profile])]

    def filled(self, name: str, *sizes: int) -> tuple[int, ...]:
        free = list(sizes)
        return tuple(s if s >= 0 else free.pop(0) for s in self.get_tensor_shape(name))

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    """IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        self._shapes.clear()
        return stream in HostDevice.by_stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = shape
        return len(shape) == len(low) and all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        engine, device = self._engine, HostDevice.by_stream[stream]
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        if set(addresses) != set(engine.values):
            return False
        scores_from = np.array([ctypes.c_int64.from_address(addresses["scores_from"]).value])
        batch, width = shapes["input_ids"]

        def run() -> None:
            io = engine.session.io_binding()
            for name in engine.values:
                shape, dtype, address = shapes.get(name), engine.numpy(name), addresses[name]
                if name == "scores_from":
                    io.bind_cpu_input(name, scores_from)
                    continue
                if name.startswith("present."):
                    assert address == addresses[name.replace("present", "past_key_values")]
                    shape = shapes[name.replace("present", "past_key_values")]
                elif shape is None:
                    tail = engine.get_tensor_shape(name)[2:]
                    first = 0 if name == HIDDEN_STATES else int(scores_from[0])
                    shape = (batch, width - first, *tail)
                device.check(address, prod(shape) * np.dtype(dtype).itemsize)
                if name in device.uploaded:
                    assert device.uploaded[address] == dtype
                is_input = engine.get_tensor_mode(name) == TensorIOMode.INPUT
                bind = io.bind_input if is_input else io.bind_output
                bind(name, "cpu", 0, dtype, shape, address)
            engine.session.run_with_iobinding(io)

        if device.recorded is not None:
            device.recorded.append(run)
        else:
            run()
        return True


class Runtime:
    """IRuntime."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            return Engine(plan)
        except json.JSONDecodeError:
            return None


class Logger:
    ERROR = 1

    def __init__(self, level: int) -> None:
        self.level = level


def library(version: str = "10.9") -> Library:
    api = SimpleNamespace(
        Runtime=Runtime, Logger=Logger, TensorIOMode=TensorIOMode, DataType=DataType
    )
    return Library("tensorrt", version, api)
