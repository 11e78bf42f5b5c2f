"""From graphs of the ``standard`` dialect to TensorRT plans, for this or for named GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from specplug.bundle import TensorRTPlan
from specplug.engines.cuda_memory import open_device
from specplug.engines.tensorrt_library import Library, find_library
from specplug.types import ExportError, SpecplugError
from specplug.weights import default_folder

WIDEST_VERIFICATION = 16  # tokens a row in a call that checks drafts
WIDEST_PREFILL = 512
DEFAULT_CAPACITY = 4096
_LIKELY_PAST = 512

Progress = Callable[[str, float], None]
"""Told what TensorRT is doing and how much of it is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Target:
    """What plans are built for."""

    compute_capabilities: tuple[str, ...] = ()
    """As in ``"8.9"``; empty: the GPU of this machine."""
    max_batch: int = 1
    capacity: int = DEFAULT_CAPACITY
    """Cache entries a row has; memory for all of them is taken when the plan is loaded."""

    def __post_init__(self) -> None:
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise ExportError(
                    f"compute capability {capability!r}: write it as NVIDIA does, such as 8.9"
                )
        if not 1 <= self.max_batch <= 256:
            raise ExportError(f"--max-batch {self.max_batch}: need 1 to 256")
        if self.capacity < WIDEST_VERIFICATION * 2:
            raise ExportError(f"--capacity {self.capacity}: need {WIDEST_VERIFICATION * 2} or more")


def resolve(target: Target) -> Target:
    """Refuse, before any work, what cannot be built for; name this machine's GPU if none is named.

    Raises:
        ExportError: a capability that the TensorRT which is installed cannot build for, or none
            is named and no GPU is here.
        MissingExtraError: no TensorRT is installed.
    """
    library = find_library()
    if not target.compute_capabilities:
        target = replace(target, compute_capabilities=(_own_capability(library),))
    elif not library.is_rtx:
        raise ExportError(
            f"{library.name} {library.version} builds for the GPU of its machine only: leave "
            "--compute-capability out, or install TensorRT-RTX (pip install 'specplug[tensorrt]')"
        )
    known = _capabilities(library) if library.is_rtx else {*target.compute_capabilities}
    for capability in target.compute_capabilities:
        if capability not in known:
            raise ExportError(
                f"{library.name} {library.version} builds for compute capabilities "
                f"{', '.join(known)}, not {capability}"
            )
    return target


def _capabilities(library: Library) -> dict[str, Any]:
    known = library.api.ComputeCapability.__members__
    found = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in known.items()
        if re.fullmatch(r"SM\d+", name)
    }
    return dict(sorted(found.items(), key=lambda pair: float(pair[0])))


def build_plans(
    graph: Path, target: Target, folder: Path, progress: Progress
) -> list[TensorRTPlan]:
    """Build a graph's plans.

    Args:
        graph: the ``.onnx`` file, its data beside it.
        target: what to build for, resolved.
        folder: where the plans go.
        progress: told as it goes on.

    Raises:
        ExportError: TensorRT refuses the graph, in its own words.
    """
    library = find_library()
    proto = with_capacity(graph, target.capacity)
    return [
        _build(library, graph, proto, target, capability, folder, progress)
        for capability in target.compute_capabilities
    ]


def _own_capability(library: Library) -> str:
    try:
        device = open_device(None)
    except SpecplugError as error:
        remedy = "name one with --compute-capability" if library.is_rtx else "export on one"
        raise ExportError(f"no GPU to build for: {error}; {remedy}") from error
    capability = device.compute_capability
    device.close()
    return capability


def with_capacity(graph: Path, capacity: int) -> bytes:
    """The graph for caches of one size: TensorRT builds its cache updates for no other."""
    model = onnx.load(graph, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "capacity":
                dimension.dim_value = capacity
    proto: bytes = model.SerializeToString()
    return proto


def _build(
    library: Library,
    graph: Path,
    proto: bytes,
    target: Target,
    capability: str,
    folder: Path,
    progress: Progress,
) -> TensorRTPlan:
    api = library.api
    messages = _messages(api)
    builder = api.Builder(messages)
    network = parse(library, builder, messages, proto, graph)
    config = builder.create_builder_config()
    if library.is_rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_capabilities(library)[capability], 0)
    config.progress_monitor = _monitor(api, progress)
    for profile in profiles(builder, network, target):
        config.add_optimization_profile(profile)
    timings = None if library.is_rtx else _Timings(library, config)  # RTX times on the GPU, later
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(
            f"{library.name} {library.version} cannot build {graph.parent.name} for compute "
            f"capability {capability}: {messages.told()}"
        )
    if timings:
        timings.keep()
    name = plan_name(capability)
    (folder / name).write_bytes(plan)
    return TensorRTPlan(
        path=f"{folder.name}/{name}",
        library=library.name,
        version=library.version,
        compute_capability=capability,
        max_batch=target.max_batch,
        capacity=target.capacity,
    )


def plan_name(capability: str) -> str:
    """File name of a plan of the TensorRT that is installed."""
    library = find_library()
    return f"{library.name}-{library.version}-sm{capability.replace('.', '')}.plan"


def parse(library: Library, builder: Any, messages: Any, proto: bytes, graph: Path) -> Any:
    """TensorRT's network of a graph.

    Raises:
        ExportError: with what the parser says.
    """
    api = library.api
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, messages)
    if not parser.parse(proto, str(graph)):
        told = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ExportError(f"{library.name} {library.version} cannot read the graph: {told}")
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == api.LayerType.ATTENTION_INPUT:
            # Where there is no kernel for the whole, as in fp32, it may be taken apart.
            layer.__class__ = api.IAttentionInputLayer
            layer.attention.decomposable = True
    return network


def profiles(builder: Any, network: Any, target: Target) -> list[Any]:
    """Of decoding, of verification and of prefill: the shapes that each is made for."""
    made = []
    for widest, likely in ((1, 1), (WIDEST_VERIFICATION, 5), (WIDEST_PREFILL, 128)):
        profile = builder.create_optimization_profile()
        widest = min(widest, target.capacity)
        for index in range(network.num_inputs):
            value = network.get_input(index)
            if value.name == "scores_from":
                profile.set_shape_input(value.name, [0], [0], [widest - 1])
                continue
            ranges = [
                _with(value, batch, width)
                for batch, width in (
                    (1, 1),
                    (target.max_batch, min(likely, widest)),
                    (target.max_batch, widest),
                )
            ]
            profile.set_shape(value.name, *ranges)
        made.append(profile)
    return made


def _with(value: Any, batch: int, width: int) -> tuple[int, ...]:
    """The shape of an input in calls of a batch and a width, its only free dimensions."""
    sizes = [batch, width]
    return tuple(size if size >= 0 else sizes.pop(0) for size in value.shape)


class _Timings:
    """What TensorRT timed on this machine, kept for later builds."""

    def __init__(self, library: Library, config: Any) -> None:
        folder = default_folder().parent / "tensorrt"
        self._file = folder / f"{library.name}-{library.version}.timings"
        self._cache = config.create_timing_cache(
            self._file.read_bytes() if self._file.exists() else b""
        )
        config.set_timing_cache(self._cache, ignore_mismatch=False)

    def keep(self) -> None:
        """Write it, whole or not at all."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(f".{os.getpid()}")
        part.write_bytes(self._cache.serialize())
        part.replace(self._file)


def _messages(api: Any) -> Any:
    class Messages(api.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT complains of."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.ILogger.ERROR, api.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def told(self) -> str:
            return "; ".join(self.errors[-3:]) or "it does not say why"

    return Messages()


def _monitor(api: Any, progress: Progress) -> Any:
    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        """Passes on the outermost phase's progress."""

        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            if self._steps.get(name):
                progress(name, (step + 1) / self._steps[name])
            return True

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

    return Monitor()
