"""A stand-in for ``triton_python_backend_utils``, after the documentation of the Python backend.

Stricter than the real module where the documentation forbids something: inputs read after
``execute`` has returned, a response after the final one, a response object sent twice, outputs of
a type that the configuration does not name.
"""

from __future__ import annotations

import json
import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np

FINAL = 1


class TritonModelException(Exception):  # noqa: N818 - its name there
    pass


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = 0, 1, 2, 3
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = 4, 5, 6, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, values: np.ndarray[Any, Any]) -> None:
        assert isinstance(values, np.ndarray)
        assert values.dtype in (np.dtype(object), np.dtype(np.int64), np.dtype(bool))
        self._name, self._values, self.freed = name, values, False

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        assert not self.freed, "read after execute had returned"
        return self._values


class InferenceResponse:
    def __init__(
        self,
        output_tensors: list[Tensor] | None = None,
        error: TritonError | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self._tensors, self._error, self.sent = output_tensors or [], error, False

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.finished = threading.Event()
        self.first = threading.Event()
        self.cancelled = False
        self.broken = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.finished.is_set(), "sent after the final response"
        assert flags in (0, FINAL)
        assert response is not None or flags == FINAL
        if self.broken and not flags:
            raise TritonModelException("the client is gone")
        if response is not None:
            assert not response.sent, "one response sent twice"
            response.sent = True
            self.responses.append(response)
            self.first.set()
        if flags == FINAL:
            self.finished.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    # --- for tests ----------------------------------------------------------------------------

    def wait(self) -> InferenceResponseSender:
        assert self.finished.wait(30), "no final response"
        return self

    @property
    def failure(self) -> TritonError | None:
        return next((one.error() for one in self.responses if one.error()), None)

    def outputs(self, name: str) -> list[Any]:
        """Its values in all responses: text decoded, numbers in lists."""
        assert self.failure is None, self.failure.message()
        found = []
        for response in self.responses:
            values = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            array = values[name]
            found.append(array[0].decode() if array.dtype == object else array.tolist())
        return found

    @property
    def text(self) -> str:
        return "".join(self.outputs("text_output"))

    @property
    def token_ids(self) -> list[int]:
        return [token for tokens in self.outputs("token_ids") for token in tokens]


class InferenceRequest:
    def __init__(
        self,
        inputs: dict[str, Any],
        parameters: dict[str, Any] | None = None,
        requested: tuple[str, ...] = (),
    ) -> None:
        self._inputs = [Tensor(name, _array(value)) for name, value in inputs.items()]
        self._parameters, self._requested = parameters, requested
        self.sender = InferenceResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return json.dumps(self._parameters) if self._parameters else ""

    def requested_output_names(self) -> tuple[str, ...]:
        return self._requested

    def get_response_sender(self) -> InferenceResponseSender:
        return self.sender

    def free(self) -> None:
        for tensor in self._inputs:
            tensor.freed = True


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, str):
        return np.array([value.encode()], dtype=np.object_)
    if isinstance(value, bool):
        return np.array([value])
    return np.array(value, dtype=np.object_ if isinstance(value[0], bytes) else np.int64)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


class Metric:
    def __init__(self) -> None:
        self.count = 0.0

    def increment(self, by: float) -> None:
        assert by >= 0
        self.count += by


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = 0, 1, 2
    made: dict[str, MetricFamily]

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert kind == self.COUNTER
        if name in self.made:
            raise TritonModelException(f"metric family {name} exists with another description")
        self.metrics: dict[tuple[tuple[str, str], ...], Metric] = {}
        self.made[name] = self

    def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802 - its name there
        return self.metrics.setdefault(tuple(sorted(labels.items())), Metric())


class Logger:
    lines: list[str]

    @classmethod
    def log_info(cls, message: str) -> None:
        cls.lines.append(message)

    log_warn = log_error = log_info


def install(monkeypatch: Any, *, metrics: bool = True) -> ModuleType:
    """Put it where ``import triton_python_backend_utils`` finds it, without what uses it."""
    module = ModuleType("triton_python_backend_utils")
    MetricFamily.made, Logger.lines = {}, []
    for part in (TritonModelException, TritonError, Tensor, InferenceResponse, Logger):
        setattr(module, part.__name__, part)
    if metrics:
        module.MetricFamily = MetricFamily  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = get_input_tensor_by_name  # type: ignore[attr-defined]
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "specplug.integrations.triton.backend", raising=False)
    return module
